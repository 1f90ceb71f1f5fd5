"""The last visits of a training of masked sequences: an evaluation learns its plan from them, so that it needs no pilot.

Every item of a training step is a visit of a level: a cost at a mask, which the loss has paid for. A run keeps the last of them in visits.safetensors:

    row (V,)        the item, a row of the training split
    level (V,)      t, or 0 for the reconstruction
    cost (V,)       KL_t, or −ln p(x|z_1), nats, of the weights in training at that step
    mask (V, B)     which positions were masked, eight in a byte
    chain (32,)     a hash of the chain's levels: another T has others
    step ()         the number of steps when the file was written
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusional.data.dataset import Stream
from diffusional.errors import DiffusionalError
from diffusional.evaluation.plan import about
from diffusional.evaluation.recorded import Recorded
from diffusional.files import load_tensors, save_tensors
from diffusional.ledger import Costs
from diffusional.models.chain import Chain

VISITS = "visits.safetensors"
# Visits that are kept, and the part of a run's visits, the last ones, that they are at most.
KEPT, _LAST = 8192, 0.1


class VisitLog:
    """The last visits of a training.

    Args:
        chain: a chain of masked sequences in discrete time (`Chain.masks`).
        visits: the number of visits of the whole run.

    >>> log = VisitLog(None, visits=1000)
    >>> log.most
    100
    """

    def __init__(self, chain: Any, visits: int) -> None:
        self.chain = chain
        self.most = max(1, min(KEPT, int(_LAST * visits)))
        self._parts: list[dict[str, Tensor]] = []

    @classmethod
    def of(cls, model: object, items: object, visits: int) -> "VisitLog | None":
        """Return a log for a model of masked sequences in discrete time whose items can be found again by their rows; None for others."""
        chain = getattr(model, "visited", lambda: None)()
        if chain is not model or chain is None or chain.masks is None or isinstance(items, Stream):
            return None
        return cls(chain, visits)

    def record(self, rows: Tensor, draws: dict[str, Tensor], costs: Costs) -> None:
        """Keep the visits of a step: the rows (B,) of its items, what the chain drew and what that cost."""
        chain, first, level = self.chain, draws["first"].cpu(), draws["level"].cpu()
        share = chain.reconstruction_share
        kl = costs.terms["kl"].detach().cpu().double() * (1 - share) / draws["weight"].cpu().double()
        reconstruction = costs.terms.get("reconstruction", torch.zeros(())).detach().cpu().double() * share
        masks = chain.masked(torch.where(first, 1, level + 1), draws["noise"].cpu())
        part = {
            "row": rows.cpu().to(torch.int32),
            "level": torch.where(first, 0, level).to(torch.int32),
            "cost": torch.where(first, reconstruction, kl),
            "mask": torch.from_numpy(np.packbits(masks.numpy(), axis=1)),
        }
        self._parts.append(part)
        while sum(len(one["row"]) for one in self._parts[1:]) >= self.most:
            del self._parts[0]

    def save(self, run: Path, step: int) -> None:
        """Write visits.safetensors, if there are visits."""
        if self._parts:
            joined = {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}
            save_tensors(run / VISITS, joined | {"chain": _levels_hash(self.chain), "step": torch.tensor(step)})

    def restore(self, run: Path, step: int) -> None:
        """Continue with the visits that were written at this step. Those of another step, or none, are not an error: the log begins anew."""
        try:
            found = load_tensors(run / VISITS)
            if int(found.pop("step")) == step and torch.equal(found.pop("chain"), _levels_hash(self.chain)):
                self._parts = [found]
        except (DiffusionalError, KeyError):
            return


def kept_visits(run: Path, chain: Chain) -> Recorded | None:
    """Return the visits of a chain's levels in a run folder; None if there are none of this chain, or if the file is damaged."""
    try:
        found = load_tensors(run / VISITS)
        if not torch.equal(found["chain"], _levels_hash(chain)):
            return None
        masks = np.unpackbits(found["mask"].numpy(), axis=1, count=chain.space.dimensions).astype(bool)
        return Recorded(found["row"].long(), found["level"].long(), found["cost"], torch.from_numpy(masks))
    except (DiffusionalError, KeyError, ValueError):
        return None


def _levels_hash(chain: Chain) -> Tensor:
    """Return a hash (32,), uint8, of what the levels of a chain are, whatever its weights."""
    text = json.dumps([chain.identity(), about(chain)], sort_keys=True)
    return torch.frombuffer(bytearray(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
