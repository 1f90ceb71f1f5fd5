"""Diagnosis of a step whose loss or gradient is not finite: the cost, the items, and the noise level."""

import torch
from torch import Tensor, nn

from diffusional.ledger import Costs

_SHOWN = 3


def diagnose(costs: Costs, draws: dict[str, Tensor], rows: Tensor) -> list[str]:
    """Return a sentence for each of the `costs` of N items, at `rows` of the train split, that is not finite.

    >>> costs = Costs({"kl": torch.tensor([1.0, float("nan")])}, torch.zeros(0), torch.zeros(0))
    >>> diagnose(costs, {"level": torch.tensor([0.25, 0.75])}, torch.tensor([31, 7]))
    ['the cost kl of 1 of 2 items is not finite: train item 7 at level 0.75 (nan)']
    """
    found = []
    level = draws.get("level", draws.get("prior_level"))
    first = draws.get("first", draws.get("prior_first"))
    for name, term in costs.terms.items():
        values = term.detach()
        bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
        shown = []
        for i in bad[:_SHOWN]:
            where = ""
            if level is not None:
                where = " at z_1" if first is not None and bool(first[i]) else f" at level {float(level[i]):.6g}"
            shown.append(f"train item {int(rows[i])}{where} ({float(values[i]):g})")
        if bad:
            found.append(
                f"the cost {name} of {len(bad)} of {len(values)} items is not finite: {_listed(shown, len(bad))}"
            )
    return found


def diagnose_weights(model: nn.Module) -> list[str]:
    """Return a sentence about weights that were not finite before the step, if there are any."""
    bad = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p.detach()).all())]
    return [f"the weights {_listed(bad, len(bad))} were not finite before the step"] if bad else []


def diagnose_gradient(model: nn.Module, costs: Costs, rows: Tensor) -> list[str]:
    """Describe a step that is not finite although every cost is: the gradients that are not finite, and the item with the largest cost."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    bad = [name for name, g in gradients.items() if not bool(torch.isfinite(g).all())]
    what = f"the gradient of {_listed(bad, len(bad))} is not" if bad else "the norm of the gradient overflows"
    total = costs.total().detach()
    largest = int(total.argmax())
    dearest = f"the item with the largest cost is train item {int(rows[largest])} ({float(total[largest]):.4g} nats)"
    return [f"every cost is finite, {what}; {dearest}"]


def _listed(names: list[str], n: int) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {n - _SHOWN} more" if n > _SHOWN else "")
