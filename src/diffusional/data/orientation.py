"""The orientation of a picture, from EXIF, XMP, or a raw profile of a PNG."""

import re
import struct
from collections.abc import Iterator
from typing import Any

from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for

with needed_for("images"):
    from PIL import Image

ORIENTATION = 0x0112  # the tag of EXIF and TIFF

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The keys under which Pillow gives metadata.
_XMP = ("XML:com.adobe.xmp", "xmp")
_PROFILES = ("Raw profile type exif", "Raw profile type APP1", "Raw profile type xmp")
_EXIF_HEAD = b"Exif\0\0"
_TIFF_HEADS = (b"II", b"MM")
_NAMESPACE = rb"""xmlns:([\w.-]+)\s*=\s*["']http://ns\.adobe\.com/tiff/1\.0/["']"""


def upright(image: Image.Image, name: str, tagged: bool = False) -> Image.Image:
    """Rotate or flip a loaded image as its metadata require. Returns the same object if they have no orientation.

    EXIF is read first, then XMP if EXIF has no orientation. `tagged` is True for a TIFF that had the tag before it was
    loaded: Pillow may have turned it then, and has removed the tag if it did. Raises DiffusionalError,
    with `name`, for EXIF data or a raw profile that cannot be read, since the orientation is then not known.

    >>> image = Image.new("L", (3, 2))
    >>> image.info["xmp"] = b'<rdf:Description tiff:Orientation="6"/>'
    >>> upright(image, "a.jpg").size
    (2, 3)
    """
    method = _TURNS.get(image.getexif().get(ORIENTATION, 1) if tagged else _orientation(image.info, name))
    return image if method is None else image.transpose(method)


def _orientation(info: dict[Any, Any], name: str) -> int:
    """Return the orientation, 1 to 8, or 1 if there is none."""
    xmp = [_as_bytes(info[key]) for key in _XMP if info.get(key)]
    for content in _embedded(info, name):
        if content.startswith((_EXIF_HEAD, *_TIFF_HEADS)):
            exif = Image.Exif()
            try:
                exif.load(content)
                value = exif.get(ORIENTATION)
            except (SyntaxError, ValueError, TypeError, OSError, struct.error, KeyError, IndexError) as error:
                raise _unreadable(name, f"its EXIF data are damaged: {error}") from error
            if value is not None:
                return value if isinstance(value, int) else 1
        else:
            xmp.append(content)
    for packet in xmp:
        packet = packet.replace(b"\0", b"")  # converts ASCII in UTF-16 and UTF-32
        declared = re.search(_NAMESPACE, packet)
        prefix = re.escape(declared[1]) if declared else b"tiff"
        found = re.search(prefix + rb""":Orientation\s*(?:=\s*["']|>)\s*([1-8])\s*["'<]""", packet)
        if found:
            return int(found[1])
    return 1


def _embedded(info: dict[Any, Any], name: str) -> Iterator[bytes]:
    """Yield the blocks of EXIF data, with or without their head, and blocks of other kinds in raw profiles."""
    if info.get("exif"):
        content = _as_bytes(info["exif"])
        yield content if content.startswith((_EXIF_HEAD, *_TIFF_HEADS)) else _EXIF_HEAD + content
    for key in _PROFILES:
        if info.get(key):
            # A name, the number of bytes, and the bytes in hexadecimal digits, over many lines.
            found = re.fullmatch(r"\s*\S+\s+(\d+)\s+([0-9a-fA-F\s]*)", str(info[key]))
            digits = "".join(found[2].split()) if found else ""
            if found is None or len(digits) != 2 * int(found[1]):
                raise _unreadable(name, f"its text {key!r} is damaged")
            yield bytes.fromhex(digits)


def _as_bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _unreadable(name: str, why: str) -> DiffusionalError:
    return DiffusionalError(
        f"{name}: the orientation could not be read ({why}). Save the picture upright and without metadata"
    )
