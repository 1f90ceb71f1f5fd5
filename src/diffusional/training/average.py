"""The exponential moving average of the weights, which is evaluated and saved."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


class WeightAverage:
    """The average θ̄ ← d θ̄ + (1 − d) θ after each step, d = min(decay, (1 + i)/(10 + i)) at the i-th, starting from the first step's weights.

    The warm-up of d reduces the effect of the initialisation (Tensorflow's ExponentialMovingAverage). Sharded weights have a sharded
    average.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> average = WeightAverage(layer, decay=0.999)
    >>> for value in (1.0, 2.0):
    ...     _ = nn.init.constant_(layer.weight, value)
    ...     average.update()
    >>> round(float(average.tensors["weight"]), 4)       # d = 2/11
    1.8182
    """

    def __init__(self, model: nn.Module, decay: float, root: nn.Module | None = None) -> None:
        """Start an average. `root` is the module that is called, if the weights of the model are sharded below it."""
        self.decay, self.updates = decay, 0
        self._sharded = [m for m in (root or model).modules() if isinstance(m, FSDPModule)]
        self._live = {name: p.detach() for name, p in model.named_parameters()}
        self.tensors: dict[str, Tensor] = {name: p.clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the present weights."""
        i = self.updates
        keep = min(self.decay, (1 + i) / (10 + i)) if i else 0.0
        torch._foreach_lerp_(  # type: ignore[attr-defined]
            list(self.tensors.values()), list(self._live.values()), 1 - keep
        )
        self.updates += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averaged weights within the block, and its own weights after it."""
        own = [p.clone() for p in self._live.values()]
        self._fill(self.tensors.values())
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, values: Iterable[Tensor]) -> None:
        for target, source in zip(self._live.values(), values, strict=True):
            target.copy_(source)
        # A module that has gathered its weights keeps them for the next call, when they would be outdated.
        for module in self._sharded:
            module.reshard()
