"""The context control: against Bayes' rule written plainly, and evaluations that use it against the sum over all levels."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import diffusional as df
from battery import close, float64, generator, plain_alpha, plain_sigma, randn
from diffusional import Discrete, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation.context import Context
from diffusional.evaluation.control import Look
from diffusional.evaluation.controls import NAMES, fit_controls
from diffusional.evaluation.interpolated import NODES, REACH, hat_weights
from diffusional.evaluation.plan import Plan
from diffusional.evaluation.visit_records import VisitRecords

SPACE = Discrete((3,), 5)
WITH = (*NAMES, "context")


def priors(n: int, space: Discrete = SPACE, seed: int = 0) -> Tensor:
    return (2 * randn(n, space.levels, *space.shape, seed=seed)).double().softmax(1)


def look(x: Tensor, noise: Tensor, gamma: float | Tensor, context: Tensor, first: bool = False) -> Look:
    g = gamma if isinstance(gamma, Tensor) else torch.full((len(x),), gamma, dtype=torch.float64)
    return Look(x, noise, g, torch.ones(len(x), dtype=torch.long), torch.full((len(x),), first), context)


def by_hand(prior: np.ndarray, k: int, eps: float, gamma: float, first: bool) -> float:
    """(α²/σ²) (x_k − E[x|z])², or 2 (−ln p(k|z)), at z = α x_k + σ ε."""
    a, s = plain_alpha(gamma), plain_sigma(gamma)
    values = np.linspace(-1, 1, len(prior))
    weight = prior * np.exp(-0.5 * ((a * values[k] + s * eps - a * values) / s) ** 2)
    post = weight / weight.sum()
    return -2 * float(np.log(post[k])) if first else (a / s) ** 2 * float(values[k] - post @ values) ** 2


@pytest.mark.parametrize("gamma", [-5.0, -1.0, 2.0])
@pytest.mark.parametrize("first", [False, True])
def test_the_control_is_bayes_rule_with_the_priors_of_each_position(gamma: float, first: bool) -> None:
    raw, context = torch.tensor([[0, 2, 4], [1, 1, 3]]), priors(2)
    # Noise on nodes, where straight lines do not matter.
    noise = float64([[-1.5, 0.25, 2.0], [0.0, -0.75, 1.0]])
    expected, drawn = Context(SPACE).at(look(SPACE.encode(raw, torch.float64), noise, gamma, context, first))
    nodes = np.linspace(-REACH, REACH, NODES)
    weights = hat_weights(torch.tensor(nodes)).numpy()
    for i in range(2):
        p = [context[i, :, d].numpy() for d in range(3)]
        found = sum(by_hand(p[d], int(raw[i, d]), float(noise[i, d]), gamma, first) for d in range(3))
        table = [sum(by_hand(p[d], int(raw[i, d]), e, gamma, first) for d in range(3)) for e in nodes]
        close(drawn[i, 0], found - weights @ np.array(table), rtol=1e-7, atol=1e-9)
        # The function of item and level is about the expectation, and need not be more.
        close(expected[i, 0], weights @ np.array(table), rtol=0.3)


def test_functions_of_the_noise_have_mean_zero_exactly() -> None:
    # A function that is linear between the nodes has the mean Σ ω_j h(ε_j).
    nodes = torch.linspace(-REACH, REACH, NODES, dtype=torch.float64)
    x, context = SPACE.encode(torch.tensor([[0, 2, 3]]), torch.float64), priors(1)
    for gamma, first in ((-5.1, False), (-1.0, False), (3.3, False), (-4.0, True)):
        total = torch.zeros((), dtype=torch.float64)
        for d in range(3):
            noise = torch.zeros(NODES, 3, dtype=torch.float64)
            noise[:, d] = nodes
            each = look(x.expand(NODES, 3), noise, gamma, context.expand(NODES, -1, -1), first)
            total = total + hat_weights(nodes) @ Context(SPACE).at(each)[1][:, 0]
        # Each sum has the other two positions at ε = 0.
        at_zero = Context(SPACE).at(look(x, torch.zeros(1, 3).double(), gamma, context, first))[1][0, 0]
        close(total, 2 * at_zero, rtol=1e-12, atol=1e-12)


def test_totals_are_the_weighted_sums() -> None:
    x, context = SPACE.encode(torch.tensor([[0, 2, 4], [1, 1, 3]]), torch.float64), priors(2)
    gamma = torch.linspace(-8.9, 5.3, 23).double()
    weight = torch.rand(2, 23, generator=generator(1)).double()
    none, control = torch.zeros(2, 3).double(), Context(SPACE)
    each = torch.stack([control.at(look(x, none, float(g), context))[0] for g in gamma], 1)
    close(control.totals(x, gamma, weight, context=context), torch.einsum("ml,ble->bme", weight, each), rtol=1e-12)
    once = control.totals(x, gamma[10:11], weight[:1, :1], True, context)
    close(once[:, 0], weight[0, 0] * control.at(look(x, none, float(gamma[10]), context, True))[0], rtol=1e-12)


def test_the_variance_is_that_of_draws() -> None:
    x, context, control = SPACE.encode(torch.tensor([[0, 2, 4]]), torch.float64), priors(1), Context(SPACE)
    many = look(x.expand(20_000, 3), randn(20_000, 3, seed=3), -1.0, context.expand(20_000, -1, -1))
    drawn = control.at(many)[1][:, 0]
    known = control.variance(x, torch.tensor([-1.0]).double(), context=context)[0, 0]
    assert 0.93 < float(drawn.var() / known) < 1.07


# In evaluations.


class Neighbours(torch.nn.Module):
    """Logits (B, K · C, W) that favour the level of the position before, and keep the number of items seen."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels, self.seen = levels, 0

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        self.seen += len(z)
        scale = (1 + torch.exp(-log_snr)).rsqrt()[:, None, None]
        around = torch.roll(z, 1, 2) / scale
        values = torch.linspace(-1, 1, self.levels)[:, None]
        return -4 * scale * (around - values).square()


BITS = Discrete((1, 6), 5)


@functools.cache
def model() -> df.DiffusionModel:
    head = df.Denoiser(Neighbours(5), "levels", space=BITS)
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-7.0, 6.0, steps=30))
    return df.DiffusionModel(forward, head, likelihood.NetworkLevels(BITS)).eval()


@functools.cache
def data(n: int = 40, seed: int = 0) -> Tensor:
    """Levels that walk up and down by at most one."""
    steps = torch.randint(-1, 2, (n, 1, 6), generator=generator(seed)).cumsum(2)
    return BITS.encode((2 + steps).clamp(0, 4))


@functools.cache
def plan() -> Plan:
    return Plan.fit(model(), data(200, 1), 1000, controls=WITH)


def test_the_control_is_used_only_by_name_and_where_there_is_a_levels_head() -> None:
    assert [c.name for c in fit_controls(NAMES, model(), data())] == ["wiener", "histogram", "moments"]
    assert [c.name for c in fit_controls(WITH, model(), data())][-1] == "context"
    noise = df.DiffusionModel(
        model().process, df.Denoiser(lambda z, log_snr: 0 * z), likelihood.DiscretizedGaussian(BITS)
    )
    assert "context" not in [c.name for c in fit_controls(WITH, noise, data())]
    with pytest.raises(DiffusionalError, match="predicts levels"):
        noise.level_priors(data())


def test_priors_are_those_of_the_item_without_noise() -> None:
    x = data(4)
    got = model().level_priors(x)
    alpha = plain_alpha(float(model().end_gammas()[0]))
    want = Neighbours(5)(alpha * x, -model().end_gammas()[:1].float().expand(4)).softmax(1)
    close(got[:, :, 0].double(), want, rtol=1e-5)


def test_the_plan_keeps_the_context_and_expects_less() -> None:
    without = Plan.fit(model(), data(200, 1), 1000)
    assert plan().takes_context
    assert not without.takes_context
    assert plan().draw_variance < 0.5 * without.draw_variance


@pytest.mark.parametrize("times", [1.0, 10.0])
def test_the_mean_is_that_of_the_sweep_whatever_the_coefficients(times: float) -> None:
    x = data()
    changed = replace(plan(), expected=times * plan().expected, drawn=times * plan().drawn)
    result = df.evaluate(model(), x, visits=200, plan=changed, audit=False)
    sweep = df.evaluate(model(), x, draws=20)
    apart = result.nelbo.value - sweep.nelbo.value
    assert abs(apart) < 4 * (result.nelbo.error**2 + sweep.nelbo.error**2) ** 0.5
    # Draws and items alike, within their errors.
    scores = (result.per_item["nelbo"] - sweep.per_item["nelbo"]) / (
        result.per_item["error"].square() + sweep.per_item["error"].square()
    ).sqrt()
    assert 0.5 < float(scores.square().mean()) < 2


def test_an_evaluation_of_each_item_is_counted_and_made_once() -> None:
    x, network = data(), model().denoiser.module
    assert isinstance(network, Neighbours)
    learned = plan()  # made once for all tests, by the same network
    before = network.seen
    result = df.evaluate(model(), x, visits=3, plan=learned, audit=False)
    assert network.seen - before == 40 + 3 * 40
    assert result.provenance["evaluations"] == {"pilot": 0, "audit": 0, "draws": 160}


def test_the_pilot_counts_its_contexts_and_visits_few_items() -> None:
    network = model().denoiser.module
    assert isinstance(network, Neighbours)
    before = network.seen
    learned = Plan.fit(model(), data(200, 1), 400, controls=WITH)
    assert network.seen - before == learned.provenance["evaluations"] == 400 + 100


def test_a_score_depends_on_its_item_alone() -> None:
    # Equal items have different draws.
    x = data().unique(dim=0)
    whole = VisitRecords(model(), plan(), x, 3)
    whole.extend(torch.arange(len(x)), torch.full((len(x),), 4))
    some = torch.tensor([21, 4, 17])
    part = VisitRecords(model(), plan(), x[some], 3)
    part.extend(torch.arange(3), torch.full((3,), 4))
    scores = [one.known() + one.spread(*one.values())[0] for one in (whole, part)]
    close(scores[1], scores[0][some], rtol=1e-5)


def test_the_audit_has_the_contexts_of_its_items() -> None:
    result = df.evaluate(model(), data(), visits=3, plan=plan())
    assert not [c for c in result.caveats if c.startswith("level")]


def test_a_plan_with_context_comes_back_from_its_file(tmp_path: Path) -> None:
    plan().save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json", model())
    assert again.takes_context
    assert again.sha256() == plan().sha256()
    one, two = (df.evaluate(model(), data(), visits=2, plan=p, audit=False).nelbo.value for p in (plan(), again))
    assert one == two


def test_rare_contexts_that_the_pilot_missed_do_not_move_a_score_by_more_than_their_costs() -> None:
    # One item of the data evaluated jumps where those of the pilot walk: its functions are far outside what was fitted.
    x = data().clone()
    x[0] = BITS.encode(torch.tensor([[[0, 4, 0, 4, 0, 4]]]))[0]
    result = df.evaluate(model(), x, visits=40, plan=plan(), audit=False)
    sweep = df.evaluate(model(), x, draws=8)
    assert result.per_item["error"][0] < 0.2 * sweep.per_item["nelbo"][0]
    close(result.per_item["nelbo"][0], sweep.per_item["nelbo"][0], rtol=0.3)


def test_an_evaluation_tries_the_context_where_it_saves_evaluations() -> None:
    chain, x = model(), data()
    network = chain.denoiser.module
    assert isinstance(network, Neighbours)

    def found(**options: Any) -> tuple[int, list[str], dict[str, int]]:
        """Return the evaluations, the controls of the plan, and the network's rows of an evaluation."""
        network.seen = 0
        result = df.evaluate(chain, x, unit="nats", seed=1, audit=False, **options)
        spent = result.provenance["evaluations"]
        assert network.seen == result.nelbo.network_evaluations == sum(spent.values())
        return sum(spent.values()), result.provenance["plan"]["controls"], spent

    total, controls, spent = found(item_error=0.5)
    assert "context" in controls
    # The first pilot, which ended there, and the second one with the contexts of all items.
    assert spent["pilot"] == 500 + 1000 + len(x)
    # A plan without it takes more.
    without = Plan.fit(chain, x, 1500, seed=1)
    assert total < found(item_error=0.5, plan=without)[0] + 1500
    # Nobody asked for more evaluations than these, or the target is too loose.
    for options in ({"visits": 8}, {"target_error": 0.2}, {"item_error": 0.5, "max_evaluations": 100_000}):
        assert "context" not in found(**options)[1]
    assert found(item_error=0.5)[0] == total
