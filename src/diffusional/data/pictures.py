"""Conversion of a picture to an array (C, H, W) with the levels of its format.

The format determines the number of bits of a pixel: 8 bits are 256 levels, and the 1, 2 and 4 bits of a greyscale PNG are 2, 4 and
16. More than 8 bits are refused, since Pillow would drop some of them; so is transparency, since a transparent pixel has no colour.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from diffusional.data.orientation import ORIENTATION, upright
from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.files import check_regular

with needed_for("images"):
    from PIL import Image, UnidentifiedImageError

Fit = Literal["crop", "resize"]

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_STILL = (
    "GIF",
    "MPO",
)  # formats whose first frame is the picture: GIF by convention, and JPEG with a camera's previews by its standard
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Options:
    """The conversion of pictures to items: a common side, the way in which they are fitted to it, and grey or colour.

    `grey=None` keeps pictures as they are, True converts all of them to grey (the luma of ITU-R 601), False to RGB.

    >>> Options(size=0)
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: expected size to be at least 1 pixel, got 0
    """

    size: int | None = None
    fit: Fit = "crop"
    grey: bool | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise DiffusionalError(f"expected size to be at least 1 pixel, got {self.size}")
        if self.fit not in ("crop", "resize"):
            raise DiffusionalError(f'expected fit to be "crop" or "resize", got {self.fit!r}')


@dataclass(frozen=True, eq=False)
class Picture:
    """Values (C, H, W) uint8 from 0 to levels − 1, and the name of their source for errors."""

    values: np.ndarray
    levels: int
    name: str


def decode(source: Path | bytes, name: str, options: Options) -> Picture:
    """Return the picture of a file or of its content.

    The centre square of side min(H, W) is scaled to `size` (fit="crop"), or the whole picture regardless of its aspect ratio
    (fit="resize"), by a bicubic filter whose width depends on the scale. Raises DiffusionalError, naming the picture, if it is
    damaged, animated, transparent, of more than 8 bits, or of an unusual colour space, and for a path that is not a regular file.

    >>> content = io.BytesIO()
    >>> Image.new("RGB", (4, 2), (255, 0, 7)).save(content, "PNG")
    >>> decode(content.getvalue(), "red.png", Options(size=1)).values.ravel()
    array([255,   0,   7], dtype=uint8)
    """
    if isinstance(source, Path):
        check_regular(source)
    try:
        # Pillow gets an open file, not a path: given a path, it maps an uncompressed file into memory, and exchanges width and
        # height of a TIFF whose orientation is a quarter turn.
        with (
            io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file,
            Image.open(file, formats=_FORMATS) as opened,
        ):
            if getattr(opened, "is_animated", False) and opened.format not in _STILL:
                raise DiffusionalError(
                    f"{name} has several frames; expected still images: save each frame in a file of its own"
                )
            bits = _bits(opened, name)
            tagged = ORIENTATION in getattr(opened, "tag_v2", {})
            opened.load()
            return _picture(upright(opened, name, tagged), bits, name, options)
    except DiffusionalError:
        raise
    except _BROKEN as error:
        # Pillow's message contains the object that was opened, which is not always a path.
        reason = "its content is not that of a known format" if isinstance(error, UnidentifiedImageError) else error
        raise DiffusionalError(
            f"{name} could not be read as an image ({reason}); get it again, or remove it from the data"
        ) from error


def from_image(image: Image.Image, name: str, options: Options) -> Picture:
    """Return the picture of an image in memory, whose number of bits follows from its mode.

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
            f"{grey.name} is greyscale and {colour.name} is in colour; choose one for all: grey=True "
            "(--data.grey yes) converts them to grey, grey=False (--data.grey no) to three channels"
        )
    if a != b:
        raise DiffusionalError(
            f"{first.name} has {a[2]} × {a[1]} pixels and {other.name} has {b[2]} × {b[1]}; choose one side for all: "
            'size=64 (--data.size 64) scales the centre square, with fit="resize" (--data.fit resize) the whole image'
        )
    if first.levels != other.levels:
        raise DiffusionalError(
            f"{first.name} has {first.levels} levels and {other.name} has {other.levels}, by the number of bits of their "
            "formats; store all images with the same number of bits"
        )


def _bits(image: Image.Image, name: str) -> int:
    """Return the number of bits of one value in the file."""
    tile = getattr(image, "tile", None)
    args = tile[0][3] if tile else ""
    stored = str(args[0] if isinstance(args, tuple) and args else args)
    found = re.search(r";(\d+)", stored)
    bits = int(found[1]) if found else 8
    if bits > 8 or image.mode.startswith(("I", "F")):
        raise DiffusionalError(
            f"{name} has more than 8 bits per value (it is stored as {stored or image.mode}); reading it as an 8-bit "
            "image would drop some of them. Give the values as an array (.npy), with their levels, or store 8 bits"
        )
    return 1 if image.mode == "1" else bits if image.mode == "L" else 8


def _picture(image: Image.Image, bits: int, name: str, options: Options) -> Picture:
    image = _opaque(image, name)
    if bits < 8:
        if options.grey is False or (options.size is not None and image.size != (options.size, options.size)):
            raise DiffusionalError(
                f"{name} has {bits} bit{'s' * (bits > 1)} per pixel, which would change with scaling or colour; "
                "leave size and grey out, or store 8-bit images"
            )
        levels = 2**bits
        # Pillow returns single bits as booleans, and maps values of two or four bits to 0 … 255.
        values = np.asarray(image.convert("L")) // (255 // (levels - 1))
        return Picture(values[None], levels, name)
    if options.grey is not None:
        image = image.convert("L" if options.grey else "RGB")
    if options.size is not None:
        image = _fitted(image, options.size, options.fit)
    values = np.asarray(image)
    return Picture(values[None] if values.ndim == 2 else np.moveaxis(values, 2, 0), 256, name)


def _opaque(image: Image.Image, name: str) -> Image.Image:
    """Return the image in one of the modes 1, L and RGB; an alpha channel is dropped if the image is opaque."""
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        lowest = image.convert("RGBA").getchannel("A").getextrema()[0]
        if lowest != 255:
            raise DiffusionalError(
                f"{name} is partly transparent, and a transparent pixel has no colour; put it on a background first"
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
