"""A step whose loss or gradient is not finite: which cost, of which items, at which noise level."""

import torch
from torch import Tensor, nn

from diffusional.ledger import Costs

_SHOWN = 3


def diagnose(costs: Costs, draws: dict[str, Tensor], rows: Tensor, model: nn.Module) -> list[str]:
    """What is not finite, a sentence each: of N items at `rows` of the train split, their `costs` and `draws`; else of the
    weights, else of the gradient.

    >>> costs = Costs({"kl": torch.tensor([1.0, float("nan")])}, torch.zeros(0), torch.zeros(0))
    >>> diagnose(costs, {"level": torch.tensor([0.25, 0.75])}, torch.tensor([31, 7]), nn.Identity())
    ['the cost kl of 1 of 2 items is not finite: train item 7 at level 0.75 (nan)']
    """
    found = []
    level = draws.get("level", draws.get("prior_level"))
    first = draws.get("first", draws.get("prior_first"))
    for name, term in costs.terms.items():
        values = term.detach()
        bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
        if not bad:
            continue
        shown = []
        for i in bad[:_SHOWN]:
            where = ""
            if level is not None:
                where = " at z_1" if first is not None and bool(first[i]) else f" at level {float(level[i]):.6g}"
            shown.append(f"train item {int(rows[i])}{where} ({float(values[i]):g})")
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        found.append(f"the cost {name} of {len(bad)} of {len(values)} items is not finite: {', '.join(shown)}{more}")
    if found:
        return _weights(model) + found
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    bad = [name for name, g in gradients.items() if not bool(torch.isfinite(g).all())]
    total = costs.total().detach()
    largest = int(total.argmax())
    dearest = f"the dearest item is train item {int(rows[largest])} ({float(total[largest]):.4g} nats)"
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        found.append(f"every cost is finite, the gradient of {', '.join(bad[:_SHOWN])}{more} is not; {dearest}")
    return found


def _weights(model: nn.Module) -> list[str]:
    bad = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    return [f"the weights {', '.join(bad[:_SHOWN])} were not finite before the step"] if bad else []
