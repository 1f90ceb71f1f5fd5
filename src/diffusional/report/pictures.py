"""Images as PNG in a page: arrays to data URIs, reduced in size where the page would become too large."""

import base64
import io

import numpy as np

from diffusional.extras import needed_for

with needed_for("report"):
    from matplotlib import colormaps

# The longest side of an image in a page, in pixels; larger ones are reduced.
MOST = 96


def data_uri(pixels: np.ndarray) -> str:
    """Return an image (H, W, 3) or (H, W), uint8, as a data URI of a PNG file.

    >>> data_uri(np.zeros((2, 2), dtype=np.uint8))[:30]
    'data:image/png;base64,iVBORw0K'
    """
    with needed_for("images"):
        from PIL import Image
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def pixels_of(image: np.ndarray) -> np.ndarray:
    """Return an image (C, H, W) in [0, 1] as uint8: (H, W) for one or two channels, dark where the value is high, otherwise (H, W, 3).

    >>> pixels_of(np.array([[[0.0, 1.0]]])).tolist()
    [[255, 0]]
    """
    image = reduced(np.clip(np.asarray(image, dtype=float), 0, 1))
    shown = 1 - image[0] if len(image) < 3 else np.moveaxis(image[:3], 0, -1)
    return np.rint(255 * shown).astype(np.uint8)


def reduced(image: np.ndarray) -> np.ndarray:
    """Return an image (C, H, W) with sides of at most MOST pixels, by means over blocks.

    >>> reduced(np.ones((1, 2 * MOST, MOST))).shape == (1, MOST, MOST // 2)
    True
    """
    factor = -(-max(image.shape[1:]) // MOST)
    if factor == 1:
        return image
    height, width = (side // factor for side in image.shape[1:])
    blocks = image[:, : height * factor, : width * factor].reshape(len(image), height, factor, width, factor)
    return blocks.mean((2, 4))


def sheet(images: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """Return images (N, C, H, W) in [0, 1] in a grid of `columns`, as one image of `pixels_of` with grey lines between them.

    >>> sheet(np.zeros((3, 1, 8, 8)), 2).shape
    (19, 19)
    """
    tiles = [pixels_of(image) for image in images]
    height, width = tiles[0].shape[:2]
    across, down = min(columns, len(tiles)), -(-len(tiles) // columns)
    whole = np.full((down * (height + gap) + gap, across * (width + gap) + gap, *tiles[0].shape[2:]), 160, np.uint8)
    for place, tile in enumerate(tiles):
        y, x = (place // across) * (height + gap) + gap, (place % across) * (width + gap) + gap
        whole[y : y + height, x : x + width] = tile
    return whole


def heat(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return a map (H, W) as uint8 colours (H, W, 3) from `low` to `high`.

    >>> heat(np.array([[0.0, 1.0]]), 0.0, 1.0).shape
    (1, 2, 3)
    """
    scaled = (reduced(np.asarray(values, dtype=float)[None])[0] - low) / ((high - low) or 1.0)
    colours = colormaps["cividis"](np.clip(scaled, 0, 1))
    return np.rint(255 * np.asarray(colours)[..., :3]).astype(np.uint8)
