"""Spaces: what level k is worth, the way there and back, what is refused, and the Jacobian."""

import json
import math

import numpy as np
import pytest
import torch

from battery import F64, close, float64, randn
from diffusional import Denoiser, DiffusionModel, GaussianDiffusion, schedule
from diffusional.errors import DiffusionalError
from diffusional.models.likelihood import GaussianLikelihood
from diffusional.space import Continuous, Discrete, binary, from_dict

DISCRETE = [
    Discrete((3,), 2),
    Discrete((1, 2, 3), 17),
    Discrete((2, 2), 256),
    Discrete((4,), 5, 0.0, 1.0),
    Discrete((4,), 65536, -3.0, 9.0),
]
CONTINUOUS = [
    Continuous((1,), (0.5,), (3.0,)),
    Continuous((2, 3)),
    Continuous((2, 3), (-4.0,), (0.25,)),
    Continuous((2, 2), (0.0, 1.0, 2.0, 3.0), (1.0, 2.0, 3.0, 0.5)),
]


@pytest.mark.parametrize("space", DISCRETE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_levels_there_and_back(space: Discrete, dtype: torch.dtype) -> None:
    k = torch.arange(space.levels)[:, None].expand(-1, space.dimensions).reshape(-1, *space.shape)
    x = space.encode(k, dtype)
    expected = np.linspace(space.low, space.high, space.levels)
    assert x.dtype == dtype
    tolerance = 1e-13 if dtype == F64 else 1e-6
    close(x.double().flatten(1)[:, 0], expected, rtol=tolerance, atol=tolerance)
    close(space.values, expected)
    assert math.isclose(space.width, expected[1] - expected[0], rel_tol=1e-9)
    assert space.dimensions == math.prod(space.shape)
    assert space.decode(x).equal(k)
    assert space.index(x).equal(k)
    space.check(x)
    space.check(x + 0.005 * space.width)
    # The nearest level, on either side; beyond the range, the outermost.
    assert space.decode(x + 0.45 * space.width).equal(k)
    assert space.decode(x - 0.45 * space.width).equal(k)
    assert space.decode(x + 0.55 * space.width).equal((k + 1).clamp(max=space.levels - 1))
    assert space.decode(x - 2 * space.width).equal((k - 2).clamp(min=0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_short_types_round_as_they_may(dtype: torch.dtype, levels: int) -> None:
    space = Discrete((1,), levels)
    k = torch.arange(levels)[:, None]
    x = space.encode(k, dtype)
    space.check(x)
    assert space.decode(x).equal(k)
    with pytest.raises(DiffusionalError, match="item 0"):
        space.check(x[:1] - 0.6 * space.width)


@pytest.mark.parametrize(("dtype", "levels"), [(torch.bfloat16, 4096), (torch.float16, 4096), (torch.float32, 2**25)])
def test_types_too_short_for_the_levels_are_named(dtype: torch.dtype, levels: int) -> None:
    space = Discrete((1,), levels)
    with pytest.raises(DiffusionalError, match=f"got {dtype}, .* {levels} distinct levels"):
        space.check(space.encode(torch.zeros(1, 1, dtype=torch.long), dtype))


@pytest.mark.parametrize("off", [0.02, -0.02, 0.5])
def test_check_names_the_item_off_the_levels(off: float) -> None:
    space = Discrete((1, 8, 8), 17)
    x = space.encode(torch.zeros(4, 1, 8, 8, dtype=torch.uint8) + 3)
    x[2, 0, 1, 1] += off * space.width
    with pytest.raises(DiffusionalError, match=r"17 levels from -1 to 1, got -0\.(62|59|56)\S* in item 2"):
        space.check(x)
    # Also beyond the first block.
    many = torch.cat([space.encode(torch.zeros(5000, 1, 8, 8, dtype=torch.uint8)), x])
    with pytest.raises(DiffusionalError, match="item 5002"):
        space.check(many)
    x[2, 0, 1, 1] = 1 + space.width  # one level beyond
    with pytest.raises(DiffusionalError, match="item 2"):
        space.check(x)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (torch.full((2, 4), 4), "4 levels that are declared.*levels=5"),
        (torch.full((2, 4), -1), "got -1 to -1"),
        (torch.zeros(2, 4), "float32"),
        (torch.zeros(2, 4, dtype=torch.bool), "bool"),
        (torch.zeros(2, 5, dtype=torch.int64), r"\(4,\).*got \(5,\)"),
        (torch.zeros(0, 4, dtype=torch.int64), "at least one item"),
    ],
)
def test_discrete_refuses(raw: torch.Tensor, message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        Discrete((4,), 4).encode(raw)


@pytest.mark.parametrize("space", [Discrete((4,), 4), Continuous((4,))], ids=str)
def test_check_refuses(space: Discrete | Continuous) -> None:
    for x in (torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 3), torch.zeros(0, 4)):
        with pytest.raises(DiffusionalError):
            space.check(x)
    x = torch.full((3, 4), -1.0)
    space.check(x)
    x[1, 2] = torch.nan
    with pytest.raises(DiffusionalError, match="item 1"):
        space.check(x)


@pytest.mark.parametrize("space", CONTINUOUS, ids=str)
def test_standardisation_and_its_jacobian(space: Continuous) -> None:
    raw = 5 * randn(3, *space.shape)
    shift, scale = (np.broadcast_to(v, space.dimensions).reshape(space.shape) for v in (space.shift, space.scale))
    x = space.encode(raw, F64)
    close(x, (raw.numpy() - shift) / scale)
    close(space.decode(x), raw)
    assert space.encode(raw).dtype == torch.float32
    assert space.decode(x.float()).dtype == torch.float32
    space.check(x)
    # ln |d raw / dx|, by autograd on one item.
    jacobian = torch.autograd.functional.jacobian(lambda v: space.decode(v).flatten(), x[:1])
    close(float64(space.log_jacobian()), torch.linalg.slogdet(jacobian.reshape(space.dimensions, -1)).logabsdet)


def test_the_jacobian_of_a_wide_table_keeps_float64() -> None:
    """Ten thousand columns and more: in float32 it would be off by a thousandth of a nat, and a float32 sum by more."""
    scale = tuple((1.0 + np.arange(20_000) / 7).tolist())
    space = Continuous((20_000,), scale=scale)
    exact = math.fsum(map(math.log, scale))
    assert space.log_jacobian() == exact
    assert float(np.float32(exact)) != exact
    model = DiffusionModel(
        GaussianDiffusion(schedule.log_snr_linear(-3.0, 4.0, steps=3)),
        Denoiser(lambda z, log_snr: 0 * z, "noise"),
        GaussianLikelihood(space),
    )
    for items in (torch.zeros(2, 20_000), torch.zeros(1, 20_000, dtype=F64)):
        extra = model.elbo(items, torch.Generator().manual_seed(0)).extra["jacobian"]
        assert extra.dtype == F64
        assert extra.tolist() == [exact] * len(items)
    same = Continuous((20_000,), scale=(3.0,))
    assert same.log_jacobian() == pytest.approx(20_000 * math.log(3.0), rel=1e-15)


@pytest.mark.parametrize("space", [*DISCRETE, *CONTINUOUS], ids=str)
def test_dict_round_trip(space: Discrete | Continuous) -> None:
    assert from_dict(json.loads(json.dumps(space.to_dict()))) == space
    if isinstance(space, Discrete):
        assert space.log_jacobian() == 0.0
    else:
        assert space.levels is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: Discrete((4,), 1),
        lambda: Discrete((), 4),
        lambda: Discrete((0,), 4),
        lambda: Discrete((4,), 4, 1.0, 1.0),
        lambda: Discrete((4,), 4, 1.0, -1.0),
        lambda: Continuous((4,), (0.0, 0.0)),
        lambda: Continuous((4,), (math.nan,)),
        lambda: Continuous((4,), (0.0,), (math.inf,)),
        lambda: Continuous((4,), (0.0,), (0.0,)),
        lambda: Continuous((4,), (0.0,), (1.0, 1.0, 1.0, -1.0)),
        lambda: Continuous(()),
        lambda: from_dict({"kind": "fractal", "shape": [1]}),
        lambda: from_dict({"kind": "discrete", "shape": [1], "levels": 2, "colour": 3}),
        lambda: from_dict({"kind": "discrete", "shape": [1]}),
    ],
)
def test_declarations_refused(make) -> None:
    with pytest.raises(DiffusionalError):
        make()


def test_binary() -> None:
    assert binary((3,)) == Discrete((3,), 2, -1.0, 1.0)


def test_an_item_that_no_standardisation_holds() -> None:
    space = Continuous((2,), (0.0, 1.0), (1.0, 1e-170))
    raw = torch.tensor([[0.0, 1.0], [3.0, 1.5]], dtype=torch.float64)
    with pytest.raises(DiffusionalError, match=r"item 1 has the value 1.5, which is too far from the mean"):
        space.encode(raw)
    assert space.encode(raw[:1]).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1e160), (0.0, 1e-170), (1.7e9, 2.0), (-1.7e9, 2.0)])
def test_raw_values_beyond_float32_are_decoded_in_float64(shift: float, scale: float) -> None:
    space = Continuous((2,), (0.0, shift), (1.0, scale))
    x = torch.tensor([[0.25, -0.5], [1.0, 0.75]])
    raw = space.decode(x)
    assert raw.dtype == torch.float64
    close(raw, torch.stack([x[:, 0].double(), shift + scale * x[:, 1].double()], 1))
    assert Continuous((2,), (0.0, 1e4), (1.0, 2.0)).decode(x).dtype == torch.float32


# Raw values where encoded ones are expected.

TABLE = Continuous((2,), shift=(30000.0, 1.7), scale=(8000.0, 0.1))


def encoded(n: int, d: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [2, 16, 3000])
def test_raw_values_are_refused(n: int) -> None:
    with pytest.raises(DiffusionalError, match=r"raw.*encode"):
        TABLE.check(TABLE.decode(encoded(n)))


@pytest.mark.parametrize(
    "space",
    [
        Continuous((3,), shift=(40.0, 170.0, 70.0), scale=(12.0, 10.0, 15.0)),  # tens of standard deviations away
        Continuous((2,), shift=(0.0, 0.0), scale=(1e-3, 2e-3)),  # where they look like the mean of all
        Continuous((1, 2, 2), shift=(128.0,), scale=(0.5,)),
    ],
)
def test_raw_values_near_the_encoded_ones_are_refused(space: Continuous) -> None:
    x = encoded(200, space.dimensions).reshape(200, *space.shape)
    space.check(x)
    with pytest.raises(DiffusionalError, match="raw"):
        space.check(space.decode(x.double()))


def accepts(space: Continuous, x: torch.Tensor) -> bool:
    """Whether the space takes the items for encoded ones."""
    try:
        space.check(x)
    except DiffusionalError:
        return False
    return True


@pytest.mark.parametrize("far", [10.0, 500.0, 30000.0, 1e9])
def test_encoded_outliers_are_accepted(far: float) -> None:
    for space in (TABLE, Continuous((2,), (0.0, 0.0), (1000.0, 1000.0)), Continuous((2,), (5.0, -5.0), (0.01, 0.02))):
        x = encoded(20)
        x[:8] += far
        x[8, 0] = -far
        assert accepts(space, x)
        assert space.doubts(x) == []
    # One outlier by itself, which would be no ordinary item if it were raw.
    one = torch.tensor([[far, 0.3]])
    assert accepts(TABLE, one)
    assert TABLE.doubts(one) == []


def test_a_narrow_slice_of_encoded_items_is_accepted() -> None:
    space = Continuous((2,), (0.0, 0.0), (1e-3, 2e-3))
    for x in (encoded(50) * torch.tensor([1.0, 0.0]), torch.zeros(50, 2), encoded(50) * torch.tensor([1.0, 1e-3])):
        space.check(x)
        assert space.doubts(x) == []


def test_items_far_from_the_training_data_are_reported() -> None:
    (doubt,) = TABLE.doubts(encoded(10) + 500)
    assert "100 standard deviations" in doubt
    assert "500" in doubt or "501" in doubt
    single = TABLE.decode(encoded(1))  # a single raw item, which may also be an outlier
    TABLE.check(single)
    (doubt,) = TABLE.doubts(single)
    assert "raw" in doubt
    assert Continuous((2,)).doubts(encoded(10) + 500) == []  # no standardisation, no training scale
    Continuous((2,)).check(encoded(10) + 500)
    assert Discrete((2,), 4).doubts(torch.ones(3, 2)) == []
