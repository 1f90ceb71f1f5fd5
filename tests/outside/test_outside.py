"""Two families written outside the package go through all of it: training, ledgers, evaluations, comparison, samples, records."""

import ast
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import diffusional as df
from battery import generator
from diffusional.evaluation import ImportanceWeights, Plan, Sweep, Target
from diffusional.report.tables import comparison_table, ledger_table
from outside.essay_chain import EssayChain
from outside.masked_bits import MaskedBits, States

FILES = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_"))
FAMILIES = {"masked bits": MaskedBits, "the essay's chain": EssayChain}
every_family = pytest.mark.parametrize("name", FAMILIES)
N = 200


def data(n: int = N) -> Tensor:
    """Two patterns of four bits, each bit turned with probability 0.1."""
    pattern = torch.tensor([[1.0, 1.0, -1.0, -1.0], [-1.0, 1.0, 1.0, 1.0]])
    turned = torch.rand(n, 4, generator=generator(1)) < 0.1
    return torch.where(turned, -1, 1) * pattern[torch.randint(2, (n,), generator=generator(2))]


@pytest.fixture(scope="module")
def trained() -> dict[str, df.Chain]:
    """Each family after 120 steps by hand, and on the way that its loss falls."""
    out = {}
    for name, family in FAMILIES.items():
        torch.manual_seed(0)
        model, x, rng = family(), data(), generator(0)
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        losses = []
        for _ in range(120):
            loss = model.loss(x, rng)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert sum(losses[-30:]) / 30 < sum(losses[:10]) / 10 - 0.2
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
        out[name] = model.requires_grad_(False)
    return out


def bound(model: df.Chain, x: Tensor, repeats: int = 100) -> tuple[Tensor, Tensor]:
    """The mean NELBO of each item over draws of `elbo`, and its error."""
    nelbo = model.elbo(x.repeat(repeats, 1), generator(3)).nelbo.view(repeats, len(x))
    return nelbo.mean(0), nelbo.std(0) / repeats**0.5


def exactly(model: MaskedBits) -> tuple[Tensor, Tensor, Tensor]:
    """All x (16, 4), ln p(x), and E_q of the NELBO, with the 81 states of every latent enumerated."""
    steps = model.process.steps
    x = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)))
    z = torch.tensor(list(itertools.product([-1.0, 0.0, 1.0], repeat=4)))

    def table(law: States, to: Tensor) -> Tensor:
        """P(to | row) (rows, len(to))."""
        return torch.stack([law.log_prob(state.expand(law.p.shape[:2])).exp() for state in to], 1)

    p = table(model.last(1), z)
    for t in range(steps - 1, 0, -1):
        p = p @ table(model.step(z, torch.full((len(z),), t)), z)
    log_prob = (p @ table(model.decode(z), x))[0].log()
    q = [table(model.process.marginal(x, t), z) for t in range(1, steps + 1)]
    pairs, states = x.repeat_interleave(len(z), 0), z.repeat(len(x), 1)
    nelbo = -(q[0] * table(model.decode(z), x).T.log().clamp(min=-1e9)).sum(1)
    for t in range(1, steps):
        level = torch.full((len(pairs),), t)
        kl = model.process.posterior(states, pairs, level).kl(model.step(states, level)).view(len(x), -1)
        nelbo = nelbo + torch.where(q[t] > 0, q[t] * kl, 0.0).sum(1)
    return x, log_prob, nelbo


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_family_is_short_and_uses_public_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    # A process that is not Markov and a network for any space take a few lines more.
    assert len([line for line in text.splitlines() if line.strip()]) <= (60 if path.stem == "multinomial" else 40)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert all(name.split(".")[0] in ("torch", "diffusional") for name in names)
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_") or node.attr == "__init__"


@every_family
def test_both_forms_of_the_bound(name: str, trained: dict[str, df.Chain]) -> None:
    model, x = trained[name], data(1).expand(8000, 4)
    ledger, path = model.elbo(x, generator(4)), model.path_elbo(x, generator(5))
    assert ledger.kl.shape == (8000, 4) == path.kl.shape
    assert ledger.nelbo.dtype == torch.float64
    error = math.hypot(float(ledger.nelbo.std()), float(path.nelbo.std())) / 8000**0.5
    assert abs(float(ledger.nelbo.mean() - path.nelbo.mean())) < 4 * error
    noise = torch.randn(8000, *model.noise_shape, generator=generator(6))
    weight = model.log_weight(x, noise)
    assert abs(float(ledger.nelbo.mean() + weight.mean())) < 4 * math.hypot(
        float(ledger.nelbo.std()), float(weight.std())
    ) / math.sqrt(8000)


def test_the_bound_of_masked_bits_against_enumeration(trained: dict[str, df.Chain]) -> None:
    model = trained["masked bits"]
    assert isinstance(model, MaskedBits)
    x, log_prob, nelbo = exactly(model)
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-9)
    assert bool((nelbo > -log_prob - 1e-9).all())
    value, error = bound(model, x, 2000)
    assert bool(((value - nelbo).abs() < 5 * error + 1e-9).all())
    # E w = p(x).
    noise = torch.randn(20_000, *model.noise_shape, generator=generator(7))
    weights = model.log_weight(x[3:4].expand(20_000, 4), noise).exp()
    assert abs(float(weights.mean() - log_prob[3].exp())) < 4 * float(weights.std()) / 20_000**0.5


@every_family
def test_the_loss_is_unbiased(name: str, trained: dict[str, df.Chain]) -> None:
    model, x = trained[name], data()
    value, error = bound(model, x)
    losses = torch.stack([model.loss(x.repeat(10, 1), generator(i)) for i in range(40)])
    assert abs(float(losses.mean() - value.mean())) < 4 * math.hypot(
        float(losses.std()) / 40**0.5, float(error.square().sum().sqrt()) / len(x)
    )


WAYS = {
    "visits": {"visits": 6},
    "target": {"target_error": 0.02, "unit": "nats"},
    "of every item": {"target_error": Target(item_error=0.4, unit="nats")},
    "sweep": {"estimator": Sweep(draws=6)},
}


@every_family
@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_evaluation(way: str, name: str, trained: dict[str, df.Chain], tmp_path: Path) -> None:
    model, x = trained[name], data()
    found = df.evaluate(model, x, **WAYS[way])  # type: ignore[arg-type]
    value, error = bound(model, x)
    item = found.per_item["item"]
    apart = found.nelbo.value - float(value.mean())
    assert abs(apart) < 4 * math.hypot(found.nelbo.error, float(error.square().sum().sqrt()) / N)
    assert found.reached
    assert sum(term.value for term in found.terms.values()) == pytest.approx(found.nelbo.value)
    # Scores of items: their deviations are of the size of their errors.
    scores = (found.per_item["nelbo"] - value[item]) / torch.hypot(found.per_item["error"], error[item])
    assert float(scores.square().mean()) < 3
    found.save(tmp_path / "record.json")
    again = df.Evaluation.load(tmp_path / "record.json")
    assert again.to_json() == found.to_json()
    assert json.loads(json.dumps(found.to_json()))["network_evaluations"] == found.nelbo.network_evaluations
    assert ledger_table(found, name).row_count == len(found.terms) + 1
    assert "reconstruction" in str(found)


@every_family
def test_two_of_a_family_compare(name: str, trained: dict[str, df.Chain]) -> None:
    torch.manual_seed(1)
    fresh, x = FAMILIES[name]().requires_grad_(False), data()
    found = df.compare(trained[name], fresh, x, 0.05, "nats")
    (ours, mine), (theirs, its) = bound(trained[name], x), bound(fresh, x)
    error = math.hypot(float(mine.square().sum().sqrt()) / N, float(its.square().sum().sqrt()) / N)
    apart = found.difference.value - float((ours - theirs).mean())
    assert abs(apart) < 4 * math.hypot(found.difference.error, error)
    assert found.difference.value < -4 * found.difference.error
    assert comparison_table(found, name).row_count == 3


@every_family
def test_importance_weights_tighten_the_bound(name: str, trained: dict[str, df.Chain]) -> None:
    model, x = trained[name], data(40)
    found = df.evaluate(model, x, estimator=ImportanceWeights(draws=256))
    value, error = bound(model, x)
    assert found.nelbo.value < float(value.mean()) + 3 * math.hypot(found.nelbo.error, float(error.mean()))
    if isinstance(model, MaskedBits):
        states, log_prob, _ = exactly(model)
        truth = -log_prob[(x[:, None] == states).all(2).long().argmax(1)].mean()
        assert abs(found.nelbo.value - float(truth)) < 4 * found.nelbo.error + 0.02


@every_family
def test_samples(name: str, trained: dict[str, df.Chain]) -> None:
    model = trained[name]
    walked = list(model.walk_back(4000, generator(8)))
    assert len(walked) == 6
    assert {tuple(z.shape) for z in walked} == {(4000, 4)}
    assert {z.dtype for z in walked} == {torch.float32}
    assert torch.equal(walked[-1], model.sample(4000, generator(8)))
    model.space.check(walked[-1])
    # The law of what was learned: no bit, nor pair of bits, is far from the data's.
    pairs = walked[-1].T @ walked[-1] / 4000 - data(4000).T @ data(4000) / 4000
    assert float(pairs.abs().max()) < 0.35
    if isinstance(model, MaskedBits):
        states, log_prob, _ = exactly(model)
        seen = (walked[-1][:, None] == states).all(2).double().mean(0)
        p = log_prob.exp()
        assert float(((seen - p).square() / p).sum()) * 4000 < 15 + 4 * math.sqrt(30)


def test_a_plan_is_saved_and_knows_its_levels(trained: dict[str, df.Chain], tmp_path: Path) -> None:
    model = trained["masked bits"]
    plan = Plan.fit(model, data(), 500)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json", model).sha256() == plan.sha256()

    class Shorter(MaskedBits):
        steps = 4  # type: ignore[assignment]

    with pytest.raises(df.DiffusionalError, match="latents"):
        Plan.load(tmp_path / "plan.json", Shorter())


class Closed(MaskedBits):
    """The closed forms of the costs: the step to z_t reveals each mask with probability 1/(t + 1)."""

    def prior(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.float64)

    def level_kl(self, x: Tensor, level: Tensor, noise: Tensor, condition: object = None) -> Tensor:
        return self.reconstruction_at(x, self.noisy(x, level + 1, noise)) / (level + 1)

    def reconstruction(self, x: Tensor, noise: Tensor, condition: object = None) -> Tensor:
        return self.reconstruction_at(x, self.noisy(x, torch.ones(len(x), dtype=torch.long), noise))

    def reconstruction_at(self, x: Tensor, z: Tensor) -> Tensor:
        return -((z == 0) * torch.nn.functional.logsigmoid(x * self.network(z).double())).sum(1)


def test_closed_forms_of_masked_bits_are_the_default(trained: dict[str, df.Chain]) -> None:
    model, x = Closed(), data(50)
    model.load_state_dict(trained["masked bits"].state_dict())
    one, other = (m.elbo(x, generator(9)) for m in (model, trained["masked bits"]))
    torch.testing.assert_close(one.kl.detach(), other.kl, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(one.reconstruction.detach(), other.reconstruction, rtol=1e-6, atol=1e-9)
    assert torch.equal(one.prior, other.prior)
