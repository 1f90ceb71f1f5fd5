"""The transformer of sequences."""

import pytest
import torch

import diffusional as df
from diffusional.networks import SequenceTransformer


def network(causal: bool = False, timed: bool = False) -> SequenceTransformer:
    torch.manual_seed(0)
    made = SequenceTransformer(5, 12, 16, 2, 2, timed=timed, causal=causal)
    for block in made.blocks:
        torch.nn.init.normal_(block.out.weight, std=0.5)
    return made.eval()


@pytest.mark.parametrize("causal", [False, True])
def test_a_causal_one_sees_what_is_before(causal: bool) -> None:
    model, tokens = network(causal), torch.randint(5, (3, 12), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[:, 7] = 5
    moved = (model(tokens) - model(changed)).abs().amax((0, 2)) > 1e-6
    assert bool(moved[7:].all())
    assert bool(moved[:7].any()) is not causal
    # Positions differ, also for equal tokens.
    assert float(model(torch.full((1, 12), 5)).detach().std(1).max()) > 1e-3


def test_the_time_is_an_input() -> None:
    model, tokens = network(timed=True), torch.zeros(2, 12, dtype=torch.long)
    out = model(tokens, torch.tensor([-2.0, 2.0]))
    assert float((out[0] - out[1]).detach().abs().max()) > 1e-3


def test_refusals() -> None:
    with pytest.raises(df.DiffusionalError, match="heads=3"):
        SequenceTransformer(5, 12, 16, heads=3)
