"""Ledoit and Wolf's shrinkage against scikit-learn's."""

import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage

from diffusional import shrinkage


def correlated(items: int, dimensions: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    mixed = torch.randn(dimensions, dimensions, generator=rng, dtype=torch.float64) / dimensions**0.5
    return 3.0 + torch.randn(items, dimensions, generator=rng, dtype=torch.float64) @ (torch.eye(dimensions) + mixed)


@pytest.mark.parametrize(("items", "dimensions"), [(200, 2), (30, 64), (1500, 7), (2, 5), (9, 1)])
def test_against_scikit_learn(items: int, dimensions: int) -> None:
    x = correlated(items, dimensions)
    expected = float(ledoit_wolf_shrinkage(x.numpy()))
    assert shrinkage.ledoit_wolf(x) == pytest.approx(expected, rel=1e-12)
    assert dimensions == 1 or items == 2 or 0 < expected <= 1


def test_sums_over_items_are_those_over_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    x = correlated(20, 40)
    expected = shrinkage.ledoit_wolf(x)
    monkeypatch.setattr(shrinkage, "_BY_DIMENSION", 10)
    assert shrinkage.ledoit_wolf(x) == pytest.approx(expected, rel=1e-12)
    assert shrinkage.ledoit_wolf(x) != pytest.approx(0.0, abs=1e-3)


def test_items_that_are_all_equal_are_not_shrunk() -> None:
    assert shrinkage.ledoit_wolf(torch.full((5, 3), 2.0, dtype=torch.float64)) == 0.0
