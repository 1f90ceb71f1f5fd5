"""The control of masked sequences: its expectation is a sum over all masks, so that an evaluation with it is unbiased."""

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

import diffusional as df
from battery import generator
from diffusional.evaluation import Plan
from diffusional.evaluation.control import Look
from diffusional.evaluation.neighbours import Neighbours
from diffusional.networks import SequenceTransformer

L, K = 11, 3
SPACE = df.space.Categorical(L, K)


def text(n: int) -> Tensor:
    """Sequences of a Markov chain."""
    p = torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.2, 0.7], [0.5, 0.4, 0.1]])
    x, rng = torch.zeros(n, L), generator(1)
    for i in range(1, L):
        x[:, i] = torch.multinomial(p[x[:, i - 1].long()], 1, generator=rng)[:, 0]
    return x


def model(process: df.Absorbing | None = None) -> df.MaskedDiffusion:
    torch.manual_seed(0)
    network = SequenceTransformer(K, L, 16, 1, 2)
    for block in network.blocks:
        torch.nn.init.normal_(block.out.weight, std=0.3)
    return df.MaskedDiffusion(network, SPACE, process).requires_grad_(False)


@pytest.mark.parametrize("process", [None, df.Absorbing(K, 6, "cosine")])
def test_the_expectation_is_the_sum_over_all_masks(process: df.Absorbing | None) -> None:
    chain, x = model(process), text(4)
    control = Neighbours.fit(text(200), chain)
    masks = torch.tensor(list(product([False, True], repeat=L)))
    tokens = x.long()
    for t in (1, 2, 5, 6):
        if process is None:
            chance = (masks.sum(1) == t).double()
            chance = chance / chance.sum()
        else:
            keep = float(process.keeps(t))
            chance = (1 - keep) ** masks.sum(1).double() * keep ** (~masks).sum(1).double()
        for i in range(len(x)):
            drawn = control._drawn(tokens[i].expand(len(masks), L), masks)
            torch.testing.assert_close(control._totals(tokens)[i, t - 1], chance @ drawn, rtol=1e-10, atol=1e-10)


def test_what_the_chain_pays_is_bayes_rule() -> None:
    """−ln p(x_i | l, r) from the joint probabilities of all paths between the neighbours."""
    chain, x = model(), text(1).long()
    control = Neighbours.fit(text(200), chain)
    p = control.transition
    masks = torch.zeros(1, L, dtype=torch.bool)
    masks[0, 3:6] = True
    total = 0.0
    for i in (3, 4, 5):
        weights = torch.zeros(K, dtype=torch.float64)
        for path in product(range(K), repeat=3):
            full = [int(x[0, 2]), *path, int(x[0, 6])]
            weights[path[i - 3]] += torch.stack([p[a, b] for a, b in pairwise(full)]).prod()
        total -= float((weights / weights.sum())[x[0, i]].log())
    assert float(control._drawn(x, masks)[0, 0]) == pytest.approx(total, rel=1e-10)


def test_the_functions_of_the_noise_have_mean_zero() -> None:
    chain, x = model(), text(1)
    control = Neighbours.fit(text(200), chain)
    n = 4000
    look = Look(
        x.expand(n, L), torch.randn(n, L, generator=generator(2)), None, torch.full((n,), 5), torch.zeros(n).bool()
    )
    drawn = control.at(look)[1]
    assert bool((drawn.mean(0).abs() < 4.5 * drawn.std(0) / n**0.5 + 1e-12).all())


@pytest.mark.parametrize("process", [None, df.Absorbing(K, 6)])
def test_an_evaluation_with_it_is_unbiased_for_every_item(process: df.Absorbing | None) -> None:
    chain, x = model(process), text(12)
    exact = chain.exact_ledger(x)
    plan = Plan.fit(chain, text(300), 600)
    assert "neighbours" in [control.name for control in plan.controls]
    found = df.evaluate(chain, x, visits=120, plan=plan, audit=False, seed=3)
    scores, error = found.per_item["nelbo"], found.per_item["error"]
    assert float(((scores - exact.nelbo) / error).abs().max()) < 5
    assert abs(found.nelbo.value - float(exact.nelbo.mean())) < 4.5 * found.nelbo.error
    assert abs(found.terms["kl"].value - float(exact.kl.sum(1).mean())) < 4.5 * found.terms["kl"].error


def test_a_plan_is_saved_with_it(tmp_path: object) -> None:
    from pathlib import Path

    chain, path = model(), Path(str(tmp_path)) / "plan.json"
    plan = Plan.fit(chain, text(300), 300, controls=("neighbours",))
    plan.save(path)
    assert Plan.load(path, chain).sha256() == plan.sha256()


def test_scores_do_not_depend_on_the_other_items() -> None:
    chain, x = model(), text(6)
    plan = Plan.fit(chain, text(300), 300)
    together = df.evaluate(chain, x, visits=5, plan=plan, audit=False).per_item["nelbo"]
    alone = df.evaluate(chain, x[2:4], visits=5, plan=plan, audit=False).per_item["nelbo"]
    torch.testing.assert_close(together[2:4], alone, rtol=1e-6, atol=1e-6)
