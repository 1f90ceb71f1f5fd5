"""A family of three levels with a process of its own that is not Markov, against the enumeration of all its latents."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import diffusional as df
from battery import generator
from diffusional.evaluation import ImportanceWeights, Sweep
from outside.multinomial import MultinomialModel

SPACE = df.Discrete((2,), 3)
STATES = SPACE.encode(torch.tensor(list(itertools.product(range(3), repeat=2))))
T, N = 3, len(STATES)


@pytest.fixture(scope="module")
def model() -> MultinomialModel:
    torch.manual_seed(0)
    return MultinomialModel(SPACE, T).requires_grad_(False)


def table(law: df.Categorical) -> Tensor:
    """P(state | row) (rows, 9)."""
    return torch.stack([law.log_prob(state.expand(law.logits.shape[:-1])).exp() for state in STATES], 1)


def exactly(model: MultinomialModel) -> tuple[Tensor, Tensor]:
    """NELBO of every state, MATH (8), and ln p(x), (9,): sums over all states of every latent."""
    process, decoded, p = model.process, table(model.decode(STATES)), table(model.last(1))[0]
    nelbo = []
    for x in STATES:
        rows = x.expand_as(STATES)
        q = [table(process.marginal(rows[:1], t))[0] for t in range(1, T + 1)]
        cost = -(q[0] * decoded[:, (x == STATES).all(1)][:, 0].log()).sum() + (q[-1] * (q[-1] / p).log()).sum()
        for t in range(1, T):
            back, ours = table(process.posterior(STATES, rows, t)), table(model.step(STATES, torch.full((N,), t)))
            cost = cost + (q[t][:, None] * back * (back / ours).log()).sum()
            # The latents' joint distribution is the same chained forward.
            joint = (table(process.transition(STATES, t + 1, rows)) * q[t - 1][:, None]).T
            torch.testing.assert_close(joint, q[t][:, None] * back, rtol=1e-9, atol=1e-12)
        nelbo.append(cost)
    for t in range(T - 1, 0, -1):
        p = p @ table(model.step(STATES, torch.full((N,), t)))
    return torch.stack(nelbo), (p @ decoded).log()


def test_the_bound_of_every_state_is_the_enumerated_one(model: MultinomialModel) -> None:
    truth, log_prob = exactly(model)
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-9)
    assert bool((truth > -log_prob).all())
    n = 2000
    for draw in (model.elbo, model.path_elbo):
        nelbo = draw(STATES.repeat_interleave(n, 0), generator(1)).nelbo.view(N, n)
        assert bool(((nelbo.mean(1) - truth).abs() < 4.5 * nelbo.std(1) / n**0.5).all())


WAYS: dict[str, Callable[[df.Chain], df.Evaluation]] = {
    "visits": lambda model: df.evaluate(model, STATES, visits=60),
    "target": lambda model: df.evaluate(model, STATES, target_error=0.01, unit="nats"),
    "sweep": lambda model: df.evaluate(model, STATES, estimator=Sweep(draws=40)),
}


@pytest.mark.parametrize("way", WAYS)
def test_evaluations_find_the_enumerated_bound(way: str, model: MultinomialModel, tmp_path: Path) -> None:
    found, (truth, _) = WAYS[way](model), exactly(model)
    assert abs(found.nelbo.value - float(truth.mean())) < 4.5 * found.nelbo.error
    apart = found.per_item["nelbo"] - truth[found.per_item["item"]]
    assert bool((apart.abs() < 5 * found.per_item["error"] + 1e-9).all())
    found.save(tmp_path / "record.json")
    assert df.Evaluation.load(tmp_path / "record.json").nelbo == found.nelbo


def test_importance_weights_come_near_the_enumerated_probability(model: MultinomialModel) -> None:
    found, (truth, log_prob) = df.evaluate(model, STATES, estimator=ImportanceWeights(100)), exactly(model)
    assert -float(log_prob.mean()) - 4 * found.nelbo.error < found.nelbo.value < float(truth.mean()) - 0.3


def test_samples_have_the_enumerated_probabilities(model: MultinomialModel) -> None:
    n = 5000
    x, p = model.sample(n, generator(2)), exactly(model)[1].exp()
    assert x.dtype == torch.float32
    seen = (x[:, None] == STATES).all(2).double().mean(0)
    assert float(((seen - p).square() / p).sum()) * n < 8 + 4.5 * 4


def test_an_option_outside_the_tensors_is_part_of_the_identity() -> None:
    one, other = MultinomialModel(SPACE, T, keep=0.5), MultinomialModel(SPACE, T, keep=0.6)
    other.load_state_dict(one.state_dict())
    assert one.identity() != other.identity()
    assert one.identity() == MultinomialModel(SPACE, T, keep=0.5).identity()
