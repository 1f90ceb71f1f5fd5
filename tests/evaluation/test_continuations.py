"""Bounds of continuations given prompts, by replicates of stratified numbers of masks, against the sums over all masks."""

import math
from functools import partial

import pytest
import torch
from scipy.stats import t
from torch import Tensor, nn

import diffusional as df
from battery import randn
from diffusional.evaluation.continuations import compare_continuations, continuations, replicated
from diffusional.models.prompted import PromptedDiffusion, of_lengths, prompts, prompts_of_lengths
from diffusional.space import Categorical

L, K = 6, 3


class Network(nn.Module):
    """Logits (B, n, K) of any number n of tokens; each depends on the token before and on the sum of all."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.own, self.all = nn.Parameter(randn(K + 1, K, seed=seed)), nn.Parameter(randn(K + 1, K, seed=seed + 1))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.own[tokens.roll(1, 1)] + torch.tanh(self.all[tokens].sum(1, keepdim=True))


def model_of(seed: int = 0) -> PromptedDiffusion:
    return of_lengths(df.MaskedDiffusion(Network(seed).requires_grad_(False), Categorical(9, K)), L)


X = torch.randint(K, (5, L), generator=torch.Generator().manual_seed(3)).float()
GIVEN, LENGTHS = torch.tensor([0, 2, 1, 4, 3]), torch.tensor([6, 6, 4, 5, 5])
CONDITION = prompts_of_lengths(X, GIVEN, LENGTHS)


def test_items_of_different_lengths_cost_what_they_cost_alone() -> None:
    found = model_of().exact_ledger(X, CONDITION).nelbo
    for i in range(len(X)):
        n = int(LENGTHS[i])
        alone = PromptedDiffusion(df.MaskedDiffusion(Network(0).requires_grad_(False), Categorical(n, K)))
        x = X[i : i + 1, :n]
        assert float(alone.exact_ledger(x, prompts(x, GIVEN[i : i + 1])).nelbo) == pytest.approx(
            float(found[i]), abs=1e-10
        )
    # Whatever they are filled up with.
    other = X.clone()
    for i in range(len(X)):
        other[i, LENGTHS[i] :] = (other[i, LENGTHS[i] :] + 1) % K
    again = model_of().exact_ledger(other, prompts_of_lengths(other, GIVEN, LENGTHS)).nelbo
    torch.testing.assert_close(again, found, rtol=0, atol=1e-12)


def test_samples_of_different_lengths_have_their_prompts() -> None:
    model = model_of()
    drawn = model.sample(len(X), torch.Generator().manual_seed(0), CONDITION)
    shown = CONDITION["prompt"] >= 0
    assert torch.equal(drawn[shown], X[shown])
    model.space.check(drawn)


def test_the_mean_is_the_sum_over_all_masks_and_the_errors_are_those_of_the_spread() -> None:
    model, exact = model_of(), model_of().exact_ledger(X, CONDITION).nelbo
    single = LENGTHS - GIVEN == 1
    # 400 evaluations of four replicates each, of at most four visits.
    (values,), _ = replicated((model,), X, CONDITION, 4, range(1600))
    groups = values.view(400, 4, len(X))
    apart = (values.mean(0) - exact) / (values.std(0) / math.sqrt(len(values))).clamp(min=1e-9)
    assert float(apart.abs().max()) < 4.5
    errors, spread = groups.std(1) / 2, groups.mean(1).std(0)
    torch.testing.assert_close(errors[:, ~single].square().mean(0).sqrt(), spread[~single], rtol=0.15, atol=0)
    # The item of one free position is exact.
    assert float((values[:, single] - exact[single]).abs().max()) < 1e-9
    # That is what `continuations` reports, but for items with at most 16 masks.
    few = LENGTHS - GIVEN <= 4
    found = continuations(model, X, CONDITION, visits=16)
    torch.testing.assert_close(found.per_item["nelbo"], torch.where(few, exact, groups[0].mean(0)))
    torch.testing.assert_close(found.per_item["error"], torch.where(few, 0, errors[0]))
    assert found.nelbo.error == pytest.approx(float(errors[0, ~few].square().sum().sqrt()) / len(X))
    # Of items with different spreads, the freedom lies between that of one, 3, and that of all.
    assert found.freedom == pytest.approx(freedoms(errors[:1, ~few])[0])
    inside = [
        (one - exact.mean()).abs() <= t.ppf(0.975, freedom) * error
        for one, error, freedom in zip(
            groups.mean((1, 2)), errors.square().sum(1).sqrt() / len(X), freedoms(errors), strict=True
        )
    ]
    assert 0.92 <= sum(map(float, inside)) / len(inside) <= 0.98


def freedoms(errors: Tensor) -> list[float]:
    """Satterthwaite's degrees of freedom of the mean of items whose errors are of four replicates."""
    return (3 * errors.square().sum(1) ** 2 / errors.pow(4).sum(1)).tolist()


def test_every_number_of_masks_occurs_once_with_a_visit_for_each_free_position(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen, plain = model_of(), [], PromptedDiffusion.masks_cost

    def masks_cost(
        self: PromptedDiffusion, x: Tensor, number: Tensor, noise: Tensor, condition: dict[str, Tensor]
    ) -> Tensor:
        seen.append(number.view(-1, int(number.max())))
        return plain(self, x, number, noise, condition)

    monkeypatch.setattr(PromptedDiffusion, "masks_cost", masks_cost)
    calls = replicated((model,), X, CONDITION, 6, range(3))[1]
    for one in seen:
        assert torch.equal(one.sort(1).values, torch.arange(1, one.shape[1] + 1).expand_as(one))
    assert sum(one.numel() for one in seen) == calls == 3 * int((LENGTHS - GIVEN).sum())


class Counting(nn.Module):
    """Logits of which a masked position costs c(m) where the tokens have m masks, or w_i of its own; all items consist of token 0.

    A cost that depends on the number of masks only leaves the bound without noise: Σ_{n=1..F} c(n).
    """

    def __init__(self, by_number: Tensor, by_place: Tensor) -> None:
        super().__init__()
        self.by_number, self.by_place = by_number, by_place

    def forward(self, tokens: Tensor) -> Tensor:
        cost = self.by_number[(tokens == K).sum(1)][:, None] + self.by_place[: tokens.shape[1]]
        p = (-cost).exp()
        return torch.stack([p, (1 - p) / 2, (1 - p) / 2], 2).log()


# Costs of one to L masks, nats: a number of masks that is off by one, or a masked prompt, changes a sum by 3 or more.
C = torch.tensor([0.0, 1.0, 4.0, 0.5, 7.0, 2.0, 11.0], dtype=torch.float64)
ZEROS = torch.zeros(3, L)
# Items of 6, 4 and 3 free positions.
GROWING = prompts(ZEROS, torch.tensor([0, 2, 3]))


def counting(by_place: Tensor | None = None) -> PromptedDiffusion:
    places = torch.zeros(L, dtype=torch.float64) if by_place is None else by_place
    return PromptedDiffusion(df.MaskedDiffusion(Counting(C if by_place is None else 0 * C, places), Categorical(L, K)))


def test_the_numbers_of_masks_of_every_item_are_spread_over_its_own_free_positions() -> None:
    """(F/V) Σ_j c(⌈F (j + U)/V⌉): with four visits those of F = 3 and 4 have every number once, whatever U; that of F = 6 depends on U."""
    (values,), calls = replicated((counting(),), ZEROS, GROWING, 4, range(200))
    assert calls == 200 * (4 + 4 + 3)
    for item, free in ((1, 4), (2, 3)):
        torch.testing.assert_close(values[:, item], torch.full((200,), float(C[1 : free + 1].sum()), dtype=C.dtype))
    # The four numbers change at U = 1/3 and 2/3; a grid of U has all values.
    possible = []
    for u in (torch.arange(600, dtype=torch.float64) + 0.5) / 600:
        numbers = ((6 * (torch.arange(4) + u) / 4).floor() + 1).long()
        possible.append(float(1.5 * C[numbers].sum()))
    assert sum(possible) / len(possible) == pytest.approx(float(C[1:].sum()))
    kinds = torch.tensor(sorted(set(possible)), dtype=torch.float64)
    nearest = (values[:, 0, None] - kinds).abs().min(1)
    assert float(nearest.values.max()) < 1e-6
    assert sorted(nearest.indices.unique().tolist()) == list(range(len(kinds)))
    apart = float(values[:, 0].mean() - C[1:].sum())
    assert abs(apart) < 4.5 * float(values[:, 0].std()) / 200**0.5


def test_masks_that_two_models_have_in_common_leave_no_noise() -> None:
    """−ln p_B = −ln p_A + δ at every position: with common masks every visit differs by F δ, and with others by much more."""
    places = torch.tensor([0.5, 6.0, 1.0, 9.0, 2.0, 4.0], dtype=torch.float64)
    a, b, delta = counting(places), counting(places + 0.25), -0.25
    found = compare_continuations(a, b, ZEROS, GROWING, error=1e-6, max_evaluations=200)
    assert found.reached
    expected = delta * torch.tensor([6.0, 4.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(found.per_item["difference"], expected, rtol=0, atol=1e-9)
    assert found.difference.value == pytest.approx(float(expected.mean()), abs=1e-9)
    assert found.difference.error < 1e-9
    assert found.a.nelbo.error > 0.01
    # Four replicates of six visits, and all masks of four and of three positions; half of them for each model.
    assert found.difference.network_evaluations == 2 * (4 * 6 + 15 + 7)
    assert found.a.nelbo.network_evaluations == found.b.nelbo.network_evaluations == 4 * 6 + 15 + 7


def test_replicates_and_equal_items_have_draws_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = model_of(), torch.tensor([0, 2, 0, 0])
    x, condition = X[rows], {name: value[rows] for name, value in CONDITION.items()}
    seen, plain = [], PromptedDiffusion.masks_cost

    def masks_cost(
        self: PromptedDiffusion, x: Tensor, number: Tensor, noise: Tensor, condition: dict[str, Tensor]
    ) -> Tensor:
        seen.append(noise)
        return plain(self, x, number, noise, condition)

    monkeypatch.setattr(PromptedDiffusion, "masks_cost", masks_cost)
    (values,), _ = replicated((model,), x, condition, 2, range(8))
    # Both visits of a replicate have the same noise with opposite signs, and no other visits have it.
    noise = torch.cat(seen)
    assert torch.equal(noise[::2], -noise[1::2])
    assert len(noise[::2].abs().unique(dim=0)) == 4 * 8
    # Replicate 5 is the same whenever it is computed, and whatever fits into one call of the network.
    (some,), _ = replicated((model,), x, condition, 2, range(5, 8))
    assert torch.equal(some, values[5:])
    monkeypatch.setattr("diffusional.evaluation.continuations.network_rows", lambda model: 2)
    (one_by_one,), _ = replicated((model,), x, condition, 2, range(8))
    torch.testing.assert_close(one_by_one, values, rtol=0, atol=1e-12)


def test_a_number_depends_on_its_item_prompt_and_seed_only() -> None:
    model, some = model_of(), torch.tensor([3, 1])
    whole = continuations(model, X, CONDITION, visits=8).per_item["nelbo"]
    part = {name: value[some] for name, value in CONDITION.items()}
    assert torch.equal(continuations(model, X[some], part, visits=8).per_item["nelbo"], whole[some])
    assert not torch.equal(continuations(model, X, CONDITION, visits=8, seed=1).per_item["nelbo"], whole)


def test_replicates_are_added_until_the_error_is_reached() -> None:
    model = model_of()
    found = continuations(model, X, CONDITION, error=0.04)
    assert found.reached
    assert found.nelbo.error <= 0.04
    assert abs(found.nelbo.value - float(model.exact_ledger(X, CONDITION).nelbo.mean())) < 4.5 * found.nelbo.error
    limited = continuations(model, X, CONDITION, error=0.0005, max_evaluations=500)
    assert not limited.reached
    assert 300 < limited.nelbo.network_evaluations <= 500


def test_two_models_see_the_same_masks() -> None:
    a, b = model_of(0), model_of(0)
    with torch.no_grad():
        # Not a shift, which changes no probability.
        next(b.parameters()).mul_(1.05)
    found = compare_continuations(a, b, X, CONDITION, error=0.002)
    exact = a.exact_ledger(X, CONDITION).nelbo - b.exact_ledger(X, CONDITION).nelbo
    assert float(exact.abs().min()) > 1e-4
    assert 0 < found.difference.error <= 0.002
    assert found.difference.error < 0.2 * math.hypot(found.a.nelbo.error, found.b.nelbo.error)
    assert abs(found.difference.value - float(exact.mean())) < 4.5 * found.difference.error
    apart = (found.per_item["difference"] - exact).abs()
    assert bool((apart <= 5 * found.per_item["error"] + 1e-9).all())
    # The errors are those of the mean of the replicates' differences.
    number = found.a.provenance["replicates"]
    values, _ = replicated((a, b), X, CONDITION, 8, range(number))
    errors = torch.where(LENGTHS - GIVEN <= 5, 0, (values[0] - values[1]).std(0) / number**0.5)
    torch.testing.assert_close(found.per_item["error"], errors, rtol=1e-9, atol=1e-12)
    assert found.difference.error == pytest.approx(float(errors.square().sum().sqrt()) / len(X))


def test_few_masks_are_all_visited() -> None:
    """Two free positions have two masks of one position: four replicates are all equal in one of eight seeds, which is no error of 0."""
    free = torch.randint(1, L + 1, (40,), generator=torch.Generator().manual_seed(3))
    # Free positions anywhere, not only at the end.
    places = randn(40, L, seed=4).argsort(1) < free[:, None]
    x = torch.randint(K, (40, L), generator=torch.Generator().manual_seed(5)).float()
    prompt = torch.where(places, -1, x.long())
    model = PromptedDiffusion(df.MaskedDiffusion(Network(0).requires_grad_(False), Categorical(L, K)))
    exact = model.exact_ledger(x, prompt).nelbo
    for f in free.unique():
        torch.testing.assert_close(model.all_masks_cost(x[free == f], prompt[free == f]), exact[free == f])
        torch.testing.assert_close(model.all_masks_cost(x[free == f], prompt[free == f], rows=2), exact[free == f])
    # 2^4 − 1 masks are as many as the visits, 2^5 − 1 are more.
    for visits, most in ((14, 3), (15, 3), (16, 4), (32, 5)):
        found = continuations(model, x, prompt, visits=visits)
        few = free <= most
        torch.testing.assert_close(found.per_item["nelbo"][few], exact[few])
        assert torch.equal(found.per_item["error"] == 0, few)
        drawn = 4 * free[~few].clamp(max=visits // 4)
        assert found.nelbo.network_evaluations == int((2 ** free[few] - 1).sum() + drawn.sum())
    # Further replicates do not evaluate them again.
    more = continuations(model, x, prompt, error=1e-4, max_evaluations=5000)
    replicates, few = int(more.provenance["replicates"]), free <= 5
    assert replicates > 4
    assert more.nelbo.network_evaluations == int((2 ** free[few] - 1).sum()) + replicates * 6 * int((~few).sum())
    with pytest.raises(df.DiffusionalError, match=r"same number of free positions, got \[1, 2"):
        model.all_masks_cost(x, prompt)


def test_an_error_of_few_degrees_of_freedom_does_not_end_an_evaluation() -> None:
    """The error of few replicates is often small by chance: 95 % intervals of evaluations that it ended covered 89.5 %."""
    one = X[:1], prompts_of_lengths(X[:1], GIVEN[:1], LENGTHS[:1])
    few = continuations(model_of(), *one, visits=16)
    assert few.freedom == 3
    assert "3 degrees of freedom" in few.caveats[0]
    found = continuations(model_of(), *one, error=100.0)
    assert found.reached
    assert (found.freedom, found.provenance["replicates"], found.caveats) == (15, 16, ())
    paired = compare_continuations(model_of(), model_of(), *one, error=100.0)
    assert paired.difference.error == 0  # the same model
    limited = continuations(model_of(), *one, error=100.0, max_evaluations=5 * found.nelbo.network_evaluations // 16)
    assert not limited.reached


def test_bad_input_is_refused() -> None:
    model = model_of()
    with pytest.raises(df.DiffusionalError, match="one of error and visits"):
        continuations(model, X, CONDITION)
    with pytest.raises(df.DiffusionalError, match="at least 4 visits"):
        continuations(model, X, CONDITION, visits=3)
    for error in (0.0, math.inf, math.nan):
        with pytest.raises(df.DiffusionalError, match="positive error"):
            continuations(model, X, CONDITION, error=error)
    with pytest.raises(df.DiffusionalError, match="leave one out"):
        continuations(model, X, CONDITION, visits=8, max_evaluations=100)
    # The first replicates are four of eight visits.
    least = continuations(model, X, CONDITION, visits=32).nelbo.network_evaluations
    exactly = continuations(model, X, CONDITION, error=100.0, max_evaluations=least)
    assert exactly.nelbo.network_evaluations == least
    for found in (continuations, partial(compare_continuations, model_of())):
        each = 1 if found is continuations else 2
        with pytest.raises(df.DiffusionalError, match=f"at least {each * least}, got {each * least - 1}"):
            found(model, X, CONDITION, error=100.0, max_evaluations=each * least - 1)
    with pytest.raises(df.DiffusionalError, match="length 7 in item 0"):
        prompts_of_lengths(X, GIVEN, LENGTHS + 1)
    with pytest.raises(df.DiffusionalError, match="4 given tokens"):
        prompts_of_lengths(X, GIVEN, GIVEN + torch.tensor([1, 1, 1, 0, 1]))
    with pytest.raises(df.DiffusionalError, match="regrid"):
        of_lengths(df.MaskedDiffusion(Network(0), Categorical(L, K)).regrid(3), L)
    other = of_lengths(df.MaskedDiffusion(Network(0), Categorical(9, K, "text8")), L)
    with pytest.raises(df.DiffusionalError, match="same tokens"):
        compare_continuations(model, other, X, CONDITION, error=0.1)
