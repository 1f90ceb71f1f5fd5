"""The control of windows of masked sequences: its expectation is a sum over all masks, whatever its weights are."""

from itertools import product
from pathlib import Path

import pytest
import torch

import diffusional as df
from battery import generator
from diffusional.evaluation import Plan
from diffusional.evaluation.control import Look
from diffusional.evaluation.window import Window

from .test_neighbours import K, L, model, text


@pytest.mark.parametrize("process", [None, df.Absorbing(K, 6, "cosine")])
def test_the_expectation_is_the_sum_over_all_masks(process: df.Absorbing | None) -> None:
    chain, x = model(process), text(3).long()
    control = Window.fit(text(200), chain)
    masks = torch.tensor(list(product([False, True], repeat=L)))
    for t in (1, 2, 5, 6):
        chance = torch.tensor([1.0 if process is None else 0.0], dtype=torch.float64) * (masks.sum(1) == t)
        if process is not None:
            keep = float(process.keeps(t))
            chance = (1 - keep) ** masks.sum(1).double() * keep ** (~masks).sum(1).double()
        for i in range(len(x)):
            drawn = control._drawn(x[i].expand(len(masks), L), masks)
            expected = chance @ drawn / chance.sum()
            # The weights are float32.
            torch.testing.assert_close(control._totals(x)[i, t - 1], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("length", [2, 3])
def test_sequences_shorter_than_a_window(length: int) -> None:
    """At the last latent everything is masked, so that the expectation is the cost of that mask."""
    chain = df.MaskedDiffusion(lambda tokens: torch.zeros(*tokens.shape, K), df.space.Categorical(length, K))
    x = torch.randint(K, (5, length), generator=generator(3))
    control = Window.fit(x.float(), chain)
    masks = torch.ones(5, length, dtype=torch.bool)
    torch.testing.assert_close(control._totals(x)[:, -1], control._drawn(x, masks), rtol=1e-6, atol=1e-6)


def test_what_it_pays_is_a_normalised_prediction_from_the_window_only() -> None:
    chain, x = model(), text(1).long()
    control = Window.fit(text(200), chain)
    masks = torch.zeros(1, L, dtype=torch.bool)
    masks[0, 5] = masks[0, 6] = True

    def paid(tokens: torch.Tensor) -> float:
        both = float(control._drawn(tokens, masks))
        other = masks.clone()
        other[0, 5] = False
        return both - float(control._drawn(tokens, other))

    total = 0.0
    for k in range(K):
        tokens = x.clone()
        tokens[0, 5] = k
        one = masks.clone()
        one[0, 6] = False
        total += float(torch.tensor(-float(control._drawn(tokens, one))).exp())
    assert total == pytest.approx(1, abs=1e-5)
    far = x.clone()
    far[0, 1] = (far[0, 1] + 1) % K
    assert float(control._drawn(far, masks)) == float(control._drawn(x, masks))
    assert paid(x) != 0


def test_it_explains_more_than_a_constant() -> None:
    """A fitted window costs less than the frequencies do, on text that it has not seen."""
    chain, x = model(), text(300)[200:].long()
    control = Window.fit(text(200), chain)
    masks = torch.zeros(len(x), L, dtype=torch.bool)
    masks[:, 5] = True
    own = torch.bincount(text(200).long().flatten()).double()
    constant = -(own / own.sum()).log()[x[:, 5]]
    assert float(control._drawn(x, masks).mean()) < float(constant.mean()) - 0.2


def test_the_function_of_the_noise_has_mean_zero() -> None:
    chain, x, n = model(), text(1), 4000
    control = Window.fit(text(200), chain)
    noise = torch.randn(n, L, generator=generator(2))
    drawn = control.at(Look(x.expand(n, L), noise, None, torch.full((n,), 5), torch.zeros(n).bool()))[1]
    assert bool((drawn.mean(0).abs() < 4.5 * drawn.std(0) / n**0.5).all())


@pytest.mark.parametrize("process", [None, df.Absorbing(K, 6)])
def test_an_evaluation_with_it_is_unbiased_for_every_item(process: df.Absorbing | None) -> None:
    chain, x = model(process), text(12)
    exact = chain.exact_ledger(x)
    plan = Plan.fit(chain, text(300), 600, controls=("window",))
    assert float(plan.drawn.abs().max()) > 0
    found = df.evaluate(chain, x, visits=120, plan=plan, audit=False, seed=3)
    scores, error = found.per_item["nelbo"], found.per_item["error"]
    assert float(((scores - exact.nelbo) / error).abs().max()) < 5
    assert abs(found.nelbo.value - float(exact.nelbo.mean())) < 4.5 * found.nelbo.error


def test_a_plan_is_saved_with_it(tmp_path: Path) -> None:
    chain = model()
    plan = Plan.fit(chain, text(300), 300, controls=("window",))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json", chain).sha256() == plan.sha256()


def test_scores_do_not_depend_on_the_other_items() -> None:
    chain, x = model(), text(6)
    plan = Plan.fit(chain, text(300), 300, controls=("window",))
    together = df.evaluate(chain, x, visits=5, plan=plan, audit=False).per_item["nelbo"]
    some = df.evaluate(chain, x[2:4], visits=5, plan=plan, audit=False).per_item["nelbo"]
    torch.testing.assert_close(together[2:4], some, rtol=1e-6, atol=1e-6)
