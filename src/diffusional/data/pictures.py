"""One picture to an array: (C, H, W), levels as its format declares them, and nothing guessed.

The format says how many bits a pixel has: 8 give 256 levels, the 1, 2 and 4 bits of a greyscale PNG give 2, 4
and 16. More than 8 are refused, since Pillow would drop some of them; so is transparency, which has no colour.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from diffusional.data.orientation import ORIENTATION, upright
from diffusional.errors import DiffusionalError
from diffusional.files import check_regular

Fit = Literal["crop", "resize"]

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_STILL = (
    "GIF",
    "MPO",
)  # whose first frame is the picture: a GIF's by custom, a camera's JPEG with previews by its standard
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Options:
    """How pictures become items: one side for all, how they are fitted to it, and grey or colour.

    `grey=None` takes pictures as they are, True makes all of them grey (ITU-R 601's luma), False all RGB.

    >>> Options(size=0)
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: size=0 came; the side of an image is at least 1 pixel
    """

    size: int | None = None
    fit: Fit = "crop"
    grey: bool | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise DiffusionalError(f"size={self.size} came; the side of an image is at least 1 pixel")
        if self.fit not in ("crop", "resize"):
            raise DiffusionalError(f'fit={self.fit!r} came; expected "crop" or "resize"')


@dataclass(frozen=True, eq=False)
class Picture:
    """Values (C, H, W) uint8 from 0 to levels − 1, and for errors the name of where they came from."""

    values: np.ndarray
    levels: int
    name: str


def decode(source: Path | bytes, name: str, options: Options) -> Picture:
    """Return the picture of a file or of its content.

    The centre square of side min(H, W) is scaled to `size` (fit="crop"), or the whole picture is, whatever its
    aspect (fit="resize"), by a bicubic filter as wide as the scale asks for. Raises DiffusionalError, naming the
    picture, for what is damaged, animated, transparent, of more than 8 bits, or of an unusual colour space, and for a
    path that is no regular file.

    >>> content = io.BytesIO()
    >>> Image.new("RGB", (4, 2), (255, 0, 7)).save(content, "PNG")
    >>> decode(content.getvalue(), "red.png", Options(size=1)).values.ravel()
    array([255,   0,   7], dtype=uint8)
    """
    if isinstance(source, Path):
        check_regular(source)
    try:
        # An open file, not its path: Pillow maps an uncompressed file that it knows by path into memory, with its width and
        # height exchanged if it is a TIFF that is to be turned by a quarter.
        with (
            io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file,
            Image.open(file, formats=_FORMATS) as opened,
        ):
            if getattr(opened, "is_animated", False) and opened.format not in _STILL:
                raise DiffusionalError(f"{name} has several frames; give still images, a file for each frame")
            bits = _bits(opened, name)
            tagged = ORIENTATION in getattr(opened, "tag_v2", {})
            opened.load()
            return _picture(upright(opened, name, tagged), bits, name, options)
    except DiffusionalError:
        raise
    except _BROKEN as error:
        # Pillow names what was opened, which is not always a path.
        reason = "its content is not that of a known format" if isinstance(error, UnidentifiedImageError) else error
        raise DiffusionalError(
            f"{name} could not be read as an image ({reason}); get it again, or take it out of the data"
        ) from error


def from_image(image: Image.Image, name: str, options: Options) -> Picture:
    """Return the picture of an image in memory, whose bits its mode tells.

    >>> from_image(Image.new("L", (3, 2)), "item 0", Options()).values.shape
    (1, 2, 3)
    """
    return _picture(upright(image, name), 1 if image.mode == "1" else 8, name, options)


def check_alike(first: Picture, other: Picture) -> None:
    """Raise DiffusionalError, naming both, unless two pictures can be items of one data set."""
    a, b = first.values.shape, other.values.shape
    if a[0] != b[0]:
        grey, colour = (first, other) if a[0] == 1 else (other, first)
        raise DiffusionalError(
            f"{grey.name} is greyscale and {colour.name} is in colour; say what all shall be: grey=True "
            "(--data.grey yes) makes them grey, grey=False (--data.grey no) gives them three channels"
        )
    if a != b:
        raise DiffusionalError(
            f"{first.name} has {a[2]} × {a[1]} pixels and {other.name} has {b[2]} × {b[1]}; give one side for all: "
            'size=64 (--data.size 64) scales the centre square, with fit="resize" (--data.fit resize) the whole image'
        )
    if first.levels != other.levels:
        raise DiffusionalError(
            f"{first.name} has {first.levels} levels and {other.name} has {other.levels}, by the bits of their "
            "formats; store all images with the same number of bits"
        )


def _bits(image: Image.Image, name: str) -> int:
    """Return bits of one value, as the file stores it."""
    tile = getattr(image, "tile", None)
    args = tile[0][3] if tile else ""
    stored = str(args[0] if isinstance(args, tuple) and args else args)
    found = re.search(r";(\d+)", stored)
    bits = int(found[1]) if found else 8
    if bits > 8 or image.mode.startswith(("I", "F")):
        raise DiffusionalError(
            f"{name} has more than 8 bits per value (it is stored as {stored or image.mode}); reading it as an 8-bit "
            "image would drop some. Give the values as an array (.npy), with their levels, or store 8 bits"
        )
    return 1 if image.mode == "1" else bits if image.mode == "L" else 8


def _picture(image: Image.Image, bits: int, name: str, options: Options) -> Picture:
    image = _opaque(image, name)
    if bits < 8:
        if options.grey is False or (options.size is not None and image.size != (options.size, options.size)):
            raise DiffusionalError(
                f"{name} has {bits} bit{'s' * (bits > 1)} per pixel, which neither scaling nor colour would keep; "
                "leave size and grey out, or store 8-bit images"
            )
        levels = 2**bits
        # Pillow gives bits as booleans, and spreads what has two or four over 0 … 255.
        values = np.asarray(image.convert("L")) // (255 // (levels - 1))
        return Picture(values[None], levels, name)
    if options.grey is not None:
        image = image.convert("L" if options.grey else "RGB")
    if options.size is not None:
        image = _fitted(image, options.size, options.fit)
    values = np.asarray(image)
    return Picture(values[None] if values.ndim == 2 else np.moveaxis(values, 2, 0), 256, name)


def _opaque(image: Image.Image, name: str) -> Image.Image:
    """Return the image in one of the modes 1, L and RGB; an alpha channel is dropped if it hides nothing."""
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        lowest = image.convert("RGBA").getchannel("A").getextrema()[0]
        if lowest != 255:
            raise DiffusionalError(
                f"{name} is transparent in places, and a transparent pixel has no colour; put it on a background first"
            )
        return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    if image.mode == "P":
        return image.convert("RGB")
    if image.mode not in ("1", "L", "RGB"):
        raise DiffusionalError(f"{name} is of mode {image.mode}; expected greyscale or RGB: convert it first")
    return image


def _fitted(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    width, height = image.size
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)
