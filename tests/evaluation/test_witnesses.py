"""Several witnesses of a bound side by side, and whether the orders that must hold do."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation import witnesses as module
from diffusional.evaluation.witnesses import some_items, witnesses

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def model(steps: int | None = 8) -> df.DiffusionModel:
    world = exact.Gaussian(torch.zeros(2), torch.eye(2) + 0.3)
    process = df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 8.0, steps))
    return df.DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(df.Continuous((2,))))


def by_name(found: module.Witnesses) -> dict[str, Any]:
    return {row.name: row for row in found.rows}


def test_every_witness_and_every_order() -> None:
    found = witnesses(model(), X, counts=(1, 4, 16), visits=200, code=lambda *_: 10**6)
    assert found.agree
    rows = by_name(found)
    assert list(rows) == ["NELBO", "IWAE, K = 1", "IWAE, K = 4", "IWAE, K = 16", "probability flow", "code"]
    assert [row.kind for row in found.rows] == ["bound"] * 4 + ["estimate", "code"]
    assert rows["code"].nelbo.to("bits/dim", 2).value == pytest.approx(8e6 / 12)
    holds = {(one.left, one.relation, one.right): one.holds for one in found.orders}
    assert holds["NELBO", "=", "IWAE, K = 1"] is True
    assert holds["IWAE, K = 1", "≥", "IWAE, K = 4"] is holds["NELBO", "≥", "IWAE, K = 16"] is True
    assert holds["IWAE, K = 16", "and", "probability flow"] is holds["code", "and", "NELBO"] is None
    record = found.to_json()
    # The noise of one path for each item cannot be found from the bytes of all.
    assert {one["left"]: one["error"] for one in record["orders"]}["code"] is None
    assert "code and NELBO: nothing to hold (difference" in str(found)
    assert record["agree"] is True
    assert [row["name"] for row in record["witnesses"]] == list(rows)
    assert "another model" in str(found)
    assert "<table>" in found._repr_html_()


def test_groups_that_are_not_nested_are_ordered_in_expectation_only() -> None:
    """Five of eight draws can have a lower bound than all eight; 1, 4 and 8 of them cannot."""
    other = exact.Gaussian(torch.full((2,), 0.3), 0.6 * torch.eye(2))
    process = df.GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, 6))
    wrong = df.DiffusionModel(process, other.denoiser(), likelihood.GaussianLikelihood(df.Continuous((2,))))
    lower = 0
    for seed in range(6):
        found = witnesses(wrong, 1.4 * X[:2], counts=(1, 4, 5, 8), visits=16, seed=seed)
        four, five = ({one.left: one for one in found.orders}[f"IWAE, K = {k}"] for k in (4, 5))
        assert min(four.error, five.error) > 0
        assert four.holds is five.holds is True
        lower += five.difference < 0
    nested = witnesses(wrong, X[:2], counts=(1, 4, 8), visits=16).orders
    assert {one.error for one in nested if one.left in ("IWAE, K = 1", "IWAE, K = 4") and "IWAE" in one.right} == {0.0}
    assert lower > 0


def test_a_code_of_each_item_has_the_error_of_its_paths() -> None:
    bound = witnesses(model(), X, counts=(1, 2), visits=200).evaluations["NELBO"]
    apart = torch.tensor([0.3, -0.2, 0.1, 0.4, -0.1, 0.2], dtype=torch.float64)
    nelbo = bound.per_item["nelbo"][bound.per_item["item"].argsort()]
    row = by_name(witnesses(model(), X, counts=(1, 2), visits=200, code=lambda *_: nelbo + apart))["code"]
    assert row.nelbo.value == pytest.approx(float((nelbo + apart).mean()))
    assert row.nelbo.error == pytest.approx(float(apart.std()) / 6**0.5)


@pytest.mark.parametrize("overhead", [-0.1, 0.2])
def test_an_overhead_of_either_sign_is_no_contradiction(overhead: float) -> None:
    """An overhead is a fact about the model, which no number of standard errors covers."""
    bound = witnesses(model(), X, counts=(1, 2), visits=200).evaluations["NELBO"]
    nelbo = bound.per_item["nelbo"][bound.per_item["item"].argsort()]
    apart = overhead + 1e-3 * torch.tensor([1, -1, 1, -1, 1, -1], dtype=torch.float64)
    found = witnesses(model(), X, counts=(1, 2), visits=200, code=lambda *_: nelbo + apart)
    order = {one.left: one for one in found.orders}["code"]
    assert order.difference == pytest.approx(overhead)
    # The spread of the differences, of which the noise of the NELBO is a part already.
    assert order.error == pytest.approx(1e-3 / 5**0.5)
    assert order.holds is None
    assert found.agree


def test_one_item_has_a_code_of_unknown_error() -> None:
    found = witnesses(model(), X[:1], counts=(1, 2), visits=200, code=lambda *_: torch.zeros(1))
    assert math.isnan(by_name(found)["code"].nelbo.error)
    assert found.agree


def test_a_model_that_cannot_be_coded_has_no_code() -> None:
    def refuses(*_: Any) -> int:
        raise DiffusionalError("expected discrete data")

    found = witnesses(model(), X, counts=(1, 2), visits=200, code=refuses)
    assert by_name(found)["code"].missing == "expected discrete data"
    assert found.agree


def test_an_order_that_does_not_hold_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    right = module.weighted_by

    def off(one: Any, data: Tensor, *rest: Any) -> Any:
        return right(one, 3 * data, *rest)

    monkeypatch.setattr(module, "weighted_by", off)
    found = witnesses(model(), X, counts=(1, 4), visits=200)
    assert not found.agree
    assert ("NELBO", "IWAE, K = 1") in [(one.left, one.right) for one in found.orders if one.holds is False]
    assert "DOES NOT HOLD" in str(found)


def test_what_a_model_does_not_have_is_listed_with_the_reason() -> None:
    rows = by_name(witnesses(model(None), X, counts=(1, 4), visits=20))
    assert rows["IWAE, K = 4"].nelbo is None
    assert "finitely many latents" in rows["IWAE, K = 4"].missing
    torch.manual_seed(0)
    decoder = likelihood.GaussianLikelihood(df.Continuous((2,)), 0.5)
    vae = df.VAE(nn.Linear(2, 2), nn.Linear(1, 2), decoder, latents=1).double()
    rows = by_name(witnesses(vae, X, counts=(1, 4), visits=20))
    assert rows["probability flow"].nelbo is None
    assert "VAE" in rows["probability flow"].missing


def test_a_part_of_the_items_depends_on_the_items_only() -> None:
    chosen = some_items(model(), X, 3)
    other = some_items(model(), X.flip(0), 3)
    assert sorted(X[chosen].tolist()) == sorted(X.flip(0)[other].tolist())
    with pytest.raises(DiffusionalError, match="at least 1, got 0"):
        some_items(model(), X, 0)
