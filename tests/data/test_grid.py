"""Scaled levels are recognised for what they are, with the numbers to undo it; real values are left alone."""

import numpy as np
import pytest

from diffusional.data.grid import Grid, find_grid

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, 3000)
BYTES[:256] = np.arange(256)


def undone(grid: Grid, values: np.ndarray) -> np.ndarray:
    """What the advice gives: the expression is what a user would paste."""
    return eval(grid.index(), {"np": np, "x": values.astype(np.float64)})


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    "scaled",
    [
        lambda x, t: x / t(255),
        lambda x, t: x / t(256),
        lambda x, t: (x / t(255) - t(0.5)) / t(0.5),
        lambda x, t: x / t(127.5) - t(1),
        lambda x, t: x / t(128) - t(1),
        lambda x, t: x / t(255) - t(0.5),
        lambda x, t: x / t(256) - t(0.5),
        lambda x, t: (2 * x + 1) / t(256) - t(1),
        lambda x, t: x,
    ],
)
def test_bytes_are_found_and_undone(scaled, kind, wide: bool) -> None:
    values = scaled(BYTES.astype(kind), kind).astype(kind)
    values = values.astype(np.float64) if wide else values
    grid = find_grid(values)
    assert grid is not None
    assert grid.levels == 256
    np.testing.assert_array_equal(undone(grid, values), BYTES)


@pytest.mark.parametrize(
    ("levels", "divisor"), [(2, 1), (16, 15), (17, 16), (1024, 1023), (4096, 4096), (65536, 65535), (65536, 65536)]
)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_other_numbers_of_levels(levels: int, divisor: int, kind) -> None:
    index = np.concatenate([[0, levels - 1], RNG.integers(0, levels, 5000)])
    grid = find_grid((index / divisor).astype(kind))
    assert grid is not None
    assert grid.levels == levels
    np.testing.assert_array_equal(undone(grid, index / divisor), index)


def test_levels_that_do_not_reach_the_ends() -> None:
    dark = find_grid(np.minimum(BYTES, 99).astype(np.float32) / 255)
    assert (dark.levels, dark.step) == (256, 1 / 255)
    coarse = find_grid((17 * RNG.integers(0, 16, 3000) / 255).astype(np.float32))
    assert coarse.levels == 16


@pytest.mark.parametrize(
    "values",
    [
        RNG.random(100_000),
        RNG.random(100_000).astype(np.float32),
        RNG.random(100_000).astype(np.float16),
        2 * RNG.random(100_000).astype(np.float16) - 1,
        RNG.random(40).astype(np.float16),
        RNG.normal(size=10_000).astype(np.float16),
        RNG.beta(0.1, 0.1, 1000),
        np.clip(RNG.normal(0.5, 0.3, 1000), 0, 1),
        RNG.random(1000).round(2),  # decimals
        RNG.integers(0, 10**6, 1000).astype(float),  # counts that hardly repeat
        RNG.integers(-5, 5, 1000).astype(float),
        np.concatenate([BYTES / 255, [0.5001]]),
        np.array([0.0, 0.5, 1.0]),  # too few to tell
        np.zeros(100),
        np.full(100, 0.25),
        1e-170 * RNG.random(100),  # all within rounding of 0
        0.5 + 1e-9 * RNG.random(100),
        np.zeros(0),
    ],
)
def test_what_is_on_no_grid(values: np.ndarray) -> None:
    assert find_grid(values) is None


def test_whole_numbers_may_be_left_out() -> None:
    assert find_grid(BYTES.astype(float)) == Grid(0.0, 1.0, 256)
    assert find_grid(BYTES.astype(float), whole=False) is None
