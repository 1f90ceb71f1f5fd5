"""Scaled levels are recognised for what they are, with the numbers to undo it; real values are left alone."""

import numpy as np
import pytest
import torch

from diffusional.grid import Grid, find_grid, sample
from diffusional.space import Continuous, Discrete

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


def test_items_of_a_space_that_are_levels() -> None:
    """Encoded by any standardisation, whole or in part."""
    images = torch.from_numpy(RNG.integers(0, 256, (200, 3, 4, 4))) / 255
    space = Continuous((3, 4, 4), tuple(RNG.normal(0.4, 0.1, 48).tolist()), tuple(RNG.uniform(0.1, 0.4, 48).tolist()))
    assert "all positions are multiples of 1/255: these are data of 256 levels" in space.scaled_levels(
        space.encode(images)
    )
    by_channel = images.clone()
    by_channel[:, ::2] = torch.rand(200, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert "channel 1 are multiples of 1/255" in space.scaled_levels(space.encode(by_channel))
    assert "channel 1" in space.scaled_levels(by_channel, encoded=False)

    table = torch.from_numpy(RNG.normal(size=(1000, 5))) * torch.tensor([1.0, 100, 1e4, 1, 1]) + 30
    assert Continuous((5,)).scaled_levels(table) is None
    table[:, 3] = torch.from_numpy(RNG.integers(18, 90, 1000))
    standard = Continuous((5,), tuple(table.mean(0).tolist()), tuple(table.std(0).tolist()))
    for some in (table, table[:60]):
        assert "position 3 are whole numbers: these are data of" in standard.scaled_levels(standard.encode(some))
        assert "position 3" in standard.scaled_levels(some, encoded=False)
    assert standard.scaled_levels(standard.encode(table[:10])) is None  # too few to tell
    assert Discrete((5,), 90).scaled_levels(table) is None
    # Counts that hardly repeat, and constant columns, are left alone.
    counts = torch.from_numpy(RNG.integers(0, 10**6, (1000, 1))).double()
    assert Continuous((2,)).scaled_levels(torch.cat([counts, 0 * counts + 7], 1)) is None


def test_encoded_reals_are_no_levels() -> None:
    """However far from 0, and in any type: what rounding makes of reals is no grid."""
    reals = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for shift, scale in ((0.0, 1.0), (1.7e9, 1e3), (1e5, 2.0), (3.0, 1e-3), (0.5, 0.3)):
        space = Continuous((3,), (shift,), (scale,))
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            assert space.scaled_levels(reals.to(dtype)) is None, (shift, dtype)


def test_a_few_values_of_large_items_are_examined() -> None:
    rows, positions = sample(30, 3 * 1024**2)
    assert len(range(30)[rows]) * len(range(3 * 1024**2)[positions]) <= 2**19
    large = torch.rand(30, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    assert Continuous((3, 160, 160)).scaled_levels(large) is None
    large[:, 2] = (large[:, 2] * 255).round() / 255
    assert "channel 2 are multiples of 1/255" in Continuous((3, 160, 160)).scaled_levels(large)
