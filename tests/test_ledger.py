"""The books: what adds up to what, and in which unit."""

import math
import re

import pytest
import torch

from battery import close, float64, randn
from diffusional.ledger import Estimate, Ledger, LevelDraws, error_over_items, per_unit, with_error

RE, KL, PRIOR, JACOBIAN, ENTROPY = randn(3), randn(3, 4), randn(3), randn(3), randn(3)


def test_costs_add_up() -> None:
    ledger = Ledger(RE, KL, PRIOR, 5)
    total = RE.numpy() + KL.numpy().sum(1) + PRIOR.numpy()
    close(ledger.nelbo, total)
    close(ledger.elbo, -total)
    close(ledger.bits_per_dim(), total / (5 * math.log(2)))
    close(ledger.looser(0.7), total + 0.7)
    close(ledger.looser(RE), total + RE.numpy())
    more = Ledger(RE, KL, PRIOR, 5, {"jacobian": JACOBIAN, "entropy": ENTROPY})
    close(more.nelbo, total + JACOBIAN.numpy() + ENTROPY.numpy())
    assert list(more.totals()) == ["reconstruction", "kl", "prior", "jacobian", "entropy"]
    close(torch.stack(list(more.totals().values())).sum(0), more.nelbo)
    close(more.totals()["kl"], KL.numpy().sum(1))
    close(Ledger(RE, KL[:, :0], PRIOR, 5).nelbo, (RE + PRIOR).numpy())  # a VAE has no levels


@pytest.mark.parametrize(
    ("parts", "extra"),
    [
        ((RE[:, None], KL, PRIOR), {}),
        ((RE, KL[0], PRIOR), {}),
        ((RE, KL[:2], PRIOR), {}),
        ((RE, KL, PRIOR[:2]), {}),
        ((RE, KL, PRIOR.sum()), {}),
        ((RE, KL.T, PRIOR), {}),
        ((RE, KL, PRIOR), {"jacobian": JACOBIAN.sum()}),
        ((RE, KL, PRIOR), {"jacobian": JACOBIAN[:, None]}),
    ],
)
def test_wrong_shapes_are_refused(parts: tuple, extra: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        Ledger(*parts, 5, extra)


def test_units() -> None:
    assert per_unit("nats", 64) == 1.0
    assert math.isclose(per_unit("bits/dim", 64), 64 * math.log(2))
    with pytest.raises(ValueError, match="bits"):
        per_unit("bits", 64)
    nats = Estimate(80.0, 0.4, 2.0, 100, 7)
    bits = nats.to("bits/dim", 64)
    expected = (80 / 64 / math.log(2), 0.4 / 64 / math.log(2), 2 / 64 / math.log(2))
    close(float64([bits.value, bits.error, bits.item_error]), expected)
    assert (bits.n, bits.network_evaluations, bits.unit) == (100, 7, "bits/dim")
    back = bits.to("nats", 64)
    close(float64([back.value, back.error, back.item_error]), [80.0, 0.4, 2.0])
    assert back.unit == "nats"
    assert nats.to_dict() == {"value": 80.0, "error": 0.4, "item_error": 2.0, "unit": "nats"}


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.74213, 0.00312, ("1.7421", "0.0031")),
        (1.74213, 0.0312, ("1.742", "0.031")),
        (1.74213, 0.312, ("1.74", "0.31")),
        (174.213, 3.12, ("174.2", "3.1")),
        (174.213, 31.2, ("174", "31")),
        (17421.3, 312.0, ("17421", "312")),
        (-2.5, 1e-9, ("-2.5000000000", "0.0000000010")),
        (0.5, 2.3e-11, ("0.500000000000", "0.000000000023")),
        (0.5, 2.3e-13, ("0.5000", "0")),  # rounding, below twelve decimals
        (2.5, 0.0, ("2.5000", "0")),
        (2.5, math.inf, ("2.5000", "inf")),
    ],
)
def test_decimals_follow_the_error(value: float, error: float, text: tuple[str, str]) -> None:
    assert with_error(value, error) == text


def test_estimates_print_both_errors() -> None:
    assert str(Estimate(1.74213, 0.00312, 0.0153, 10, 1, "bits/dim")) == "1.7421 ± 0.0031 bits/dim (items ± 0.015)"
    assert str(Estimate(1.74213, 0.0, 0.0153, 10, 1)) == "1.742 nats (items ± 0.015)"


def test_draws_are_weighted() -> None:
    draws = LevelDraws(RE, torch.arange(3), PRIOR.exp())
    close(draws.estimate(), RE.numpy() * PRIOR.exp().numpy())
    assert LevelDraws(RE.float(), torch.arange(3), PRIOR).estimate().dtype == torch.float32


def test_the_error_over_items_is_their_spread_less_their_noise() -> None:
    noise = randn(4000, seed=1).square() + 4
    scores = 3 * randn(4000, seed=2) + noise.sqrt() * randn(4000, seed=3)
    assert error_over_items(scores, noise, 10_000) == pytest.approx(0.03, rel=0.1)
    assert error_over_items(scores, torch.zeros_like(noise), 4000) == pytest.approx(float(scores.std()) / 4000**0.5)
    assert math.isnan(error_over_items(scores[:1], noise[:1], 10))
    assert error_over_items(torch.ones(5), torch.zeros(5), 5) == 0


def test_no_error_over_items_is_smaller_than_can_be_told() -> None:
    """Items that do not differ, seen through noise of variance 1: v̂ is 0 ± √2/√n, and below 0 half the time."""
    n = 400
    resolution = math.sqrt(2 / n)
    found = torch.tensor(
        [error_over_items(randn(n, seed=s), torch.ones(n, dtype=torch.float64), 1) ** 2 for s in range(100)]
    )
    assert float(found.min()) > 0.7 * resolution
    assert float(found.max()) < 4 * resolution
    assert int((found < 1.3 * resolution).sum()) > 60
    # Of two items the spread says nothing of that; normal noise does.
    assert error_over_items(torch.tensor([1.0, 1.1]), torch.ones(2), 2) == pytest.approx((2**0.5 / 2) ** 0.5)


def test_a_notebook_shows_means_and_errors_over_items() -> None:
    ledger = Ledger(
        torch.tensor([1.0, 3.0]),
        torch.tensor([[3.0], [4.0]]),
        torch.tensor([0.5, 0.5]),
        dimensions=4,
        extra={"<b>": torch.zeros(2)},
    )
    text = ledger._repr_html_()
    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", text)
    rows = [cells[i : i + 5] for i in range(0, len(cells), 5)]
    assert rows[1][:3] == ["reconstruction", "2.0", "1.0"]
    assert rows[-1][:3] == ["NELBO", "6.0", "1.5"]
    assert float(rows[-1][3]) == pytest.approx(6 / (4 * math.log(2)), abs=0.01)
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    one = Ledger(torch.ones(1), torch.ones(1, 2), torch.ones(1), dimensions=1)._repr_html_()
    assert "nan" not in one
