"""Captions of images of digits, written from the label and from what is measured on the image: "a thick small seven leaning right".

For grey levels a ≥ 0 of pixels at (x, y), y downwards, with Σ over all pixels:

    slant     −Σ a (x − x̄)(y − ȳ) / Σ a (y − ȳ)²       the shift to the right for a pixel upwards; deskewing would undo it
    stroke    2 Σ a / Σ |∇a|                            the width of a line of this area and length of its edges, in pixels
    size      √(Σ a [(x − x̄)² + (y − ȳ)²] / Σ a)        the root mean square distance from the centre of mass
    position  the centre of the box around pixels of at least a quarter of the highest level, from the centre of the image

Stroke, size and position are relative to the height or width of the image. Words for the middle of each are left out. The thresholds of
stroke and size are the terciles of the train splits of scikit-learn's digits (8 × 8) and of MNIST (28 × 28), whichever is nearer in
height; the others are the same for all images. A caption therefore depends on the image and its label only. All sums are over
integers, so that it is the same on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffusional.errors import DiffusionalError

# By the height of images: the terciles of stroke and size, as fractions of it.
_THIRDS = {8: ((0.178, 0.195), (0.312, 0.335)), 28: ((0.077, 0.095), (0.228, 0.252))}
_SLANT = 0.1
_OFFSET = 0.045
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Parts of a pixel in which the length of a gradient is counted, so that its sum is one of integers.
_PARTS = 64


@dataclass(frozen=True, eq=False)
class Measures:
    """Properties of N images, float64 (N,) each; see the module. `right` and `below` are the position; NaN for images without ink."""

    slant: np.ndarray
    stroke: np.ndarray
    size: np.ndarray
    right: np.ndarray
    below: np.ndarray


def measure(images: np.ndarray, levels: int) -> Measures:
    """Measure images (N, H, W) of integers 0 … levels − 1, where 0 is the background.

    >>> bar = np.zeros((1, 8, 8), int)
    >>> bar[0, 1:7, 3:5] = 16
    >>> found = measure(bar, 17)
    >>> found.slant.tolist(), (8 * found.stroke).round(1).tolist(), found.right.tolist()
    ([0.0], [1.6], [0.0])
    """
    a = images.astype(np.int64)
    _, height, width = a.shape
    y, x = np.arange(height), np.arange(width)
    # Moments as Python's integers: their products may exceed 64 bits.
    columns, rows = a.sum(1), a.sum(2)
    m, sx, sy, sxx, syy, sxy = (
        moment.astype(object)
        for moment in (
            columns.sum(1),
            columns @ x,
            rows @ y,
            columns @ (x * x),
            rows @ (y * y),
            (a @ x) @ y,
        )
    )
    edges = _edges(a)
    on = 4 * a >= levels - 1
    right, below = (_middle(np.asarray(on.any(axis))) / n for axis, n in ((1, width), (2, height)))
    inked = a.any((1, 2))
    return Measures(
        _ratio(sx * sy - m * sxy, m * syy - sy * sy),
        _ratio(2 * _PARTS * m, edges.astype(object)) / height,
        np.sqrt(_ratio(m * (sxx + syy) - sx * sx - sy * sy, m * m)) / height,
        np.where(inked, right, np.nan),
        np.where(inked, below, np.nan),
    )


def _edges(a: np.ndarray) -> np.ndarray:
    """Return Σ |∇a| (N,) of images, with a border of zeros, in parts of a level: integers."""
    padded = np.pad(a, ((0, 0), (1, 1), (1, 1)))
    dx = np.diff(padded, axis=2)[:, :-1]
    dy = np.diff(padded, axis=1)[:, :, :-1]
    return np.rint(_PARTS * np.sqrt((dx * dx + dy * dy).astype(np.float64))).astype(np.int64).sum((1, 2))


def _middle(used: np.ndarray) -> np.ndarray:
    """Return the middle of the used places (N, n), from the middle of all."""
    n = used.shape[1]
    first, last = used.argmax(1), n - 1 - used[:, ::-1].argmax(1)
    return (first + last - (n - 1)) / 2


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return quotients of Python's integers, each correctly rounded; NaN where the denominator is 0."""
    return np.array([a / b if b else np.nan for a, b in zip(above, below, strict=True)], np.float64)


def write(images: np.ndarray, levels: int, names: Sequence[str]) -> list[str]:
    """Return the captions of images (N, H, W) of integers 0 … levels − 1, given the names of their classes; "7" is written as "seven".

    Raises DiffusionalError for images of another shape or type, and another number of names.

    >>> bar = np.zeros((2, 8, 8), int)
    >>> bar[0, 1:7, 3:5] = 16
    >>> bar[1, [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]] = 16
    >>> write(bar, 17, ["1", "1"])
    ['a small one', 'a thin small one leaning right']
    """
    if images.ndim != 3 or images.dtype.kind not in "bui":
        raise DiffusionalError(
            f"captions are written for images (N, H, W) of integers, got {images.dtype} of shape {images.shape}; give captions with the data"
        )
    if len(names) != len(images):
        raise DiffusionalError(f"expected the class of each of {len(images)} images, got {len(names)}")
    found = measure(images, levels)
    height = images.shape[1]
    stroke, size = _THIRDS[min(_THIRDS, key=lambda side: abs(np.log(height / side)))]
    words = zip(
        _words(found.stroke, stroke, "thin", "thick"),
        _words(found.size, size, "small", "large"),
        (_spoken(name) for name in names),
        _words(found.slant, (-_SLANT, _SLANT), "leaning left", "leaning right"),
        _places(found),
        strict=True,
    )
    return [_caption(list(parts)) for parts in words]


def _words(values: np.ndarray, thresholds: tuple[float, float], low: str, high: str) -> list[str]:
    """Return a word for each value: `low` below the first threshold, `high` above the second, and none between."""
    below, above = thresholds
    return [low if value < below else high if value > above else "" for value in values.tolist()]


def _places(found: Measures) -> list[str]:
    limits = (-_OFFSET, _OFFSET)
    pairs = zip(_words(found.below, limits, "top", "bottom"), _words(found.right, limits, "left", "right"), strict=True)
    return [f"at the {' '.join(word for word in pair if word)}" if any(pair) else "" for pair in pairs]


def _spoken(name: str) -> str:
    """Return the word for a digit, and other names as they are."""
    return _DIGITS[int(name)] if len(name) == 1 and name in "0123456789" else name


def _caption(parts: list[str]) -> str:
    text = " ".join(part for part in parts if part)
    vowel = text[:1].lower() in "aeiou" and not text.startswith("one")
    return f"{'an' if vowel else 'a'} {text}"
