"""Warped digits: counts are rebuilt exactly, warps go the way they say, and only the seed decides which."""

import math
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from diffusional.data import load
from diffusional.data.warp import STANDARD, Warp, bitmap, counts, linear_map, resampled, warped
from diffusional.errors import DiffusionalError

NONE = Warp(rotation=0.0, shear=0.0, log_width=0.0, log_height=0.0, boldness=0.0, elastic=0.0)
AMOUNTS = ("rotation", "shear", "log_width", "log_height", "boldness", "elastic")


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return load("digits").train[:300]  # more than one chunk


def centroid(image: Tensor) -> tuple[float, float]:
    """(x, y) of the ink from the centre, in pixels, y downwards."""
    place = torch.arange(32) - 15.5
    weight = image[0, 0] / image.sum()
    return float((weight.sum(0) * place).sum()), float((weight.sum(1) * place).sum())


def blob(x: int, y: int) -> Tensor:
    """A 4 × 4 block of ink centred x to the right of, and y below, the centre of a bitmap."""
    image = torch.zeros(1, 1, 32, 32)
    image[0, 0, 14 + y : 18 + y, 14 + x : 18 + x] = 1
    return image


def mapped(image: Tensor, **amounts: float) -> Tensor:
    every = {name: torch.tensor([amounts.get(name, 0.0)]) for name in AMOUNTS[:4]}
    return resampled(image, linear_map(**every), torch.zeros(1, 32, 32, 2))


# The bitmap.


def test_bitmap_has_exactly_the_digits_counts(digits: Tensor) -> None:
    ink = bitmap(digits)
    assert ink.shape == (300, 1, 32, 32)
    assert set(ink.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(counts(ink), digits)


@pytest.mark.parametrize("level", range(17))
def test_bitmap_of_a_flat_digit_is_exact_despite_ties(level: int) -> None:
    flat = torch.full((2, 1, 8, 8), level)
    assert torch.equal(counts(bitmap(flat)), flat.to(torch.uint8))


def test_counts_are_of_4_by_4_blocks_in_place() -> None:
    ink = torch.zeros(1, 1, 32, 32)
    ink[0, 0, 8:10, 20:23] = 1  # within block row 2, column 5
    expected = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    expected[0, 0, 2, 5] = 6
    assert torch.equal(counts(ink), expected)


def test_ink_lies_on_the_side_of_its_darker_neighbour() -> None:
    raw = torch.zeros(1, 1, 8, 8, dtype=torch.long)
    raw[0, 0, :, 3], raw[0, 0, :, 4] = 16, 8
    ink = bitmap(raw)[0, 0, 12:20, 16:20]  # block column 4, away from the corners
    assert torch.equal(ink, torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(8, 4))


def test_ink_of_flat_blocks_is_spread_evenly() -> None:
    ink = bitmap(torch.full((1, 1, 8, 8), 8))[0, 0, 8:-8, 8:-8]  # away from the paper around
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    assert torch.equal(ink, board.float())


# The maps.


@pytest.mark.parametrize("angle", [0.3, -0.3, math.pi / 2])
def test_rotation_turns_a_blob_counter_clockwise(angle: float) -> None:
    x, y = centroid(mapped(blob(10, 0), rotation=angle))
    assert (x, y) == pytest.approx((10 * math.cos(angle), -10 * math.sin(angle)), abs=0.05)  # y downwards


def test_width_and_height_stretch_about_the_centre() -> None:
    wide = mapped(blob(8, 8), log_width=math.log(1.25))
    assert centroid(wide) == pytest.approx((10, 8), abs=0.05)
    assert float(wide.sum()) == pytest.approx(16 * 1.25, rel=0.05)
    assert centroid(mapped(blob(8, 8), log_height=math.log(1.25))) == pytest.approx((8, 10), abs=0.05)


def test_images_are_turned_first_and_stretched_after() -> None:
    turned = mapped(blob(8, 0), rotation=math.pi / 2, log_height=math.log(1.25))
    assert centroid(turned) == pytest.approx((0, -10), abs=0.05)


def test_shear_shifts_rows_sideways_by_their_height() -> None:
    assert centroid(mapped(blob(0, 10), shear=0.2)) == pytest.approx((-2, 10), abs=0.05)
    assert centroid(mapped(blob(0, -10), shear=0.2)) == pytest.approx((2, -10), abs=0.05)


def test_a_shift_of_one_block_moves_the_digit_by_one_block(digits: Tensor) -> None:
    shift = torch.zeros(300, 32, 32, 2)
    shift[..., 0] = 2 * 4 / 32  # taken from one block to the right, so moved to the left
    moved = counts(resampled(bitmap(digits), torch.eye(2).expand(300, 2, 2), shift).round())
    assert torch.equal(moved[..., :-1], digits[..., 1:])
    assert not moved[..., -1].any()


# The copies.


def test_a_zero_warp_keeps_levels_0_and_16_exactly(digits: Tensor) -> None:
    full_or_empty = torch.where(digits > 7, 16, 0)  # edges of the bitmap lie between blocks: the blur keeps them
    assert torch.equal(warped(full_or_empty, 2, seed=0, warp=NONE), full_or_empty.repeat(2, 1, 1, 1).to(torch.uint8))


def test_a_zero_warp_nearly_keeps_digits_in_order(digits: Tensor) -> None:
    """Not exactly: the blur that gives edges a gradient rounds off lone pixels."""
    same = warped(digits, 2, seed=0, warp=NONE)
    change = (same.float() - digits.float().repeat(2, 1, 1, 1)).abs()
    assert (change == 0).float().mean() > 0.95
    assert change.max() <= 4
    assert change.mean() < 0.05


def test_levels_type_and_shape(digits: Tensor) -> None:
    copies = warped(digits, 3, seed=0)
    assert copies.shape == (900, 1, 8, 8)
    assert copies.dtype == torch.uint8
    assert (int(copies.min()), int(copies.max())) == (0, 16)


def test_copies_differ_but_remain_of_their_class(digits: Tensor) -> None:
    copies = warped(digits, 2, seed=0)
    change = (copies.float() - digits.float().repeat(2, 1, 1, 1)).abs().mean()
    assert 0.8 < change < 2  # two digits of the same class differ by 2.4, of different classes by 4.0
    nearest = torch.cdist(copies.float().flatten(1), digits.float().flatten(1)).argmin(1)
    labels = torch.from_numpy(load_digits(return_X_y=True)[1][:300])
    assert (labels[nearest] == labels.repeat(2)).float().mean() > 0.97


def test_each_copy_and_each_digit_has_its_own_warp(digits: Tensor) -> None:
    copies = warped(digits[:1].expand(300, 1, 8, 8), 2, seed=0)
    assert len(copies.unique(dim=0)) > 590


def test_mean_ink_changes_little(digits: Tensor) -> None:
    ratio = warped(digits, 5, seed=0).float().mean() / digits.float().mean()
    assert 0.95 < ratio < 1.05


@pytest.mark.parametrize("amount", AMOUNTS)
def test_every_amount_matters_and_more_changes_more(digits: Tensor, amount: str) -> None:
    standard = getattr(STANDARD, amount)

    def change(times: float) -> float:
        copies = warped(digits, 1, seed=0, warp=replace(NONE, **{amount: times * standard}))
        return float((copies.float() - digits.float()).abs().mean())

    assert change(0) < change(1) < change(2)


def test_the_elastic_field_s_strength_is_in_bitmap_pixels(digits: Tensor) -> None:
    """Displacing by 0.6 pixels on average, in x and in y, changes about as much as moving the bitmap by that."""
    elastic = warped(digits, 2, seed=0, warp=replace(NONE, elastic=1.2)).float() - digits.float().repeat(2, 1, 1, 1)
    soft = resampled(bitmap(digits), torch.eye(2).expand(300, 2, 2), torch.full((300, 32, 32, 2), 0.6 * 2 / 32))
    moved = soft.reshape(300, 1, 8, 4, 8, 4).sum((3, 5)) - digits
    assert float(elastic.abs().mean()) == pytest.approx(float(moved.abs().mean()), rel=0.25)


def test_a_rough_field_is_allowed(digits: Tensor) -> None:
    assert warped(digits, 1, seed=0, warp=Warp(smoothness=0.0)).shape == digits.shape


def test_no_boldness_erases_or_floods_a_digit(digits: Tensor) -> None:
    """The threshold is kept within the ink's range: white stays white and full stays full."""
    bold = replace(NONE, boldness=100.0)
    assert not warped(torch.zeros_like(digits), 1, seed=0, warp=bold).any()
    full = warped(torch.full_like(digits, 16), 1, seed=0, warp=bold)
    assert (full[..., 1:-1, 1:-1] == 16).all()


def test_normals_are_cut_at_two_and_a_half_deviations() -> None:
    bar = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    bar[0, 0, 3:5, 3:5] = 16
    bars = bar.expand(1000, 1, 8, 8)
    heights = warped(bars, 1, seed=0, warp=replace(NONE, log_height=0.3)).sum((1, 2, 3)) / 8  # bitmap pixels
    assert float(heights.max()) == pytest.approx(8 * math.exp(0.75), abs=1)  # uncut, some would reach 8·exp(0.9)
    assert float(heights.min()) == pytest.approx(8 * math.exp(-0.75), abs=1)


def test_the_seed_decides_and_nothing_else(digits: Tensor) -> None:
    before = torch.get_rng_state()
    first = warped(digits, 2, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(warped(digits.long(), 2, seed=1), first)
    assert torch.equal(warped(digits, 1, seed=1), first[:300])
    assert not torch.equal(warped(digits, 2, seed=2), first)


def test_the_thread_count_does_not_matter(digits: Tensor) -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            results.append(warped(digits, 2, seed=0))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_digits_are_left_as_they_are(digits: Tensor) -> None:
    before = digits.clone()
    warped(digits, 1, seed=0)
    assert torch.equal(digits, before)


# What is refused.


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 1, 8, 9), (2, 3, 8, 8), (0, 1, 8, 8), (8, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DiffusionalError, match=r"\(N, 1, 8, 8\) with at least one digit"):
        warped(torch.zeros(shape, dtype=torch.uint8), 1, seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_other_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(DiffusionalError, match=f"expected integer levels, got type {dtype}"):
        warped(torch.zeros(1, 1, 8, 8, dtype=dtype), 1, seed=0)


@pytest.mark.parametrize("level", [-1, 17])
def test_levels_outside_are_refused(level: int) -> None:
    raw = torch.zeros(1, 1, 8, 8, dtype=torch.long)
    raw[0, 0, 3, 3] = level
    with pytest.raises(DiffusionalError, match=rf"levels from 0 to 16, .* got {min(level, 0)} to {max(level, 0)}"):
        warped(raw, 1, seed=0)


@pytest.mark.parametrize("copies", [0, -1])
def test_no_copies_are_refused(copies: int) -> None:
    with pytest.raises(DiffusionalError, match=f"copies to be at least 1, got {copies}"):
        warped(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), copies, seed=0)


@pytest.mark.parametrize("amount", [-0.1, math.nan, math.inf])
def test_amounts_that_are_none_are_refused(amount: float) -> None:
    with pytest.raises(DiffusionalError, match=f"shear to be finite and at least 0, got {amount}"):
        Warp(shear=amount)
