"""Replicates of dependent visits: their mean is the exact bound, and the errors are those of replicates, not of visits."""

import math

import pytest
import torch
from scipy.stats import t
from torch import Tensor, nn

import diffusional as df
from battery import randn
from diffusional.evaluation import Plan, Replicates, by_replicates
from diffusional.evaluation.differentiable import disjoint, known, residuals
from diffusional.evaluation.noise import item_keys
from diffusional.space import Categorical

L, K = 6, 3


class Network(nn.Module):
    """Logits (B, L, K) that depend on every token."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Parameter(randn(L * (K + 1), 8, seed=1)), nn.Parameter(randn(8, L * K, seed=2))

    def forward(self, tokens: Tensor) -> Tensor:
        inputs = nn.functional.one_hot(tokens, K + 1).flatten(1).to(self.first)
        return (torch.tanh(inputs @ self.first) @ self.last).view(-1, L, K)


MODEL = df.MaskedDiffusion(Network().requires_grad_(False), Categorical(L, K))
X = torch.randint(K, (12, L), generator=torch.Generator().manual_seed(3)).float()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan.fit(MODEL, X.repeat(10, 1), evaluations=400)


def test_masks_are_parts_of_one_order_until_it_is_used_up() -> None:
    number = torch.tensor([[2, 1, 2, 2, 4, 2], [6, 1, 5, 1, 1, 6]])
    noise = randn(2, 6, L, seed=0)
    place = disjoint(noise, number).argsort(2).argsort(2)
    masks = place < number[..., None]
    assert torch.equal(masks.sum(2), number)
    # 2 + 1 + 2 leave one position of an order, 2 + 4 fill the next one, and so on.
    for row, groups in ((0, ([0, 1, 2], [3, 4], [5])), (1, ([0], [1, 2], [3, 4], [5]))):
        for group in groups:
            assert int(masks[row, group].sum(0).max()) == 1
    # Every set of n positions is equally likely, at every visit.
    many = disjoint(randn(6000, 6, L, seed=1), number[:1].expand(6000, -1))
    masks = many.argsort(2).argsort(2) < number[0, :, None]
    for j, n in enumerate(number[0].tolist()):
        codes = (masks[:, j] * 2 ** torch.arange(L)).sum(1).unique(return_counts=True)[1]
        expected = 6000 / math.comb(L, n)
        assert len(codes) == math.comb(L, n)
        assert float(((codes - expected) / expected**0.5).abs().max()) < 4.5


def test_the_mean_is_the_exact_bound_and_the_error_is_that_of_the_replicates(plan: Plan) -> None:
    exact, keys = MODEL.exact_ledger(X).nelbo, item_keys(X, 7)
    with torch.inference_mode():
        parts = [residuals(MODEL, X, keys, 4, plan, None, replicate=r) for r in range(800)]
        values = known(MODEL, X, plan) + torch.stack(parts)
    apart = (values.mean(0) - exact) / (values.std(0) / len(values) ** 0.5)
    assert float(apart.abs().max()) < 4.5
    # Evaluations of two replicates: 95 % intervals of the mean of 12 items, with Satterthwaite's degrees of freedom.
    inside = []
    for pair in values.view(400, 2, len(X)):
        variance = pair.var(0) / 2
        freedom = float(variance.sum()) ** 2 / float(variance.square().sum())
        half = t.ppf(0.975, freedom) * float(variance.sum()) ** 0.5 / len(X)
        inside.append(abs(float(pair.mean() - exact.mean())) <= half)
    assert 0.92 <= sum(inside) / len(inside) <= 0.99
    errors = values.view(400, 2, len(X)).var(1) / 2
    torch.testing.assert_close(errors.mean(0).sqrt(), values.view(400, 2, len(X)).mean(1).std(0), rtol=0.15, atol=0)
    # That is what is reported.
    found = by_replicates(MODEL, X, plan, visits=4, replicates=2, seed=7)
    torch.testing.assert_close(found.per_item["nelbo"], values[:2].mean(0))
    torch.testing.assert_close(found.per_item["error"], errors[0].sqrt())
    assert found.nelbo.error == pytest.approx(float(errors[0].sum().sqrt()) / len(X))
    assert found.nelbo.network_evaluations == len(X) * 8


def test_its_variance_is_below_that_of_independent_visits(plan: Plan) -> None:
    keys = item_keys(X, 1)
    with torch.inference_mode():
        together, alone = (
            torch.stack([residuals(MODEL, X, keys, visits, plan, None, replicate=r) for r in range(300)])
            for visits in (6, 1)
        )
    assert float(together.var(0).mean()) < 0.8 * float(alone.var(0).mean()) / 6


def test_replicates_are_added_until_the_error_is_reached(plan: Plan) -> None:
    found = by_replicates(MODEL, X, plan, error=0.05)
    assert found.reached
    assert found.nelbo.error <= 0.05
    assert abs(found.nelbo.value - float(MODEL.exact_ledger(X).nelbo.mean())) < 4.5 * found.nelbo.error
    limited = by_replicates(MODEL, X, plan, error=1e-4, max_evaluations=300)
    assert not limited.reached
    assert 200 < limited.nelbo.network_evaluations <= 300
    part = by_replicates(MODEL, X[4:7], plan, seed=2).per_item["nelbo"]
    assert torch.equal(part, by_replicates(MODEL, X, plan, seed=2).per_item["nelbo"][4:7])


def test_evaluate_by_replicates_counts_its_pilot(plan: Plan) -> None:
    given = df.evaluate(MODEL, X, estimator=Replicates(4, 3, plan), seed=5)
    same = by_replicates(MODEL, X, plan, visits=4, replicates=3, seed=5)
    assert torch.equal(given.per_item["nelbo"], same.per_item["nelbo"])
    assert given.nelbo == same.nelbo
    exact = MODEL.exact_ledger(X).nelbo
    found = df.evaluate(MODEL, X, 0.05, "nats", estimator=Replicates())
    assert found.reached
    assert found.nelbo.error <= 0.05
    assert abs(found.nelbo.value - float(exact.mean())) < 4.5 * found.nelbo.error
    parts = found.provenance["evaluations"]
    assert parts["pilot"] >= 500
    assert (
        found.nelbo.network_evaluations
        == parts["pilot"] + parts["draws"]
        == parts["pilot"] + 8 * 12 * found.provenance["replicates"]
    )
    # In bits/dim the same error is ln 2 times the positions as many nats.
    bits = df.evaluate(MODEL, X, 0.05 / L / math.log(2), estimator=Replicates())
    assert bits.nelbo == found.nelbo
    limited = df.evaluate(MODEL, X, 1e-4, "nats", estimator=Replicates(), max_evaluations=parts["pilot"] + 500)
    assert not limited.reached
    assert limited.nelbo.network_evaluations == parts["pilot"] + 480


def test_few_replicates_of_few_items_are_a_caveat(plan: Plan) -> None:
    """Two replicates of one item have one degree of freedom."""
    one = df.evaluate(MODEL, X[:1], estimator=Replicates(2, 2, plan))
    assert one.freedom == 1
    assert len(one.caveats) == 1
    assert "1 degrees of freedom" in one.caveats[0]
    # An error that is small by chance does not end an evaluation to a target, however large the target is.
    aimed = df.evaluate(MODEL, X[:1], 100.0, "nats", estimator=Replicates(2, 2, plan))
    assert aimed.reached
    assert aimed.freedom == 15
    assert aimed.provenance["replicates"] == 16


def test_replicates_of_other_chains() -> None:
    """Gaussian chains and systems of several models have dependent visits too, of less variance than independent ones."""
    world = df.exact.Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64))
    process = df.GaussianDiffusion(df.schedule.log_snr_linear(-6.0, 6.0, steps=50))
    model = df.DiffusionModel(process, world.denoiser(), df.likelihood.GaussianLikelihood(df.Continuous((2,))))
    x = world.sample(20, torch.Generator().manual_seed(1))
    sweeps = df.evaluate(model, x, estimator=df.evaluation.Sweep(draws=200))
    plan = Plan.fit(model, x, 1000)
    found = df.evaluate(model, x, estimator=Replicates(8, 50, plan))
    away = (found.per_item["nelbo"] - sweeps.per_item["nelbo"]) / found.per_item["error"].hypot(
        sweeps.per_item["error"]
    )
    assert float(away.abs().max()) < 4.5
    single = df.evaluate(model, x, visits=400, plan=plan, audit=False)
    assert found.nelbo.error < 0.8 * single.nelbo.error


def test_refusals_of_evaluate(plan: Plan) -> None:
    with pytest.raises(df.DiffusionalError, match="expected target_error or no target with Replicates, got visits"):
        df.evaluate(MODEL, X, visits=4, estimator=Replicates())
    with pytest.raises(df.DiffusionalError, match="got every_item"):
        df.evaluate(MODEL, X, 0.1, every_item=True, estimator=Replicates())
    least = 500 + 16 * len(X)
    with pytest.raises(df.DiffusionalError, match=f"at least {least}, got {least - 1}: the pilot takes 500"):
        df.evaluate(MODEL, X, 0.1, estimator=Replicates(), max_evaluations=least - 1)
    vae = df.VAE(
        nn.Linear(4, 4), nn.Linear(2, 4), df.likelihood.GaussianLikelihood(df.Continuous((4,)), variance=0.1), 2
    )
    with pytest.raises(df.DiffusionalError, match="levels to visit for Replicates, got a VAE"):
        df.evaluate(vae, torch.zeros(2, 4), estimator=Replicates())


def test_refusals(plan: Plan) -> None:
    with pytest.raises(df.DiffusionalError, match="replicates to be an integer of at least 2, got 1"):
        by_replicates(MODEL, X, plan, replicates=1)
    with pytest.raises(df.DiffusionalError, match="visits to be an integer of at least 1, got 0"):
        by_replicates(MODEL, X, plan, visits=0)
    with pytest.raises(df.DiffusionalError, match=f"at least {8 * len(X)}, got {8 * len(X) - 1}"):
        by_replicates(MODEL, X, plan, error=1.0, max_evaluations=8 * len(X) - 1)
    with pytest.raises(df.DiffusionalError, match="leave one out"):
        by_replicates(MODEL, X, plan, max_evaluations=1000)
    with pytest.raises(df.DiffusionalError, match="positive error"):
        by_replicates(MODEL, X, plan, error=-1.0)
    with pytest.raises(df.DiffusionalError, match=r"got [345] in item 0"):
        by_replicates(MODEL, X + 3, plan)
