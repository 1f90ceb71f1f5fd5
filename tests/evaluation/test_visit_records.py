"""VisitRecords: an item's visits are its own, and the errors of their mean are its spread over seeds."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from battery import close, generator, plain_alpha, plain_sigma, randn
from diffusional import exact, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation import visit_records, visits
from diffusional.evaluation.noise import item_keys, stream
from diffusional.evaluation.plan import Plan
from diffusional.evaluation.strata import Strata
from diffusional.evaluation.visit_records import VisitRecords
from diffusional.files import load_tensors, save_tensors

LOW, HIGH = -5.0, 5.0
LAMBDA, MEAN, DECODER = np.array([0.5, 2.0]), np.array([0.3, -0.4]), 0.01
SPACE = df.Discrete((1, 2, 2), 5)


class Small(nn.Module):
    """x̂ from all four positions, float32 inside; NaN where a condition is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(4, 4, dtype=torch.float32))
        self.rows: list[int] = []

    def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        self.rows.append(len(z))
        x = torch.tanh(z.flatten(1).float() @ self.weight - 0.1 * log_snr.float()[:, None])
        return (x if condition is None else torch.where(condition == 1, math.nan, x)).reshape(z.shape)


def discrete(steps: int | None = 30, decoder: Any = likelihood.DiscretizedGaussian) -> df.DiffusionModel:
    forward = df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH, steps))
    return df.DiffusionModel(forward, df.Denoiser(Small(), "data"), decoder(SPACE))


def gaussian(steps: int | None = 12, scale: tuple[float, ...] = (1.0,)) -> df.DiffusionModel:
    world = exact.Gaussian(torch.tensor(MEAN), torch.diag(torch.tensor(LAMBDA)))
    forward = df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH, steps))
    decoder = likelihood.GaussianLikelihood(df.Continuous((2,), scale=scale), variance=DECODER)
    return df.DiffusionModel(forward, world.denoiser(), decoder)


def images(n: int = 9) -> Tensor:
    raw = torch.randint(0, 5, (n, 1, 2, 2), generator=generator(5))
    raw[-3] = raw[2]
    return SPACE.encode(raw)


def reals(n: int) -> Tensor:
    return torch.tensor(MEAN) + torch.tensor(LAMBDA).sqrt() * randn(n, 2, seed=1)


def drawn(
    model: df.DiffusionModel, plan: Plan, x: Tensor, each: int = 5, seed: int = 3, condition: Tensor | None = None
) -> VisitRecords:
    out = VisitRecords(model, plan, x, seed, condition)
    out.extend(torch.arange(len(x)), torch.full((len(x),), each))
    return out


def same(a: VisitRecords, b: VisitRecords, items: list[int] | None = None) -> None:
    """The records of b's items are those of a's."""
    at = torch.arange(len(b.data)) if items is None else torch.tensor(items)
    (ours, _), (theirs, _) = a.parts(at), b.parts(torch.arange(len(b.data)))
    assert torch.equal(ours.cell, theirs.cell)
    torch.testing.assert_close(ours.costs, theirs.costs, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(a.base[at], b.base, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(a.known()[at], b.known(), rtol=1e-5, atol=1e-5)


# An item's visits are its own.


@pytest.fixture(params=[30, None], ids=["T = 30", "continuous"])
def steps(request: pytest.FixtureRequest) -> int | None:
    return request.param


@pytest.mark.parametrize("decoder", [likelihood.DiscretizedGaussian, likelihood.LevelPosterior])
def test_a_visit_depends_on_its_item_alone(steps: int | None, decoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = discrete(steps, decoder), images()
    fitted = Plan.fit(model, images(60), 500, cells=6)
    whole = drawn(model, fitted, x)
    # Alone, in a subset, in another order; copies are told apart by which comes first.
    for chosen in ([3], [8, 4, 0], [8, 2, 7, 1, 0, 6, 3, 5, 4]):
        same(whole, drawn(model, fitted, x[chosen]), chosen)
    assert not torch.equal(whole._costs["kl"][2], whole._costs["kl"][6])
    same(whole, drawn(model, fitted, x[[6, 2]]), [2, 6])
    # In another type.
    same(whole, drawn(model, fitted, x.double()))
    # In steps, in any order, each item as often as it pleases.
    slow = VisitRecords(model, fitted, x, 3)
    slow.extend(torch.tensor([7, 1]), torch.tensor([4, 1]))
    slow.extend(torch.arange(9).flip(0), torch.full((9,), 2))
    assert slow.count.tolist() == [2, 2, 2, 2, 2, 2, 2, 4, 2]
    slow.extend(torch.arange(9), torch.full((9,), 5))
    same(whole, slow)
    # In other blocks and other network calls.
    monkeypatch.setattr(visit_records, "_NOISE", 60)
    monkeypatch.setattr(visits, "_ROWS", 3)
    model.denoiser.module.rows.clear()
    same(whole, drawn(model, fitted, x))
    assert max(model.denoiser.module.rows) <= 3
    assert sum(model.denoiser.module.rows) == 45


def test_seeds_plans_and_items_make_other_noise() -> None:
    model, x = discrete(), images()
    uniform = Plan.uniform(model, 4)
    first, other = drawn(model, uniform, x, seed=1), drawn(model, uniform, x, seed=2)
    assert bool((first._costs["kl"] != other._costs["kl"]).any(1).all())
    assert torch.equal(first.base, other.base)
    assert len(set(first._costs["kl"][:, 0].tolist()) - {0.0}) == int((first._costs["kl"][:, 0] != 0).sum())
    # A visit's level is the plan's affair.
    assert not torch.equal(first._cell, drawn(model, Plan.uniform(model, 7), x, seed=1)._cell)


@pytest.mark.parametrize("decoder", [likelihood.DiscretizedGaussian, likelihood.LevelPosterior])
def test_a_visit_is_what_the_key_says(decoder: Any) -> None:
    """Number j of an item: v and ε from the stream of (key, j), the KL at the level of v, weighed by 1/q."""
    model, x = discrete(30, decoder), images(3)
    found = drawn(model, Plan.uniform(model, 1), x, 6)
    keys, share = item_keys(SPACE.index(x), 3), 0.5 if model.likelihood.uses_network else 0.0
    visited = set()
    for i, j in np.ndindex(3, 6):
        g = stream(keys[i], j, b"visit")
        v = g.random()
        noise = torch.from_numpy(g.standard_normal((1, 1, 2, 2), dtype=np.float32))
        kl, reconstruction = torch.zeros(1).double(), torch.zeros(1).double()
        if v < share:
            reconstruction = model.reconstruction(x[i : i + 1], noise) / share
        else:
            level = torch.tensor([1 + int((v - share) / (1 - share) * 29)])
            kl = model.kl_at(x[i : i + 1], level, noise) * 29 / (1 - share)
        if not model.likelihood.uses_network:
            other = torch.from_numpy(g.standard_normal((1, 1, 2, 2), dtype=np.float32))
            reconstruction = model.reconstruction(x[i : i + 1], other)
        visited.add(v < share)
        assert float(found._costs["kl"][i, j]) == pytest.approx(kl.item(), rel=1e-5)
        assert float(found._costs["reconstruction"][i, j]) == pytest.approx(reconstruction.item(), rel=1e-5)
    assert visited == ({True, False} if share else {False})


def test_progress_is_told_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    model, told = discrete(), []
    monkeypatch.setattr(visit_records, "_NOISE", 80)  # ten visits of four positions, and twice that
    some = VisitRecords(model, Plan.uniform(model), images())
    some.extend(torch.arange(9), torch.full((9,), 5), told.append)
    assert told == [10, 20, 30, 40, 45]
    some.extend(torch.arange(9), torch.full((9,), 3), told.append)
    assert (told[-1], some.evaluations) == (45, 45)


# What they add up to.


def test_the_mean_of_what_is_filled() -> None:
    some = VisitRecords(gaussian(), Plan.uniform(gaussian()), reals(3))
    values = randn(3, 4)
    filled = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    mean, variance = some.spread(values, filled)
    v = values.numpy()
    close(mean, [v[0].mean(), v[1, :2].mean(), v[2, 0]])
    close(variance[:2], [v[0].var(ddof=1) / 4, v[1, :2].var(ddof=1) / 2])
    assert bool(variance[2].isnan())  # one draw tells nothing


@pytest.mark.parametrize("n", [7, 4])
def test_the_survey_is_two_stage_sampling(n: int) -> None:
    """Cochran (1977), §10.3, written out: n of N items, each with a variance of its own."""
    some = VisitRecords(gaussian(), Plan.uniform(gaussian()), reals(7))
    some.strata = Strata(torch.zeros(7, dtype=torch.long), some.order)  # one stratum
    some.count[torch.tensor([0, 2, 3, 6, 1, 4, 5])[:n]] = 2
    base, mean, variance = randn(7), randn(n, seed=1), randn(n, seed=2).square()
    found = some.survey(base, mean, variance, 11)
    b, r, s2 = base.numpy(), mean.numpy(), variance.numpy()
    between = 0.0 if n == 7 else (1 - n / 7) * r.var(ddof=1) / n
    assert found.value == pytest.approx(b.mean() + r.mean())
    assert found.error**2 == pytest.approx(between + n / 7 * s2.sum() / n**2)
    # Over items: the bases are known of all seven; what the residuals add to their variance is estimated.
    visited = b[sorted([0, 2, 3, 6, 1, 4, 5][:n])]
    scores = visited + r
    if n == 7:
        parts = n / (n - 1) * (scores - scores.mean()) ** 2 - s2
        least = parts.std(ddof=1) / math.sqrt(n)
    else:
        parts = 7 / 6 * ((scores - scores.mean()) ** 2 - (visited - visited.mean()) ** 2) - s2
        least = math.sqrt(((parts - parts.mean()) ** 2).sum()) / n
    known = 0.0 if n == 7 else b.var(ddof=1)
    least = max(least, s2.mean() * math.sqrt(2 / (n - 1)))
    assert found.item_error == pytest.approx(math.sqrt(max(known + parts.mean(), least) / 7))
    assert (found.n, found.network_evaluations) == (7, 11)


def test_the_order_is_a_random_one() -> None:
    model, x = gaussian(), reals(200)
    orders = [VisitRecords(model, Plan.uniform(model), x, seed).order for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1])
    assert orders[0].sort().values.tolist() == list(range(200))
    for a, b in ((orders[0], torch.arange(200)), (orders[0], orders[2])):
        # The correlation of random ranks has a standard deviation of 1/√199.
        assert abs(float(torch.corrcoef(torch.stack([a, b]).double())[0, 1])) < 4 / 199**0.5


def part(some: VisitRecords, rows: Tensor) -> VisitRecords:
    """The draws of some items, as those of a data set of their own."""
    out = copy.copy(some)
    for name in ("data", "base", "prior", "count"):
        setattr(out, name, getattr(some, name)[rows])
    out.extra = {name: term[rows] for name, term in some.extra.items()}
    found, _ = some.parts(rows)
    out._costs, out._cell, out._row = found.costs, found.cell, torch.arange(len(rows), dtype=torch.int32)
    out.strata = Strata(torch.zeros(len(rows), dtype=torch.long), torch.arange(len(rows)))  # one stratum
    return out


@pytest.mark.parametrize(("n", "each", "fit"), [(20, 2, True), (20, 2, False), (8, 4, True), (8, 12, False)])
def test_the_error_is_the_spread_over_seeds(n: int, each: int, fit: bool) -> None:
    """Five hundred copies of a data set, each with noise and an order of its own, tell a spread to 3 %."""
    model, x, copies = gaussian(), reals(20), 500
    x[::4] *= 4
    own = Plan.fit(model, reals(200) + 0.5, 300, cells=4) if fit else Plan.uniform(model, 4)
    every = VisitRecords(model, own, x.repeat(copies, 1), seed=1)
    rank = every.order.argsort().view(copies, 20)
    chosen = (rank.argsort(1)[:, :n] + 20 * torch.arange(copies)[:, None]).flatten()
    every.extend(chosen, torch.full_like(chosen, each))
    sets = [part(every, torch.arange(20 * i, 20 * i + 20)) for i in range(copies)]
    found = [one.nelbo() for one in sets]
    values, reported = np.array([e.value for e in found]), np.sqrt(np.mean([e.error**2 for e in found]))
    spread = values.std(ddof=1)
    assert reported == pytest.approx(spread, rel=0.1)
    # Unbiased, whichever items were visited.
    assert abs(values.mean() - sum(costs(x.numpy())).mean()) < 4 * spread / copies**0.5
    if n < 20 and not fit:
        # The control: as if there were no other items, or as if these had been drawn from infinitely many.
        each_mean = [
            one.spread(one._costs["kl"] + one._costs["reconstruction"], one.parts(torch.arange(20))[1]) for one in sets
        ]
        inner = np.mean([float(v[one.visited()].sum()) for one, (_, v) in zip(sets, each_mean, strict=True)]) / n**2
        outer = np.mean([float(m[one.visited()].var()) for one, (m, _) in zip(sets, each_mean, strict=True)]) / n
        assert math.sqrt(inner) < 0.85 * reported
        assert math.sqrt(outer) > 1.05 * reported


def costs(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reconstruction, Σ KL and prior of the twelve latents of `gaussian` (N,), written out."""
    gamma = np.linspace(LOW, HIGH, 12)
    a, s = plain_alpha(gamma)[:, None], plain_sigma(gamma)[:, None]
    k = a * LAMBDA / (a**2 * LAMBDA + s**2)
    error = (((x - MEAN)[:, None] * (1 - k * a)) ** 2 + (k * s) ** 2).sum(2)
    snr = np.exp(-gamma)
    prior = 0.5 * (a[-1] ** 2 * (x**2).sum(1) + 2 * (s[-1] ** 2 - 1 - np.log(s[-1] ** 2)))
    reconstruction = 0.5 * (2 * math.log(2 * math.pi * DECODER) + error[:, 0] / DECODER)
    return reconstruction, 0.5 * ((snr[:-1] - snr[1:]) * error[:, 1:]).sum(1), prior


def test_the_item_error_is_the_spread_over_items() -> None:
    x = reals(500)
    truth = sum(costs(x.numpy()))
    model = gaussian()
    own = Plan.fit(model, x, 300, cells=4)
    for each in (2, 10):
        # Much of the spread of scores of two draws is noise, which is not the items'.
        found = drawn(model, own, x, each).nelbo()
        assert found.item_error == pytest.approx(truth.std(ddof=1) / 500**0.5, rel=0.1)


def test_what_is_known_holds_the_prior_and_the_units() -> None:
    x = reals(4)
    one, other = (drawn(gaussian(scale=s), Plan.uniform(gaussian(scale=s)), x) for s in ((1.0,), (10.0, 1000.0)))
    close(one.known(), costs(x.numpy())[2])
    close(other.known(), costs(x.numpy())[2] + math.log(10_000))
    assert other.nelbo().value - one.nelbo().value == pytest.approx(math.log(10_000), abs=1e-9)


def recorded(values: Tensor, counts: list[int] | None = None) -> VisitRecords:
    """Draws that came out as these."""
    n, width = values.shape
    some = VisitRecords(gaussian(), Plan.uniform(gaussian()), reals(n))
    some.count = torch.tensor(counts or [width] * n)
    filled = torch.arange(width) < some.count[:, None]
    some._costs = {"kl": 0.25 * values * filled, "reconstruction": 0.75 * values * filled}
    some._cell, some._row = torch.ones(n, width, dtype=torch.int16), torch.arange(n, dtype=torch.int32)
    return some


@pytest.mark.parametrize(("n", "j"), [(400, 2), (200, 6), (30, 40)])
def test_normal_draws_have_a_degree_of_freedom_each_but_one(n: int, j: int) -> None:
    # The sample's fourth moment is known to √(96/M)/3 of M draws: 10 to 12 %.
    found = np.mean([recorded(randn(n, j, seed=seed)).freedom() for seed in range(10)])
    assert found == pytest.approx(n * (j - 1), rel=0.15)


def test_one_draw_that_carries_the_error_has_next_to_none() -> None:
    values = randn(100, 4)
    many = recorded(values).freedom()
    values[17, 2] = 1000.0
    assert 1 < recorded(values).freedom() < 10 < 200 < many
    # Items drawn more often than others: the error is theirs who were drawn least.
    counts = [2] * 10 + [40] * 90
    assert recorded(randn(100, 40), counts).freedom() < 100 < recorded(randn(100, 40)).freedom()
    assert recorded(torch.ones(5, 3)).freedom() == math.inf


def test_an_items_error_leans_on_the_plan_while_draws_are_few() -> None:
    values, counts = 3 * randn(3, 50), [2, 10, 50]
    some = recorded(values, counts)
    some.plan = Plan.uniform(gaussian(), 4)
    object.__setattr__(some.plan, "scale", torch.full((5,), 0.7, dtype=torch.float64))
    width = np.array([1.0, *np.diff(some.plan.edges.numpy())])
    expected = ((0.7 * width) ** 2 / some.plan.mass.numpy()).sum()
    assert some.plan.draw_variance == pytest.approx(expected)
    for found, row, j in zip(some.item_errors().tolist(), values.numpy(), counts, strict=True):
        squares = ((row[:j] - row[:j].mean()) ** 2).sum()
        assert found == pytest.approx(math.sqrt((4 * expected + squares) / (4 + j - 1) / j))


def test_an_items_error_is_its_spread_over_seeds() -> None:
    model, x = gaussian(), reals(5)
    own = Plan.fit(model, reals(200), 1000, cells=4, controls=())
    some = drawn(model, own, x.repeat(400, 1), 12)
    scores = (some.known() + (some._costs["kl"] + some._costs["reconstruction"]).mean(1)).view(400, 5)
    reported = some.item_errors().square().view(400, 5).mean(0).sqrt()
    # An item's own noise differs from the plan's idea of the average item, and four of sixteen draws are the plan's.
    torch.testing.assert_close(reported, scores.std(0), rtol=0.3, atol=0)
    off = (scores.mean(0) - torch.from_numpy(sum(costs(x.numpy())))).abs()
    assert bool((off < 4 * scores.std(0) / 400**0.5).all())


@pytest.mark.parametrize("width", [None, 7])
def test_a_cost_that_is_not_finite_raises_and_names_the_item(
    width: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = discrete(), images()
    condition = torch.zeros(9, 1)
    condition[[4, 7]] = 1
    if width is not None:
        monkeypatch.setattr(visit_records, "_NOISE", 8 * width)
    some = VisitRecords(model, Plan.uniform(model, 4), x, condition=condition)
    with pytest.raises(
        DiffusionalError, match=r"item 4 has a cost that is not finite: kl = .*nan.* nothing was left out"
    ):
        some.extend(torch.arange(9), torch.full((9,), 4))
    # Nothing of it is counted, and the others are not in its way.
    assert int(some.count[4]) == 0
    others = torch.tensor([i for i in range(9) if i not in (4, 7)])
    some.extend(others, torch.full((7,), 4))
    assert some.evaluations == 28
    assert math.isfinite(some.nelbo().value)


# On disk.


def test_the_records_come_back(tmp_path: Path) -> None:
    model, x = discrete(), images()
    own = Plan.fit(model, images(60), 300, cells=6)
    some = VisitRecords(model, own, x, 3)
    some.extend(torch.tensor([7, 1]), torch.tensor([4, 2]))
    some.goal[3] = 5
    some.save(tmp_path / "records.safetensors", "mine")
    again = VisitRecords(model, own, x, 3)
    again.restore(tmp_path / "records.safetensors", "mine")
    assert torch.equal(again.count, some.count)
    assert torch.equal(again.goal, some.goal)
    same(some, again)
    assert again.nelbo() == some.nelbo()
    for one in (some, again):
        one.extend(torch.arange(9), torch.full((9,), 5))
    same(some, again)
    same(drawn(model, own, x), again)


def test_foreign_records_are_refused(tmp_path: Path) -> None:
    model, path = discrete(), tmp_path / "records.safetensors"
    some = drawn(model, Plan.uniform(model), images())
    some.save(path, "mine")
    fresh = VisitRecords(model, Plan.uniform(model), images())
    with pytest.raises(DiffusionalError, match="holds the draws of another evaluation"):
        fresh.restore(path, "other")
    tensors = load_tensors(path)
    save_tensors(path, {name: t for name, t in tensors.items() if name != "goal"})
    with pytest.raises(DiffusionalError, match="holds the draws of another evaluation"):
        fresh.restore(path, "mine")
    assert fresh.evaluations == 0
    with pytest.raises(DiffusionalError, match="does not exist"):
        fresh.restore(tmp_path / "none.safetensors", "mine")


def test_draws_want_a_plan_of_their_model() -> None:
    with pytest.raises(DiffusionalError, match="a plan for the model's"):
        VisitRecords(discrete(31), Plan.uniform(discrete(30)), images())
