"""Ledgers of the parts of a composite model, joined."""

import dataclasses

import pytest
import torch

from diffusional import Ledger
from diffusional.errors import DiffusionalError


def ledger(batch: int, levels: int, dimensions: int, seed: int, *extra: str) -> Ledger:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    extras = {name: drawn(batch) for name in extra}
    return Ledger(drawn(batch), drawn(batch, levels), drawn(batch), dimensions, extras)


BASE, UP = ledger(3, 4, 16, 0), ledger(3, 2, 64, 1, "jacobian")


def test_the_costs_of_a_joined_ledger_are_those_of_its_stages() -> None:
    both = Ledger.join({"base": BASE, "up": UP}, dimensions=64)
    torch.testing.assert_close(both.nelbo, BASE.nelbo + UP.nelbo)
    torch.testing.assert_close(both.elbo, -both.nelbo)
    # In the units of x: 64 dimensions, whatever those of the stages are.
    torch.testing.assert_close(both.bits_per_dim(), (BASE.nelbo + UP.nelbo) / (64 * torch.log(torch.tensor(2.0))))
    assert both.reconstruction.equal(BASE.reconstruction + UP.reconstruction)
    assert both.prior.equal(BASE.prior + UP.prior)
    assert both.kl.equal(torch.cat([BASE.kl, UP.kl], 1))
    assert both.extra["up.jacobian"].equal(UP.extra["jacobian"])
    assert {name: tuple(kl.shape) for name, kl in both.blocks.items()} == {"base.kl": (3, 4), "up.kl": (3, 2)}
    assert both.blocks["up.kl"].equal(UP.kl)
    fixed = ("reconstruction", "kl", "prior")
    assert list(both.totals()) == [f"base.{n}" for n in fixed] + [f"up.{n}" for n in (*fixed, "jacobian")]
    assert both.totals()["up.kl"].equal(UP.kl.sum(1))
    torch.testing.assert_close(sum(both.totals().values()), both.nelbo)


def test_a_ledger_without_stages_has_one_block() -> None:
    assert list(BASE.blocks) == ["kl"]
    assert BASE.blocks["kl"] is BASE.kl
    assert BASE.stages == {}


def test_joined_ledgers_are_joined_again() -> None:
    inner = Ledger.join({"low": BASE, "high": UP}, dimensions=64)
    last = ledger(3, 1, 256, 2)
    whole = Ledger.join({"cascade": inner, "last": last}, dimensions=256)
    torch.testing.assert_close(whole.nelbo, BASE.nelbo + UP.nelbo + last.nelbo)
    torch.testing.assert_close(sum(whole.totals().values()), whole.nelbo)
    assert list(whole.blocks) == ["cascade.low.kl", "cascade.high.kl", "last.kl"]
    assert whole.extra["cascade.high.jacobian"].equal(UP.extra["jacobian"])
    assert torch.cat(list(whole.blocks.values()), 1).equal(whole.kl)


def test_stages_without_levels_and_of_other_types() -> None:
    single = dataclasses.replace(ledger(3, 1, 8, 3), kl=torch.zeros(3, 0), prior=torch.ones(3))
    both = Ledger.join({"decoder": single, "chain": BASE}, dimensions=8)
    assert both.kl.equal(BASE.kl)
    assert both.nelbo.dtype is torch.float64
    torch.testing.assert_close(sum(both.totals().values()), both.nelbo)


def test_gradients_reach_every_stage() -> None:
    kl = torch.ones(3, 2, requires_grad=True)
    Ledger.join({"a": dataclasses.replace(UP, kl=kl), "b": BASE}, dimensions=4).nelbo.sum().backward()
    assert kl.grad is not None
    assert kl.grad.equal(torch.ones(3, 2))


@pytest.mark.parametrize(
    ("stages", "dimensions", "named"),
    [
        ({}, 4, "stages"),
        ({"": BASE}, 4, "prefix"),
        ({"  ": BASE}, 4, "prefix"),
        ({"a.b": BASE}, 4, "prefix .*a.b"),
        ({"a": BASE, "b": ledger(2, 4, 16, 0)}, 4, "items.* a: 3, b: 2"),
        ({"a": BASE}, 0, "dimensions.* 0"),
        ({"a": BASE}, True, "dimensions.* True"),
    ],
)
def test_what_cannot_be_joined(stages: dict[str, Ledger], dimensions: int, named: str) -> None:
    with pytest.raises(DiffusionalError, match=named):
        Ledger.join(stages, dimensions)


def test_stages_on_different_devices_are_refused() -> None:
    meta = Ledger(*(torch.zeros(*shape, device="meta") for shape in ((3,), (3, 2), (3,))), dimensions=4)
    with pytest.raises(DiffusionalError, match=r"device.* a: cpu, b: meta"):
        Ledger.join({"a": BASE, "b": meta}, 4)


@pytest.mark.parametrize("name", ["reconstruction", "kl", "prior", "nelbo", "error", "draws", "item"])
def test_extra_terms_cannot_have_the_names_of_others(name: str) -> None:
    """Otherwise `totals` or an evaluation's columns would have one of the two only, and no longer add up to the NELBO."""
    with pytest.raises(DiffusionalError, match=name):
        dataclasses.replace(BASE, extra={name: torch.zeros(3)})
