"""A plan from recorded visits is the plan that a pilot of the same visits leads to."""

from dataclasses import replace

import pytest
import torch

import diffusional as df
from battery import generator
from diffusional.evaluation import Plan
from diffusional.evaluation.recorded import Recorded, plan_from_visits

from .test_neighbours import K, L, model, text


def visits(chain: df.MaskedDiffusion, x: torch.Tensor, n: int = 1500) -> Recorded:
    """Visits of all levels alike, as training makes them."""
    rng = generator(5)
    steps = chain.steps
    assert steps is not None
    row = torch.arange(n) % len(x)
    level = torch.randint(steps, (n,), generator=rng)
    latent = level + 1
    masks = chain.masked(latent, torch.randn(n, L, generator=rng))
    z = torch.where(masks, float(K), x[row])
    cost = chain.mask_rate(latent) * chain.hidden_map(x[row], z).sum(1)
    return Recorded(row, level, cost, masks)


@pytest.mark.parametrize("process", [None, df.Absorbing(K, 6)])
def test_its_variance_is_that_of_a_pilots_plan(process: df.Absorbing | None) -> None:
    chain, x = model(process), text(300)
    plan, pilot = plan_from_visits(chain, x, visits(chain, x)), Plan.fit(chain, x, 1500)
    assert plan.learned
    assert plan.provenance["evaluations"] == 0
    assert plan.provenance["controls"] == pilot.provenance["controls"]
    assert plan.draw_variance == pytest.approx(pilot.draw_variance, rel=0.3)
    torch.testing.assert_close(plan.constant, pilot.constant, rtol=0.15, atol=0.1)


def test_an_evaluation_under_it_is_unbiased() -> None:
    chain, x = model(), text(12)
    exact = chain.exact_ledger(x)
    train = text(300)
    plan = plan_from_visits(chain, train, visits(chain, train))
    found = df.evaluate(chain, x, visits=100, plan=plan, audit=False, seed=3)
    assert abs(found.nelbo.value - float(exact.nelbo.mean())) < 4.5 * found.nelbo.error
    scores, error = found.per_item["nelbo"], found.per_item["error"]
    assert float(((scores - exact.nelbo) / error).abs().max()) < 5


def test_visits_that_do_not_fit_are_refused() -> None:
    chain, x = model(), text(300)
    good = visits(chain, x)
    with pytest.raises(df.DiffusionalError, match="at least 500 visits, got 3"):
        plan_from_visits(chain, x, Recorded(*(value[:3] for value in vars(good).values())))
    with pytest.raises(df.DiffusionalError, match="rows in 0 … 99"):
        plan_from_visits(chain, x[:100], good)
    with pytest.raises(df.DiffusionalError, match="finite"):
        plan_from_visits(chain, x, replace(good, cost=good.cost + torch.inf))
    with pytest.raises(df.DiffusionalError, match="as many positions"):
        plan_from_visits(chain, x, replace(good, mask=~good.mask))
    with pytest.raises(df.DiffusionalError, match="discrete time"):
        plan_from_visits(df.MaskedDiffusion(chain.network, chain.space, df.Absorbing(K)), x, good)
