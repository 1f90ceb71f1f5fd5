"""Adapters from log-SNR to the time input that a foreign network was trained with.

The networks of this library take log-SNR itself. A network that was trained on integer steps, or on an affine function of log-SNR, is used
unchanged with an adapter: `Denoiser(module, time=TrainedIndex(schedule))`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusional.errors import DiffusionalError
from diffusional.schedule import Schedule


@dataclass(frozen=True)
class Affine:
    """time = scale · log_snr + shift.

    >>> Affine(scale=-0.25, shift=1.0)(torch.tensor([4.0]))
    tensor([0.])
    """

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, log_snr: Tensor) -> Tensor:
        return self.scale * log_snr + self.shift


class AtLevels(nn.Module):
    """A time input that is defined at trained levels only. Within `between_levels` it is interpolated between them."""

    interpolates = False


class TrainedIndex(AtLevels):
    """The index, `first` to `first` + T − 1, of the trained level with a given log-SNR.

    Networks like DDPM's number z_1 … z_T from 0, the default. Raises DiffusionalError for a log-SNR that is more than 1 % of a step away from
    every trained level, since such a network was trained only at its T levels.

    >>> from diffusional import schedule
    >>> betas = schedule.linear(steps=1000)
    >>> TrainedIndex(betas)(-betas.grid()[[0, 999]])
    tensor([  0, 999])
    """

    def __init__(self, schedule: Schedule, first: int = 0) -> None:
        super().__init__()
        # In a tuple, so that it is not a submodule: a learned schedule belongs to the model, and would be in its state twice.
        self._schedule, self.first = (schedule,), first

    @property
    def schedule(self) -> Schedule:
        return self._schedule[0]

    def position(self, log_snr: Tensor) -> Tensor:
        """Return the index as a real number, `first` + (T − 1) u with γ(u) = −`log_snr`: the schedule's own curve between the levels.

        >>> from diffusional import schedule
        >>> levels = schedule.log_snr_linear(-4.0, 4.0, steps=9)
        >>> TrainedIndex(levels).position(torch.tensor([3.5]))
        tensor([0.5000], dtype=torch.float64)
        """
        u = self.schedule.inverse(-log_snr.detach().double())
        return self.first + (len(self.schedule.grid()) - 1) * u.to(log_snr.device)

    def forward(self, log_snr: Tensor) -> Tensor:
        if self.interpolates:
            return self.position(log_snr)
        gamma = -log_snr.double()
        grid = self.schedule.grid().detach().to(gamma.device)
        index = torch.searchsorted(grid, gamma.contiguous()).clamp(1, len(grid) - 1)
        index = index - (gamma - grid[index - 1] < grid[index] - gamma).long()
        near = torch.where(index > 0, grid[index] - grid[index - 1], grid[1] - grid[0])
        # log-SNRs in float32 have errors of up to 1e-6; neighbouring levels of T = 1000 differ by 1e-2.
        off = (gamma - grid[index]).abs() > 0.01 * near
        if bool(off.any()):
            raise DiffusionalError(
                f"expected the log-SNR of one of the {len(grid)} levels that the network was trained at, got "
                f"{float(log_snr[off][0]):.6g}. Evaluate it on its own schedule, without regrid"
            )
        return index + self.first


@contextmanager
def between_levels(times: Iterable[AtLevels]) -> Iterator[None]:
    """Interpolate time inputs between trained levels for the block: the network gets times that it was not trained with.

    >>> from diffusional import schedule
    >>> index = TrainedIndex(schedule.log_snr_linear(-4.0, 4.0, steps=9))
    >>> with between_levels([index]):
    ...     index(torch.tensor([3.5]))
    tensor([0.5000], dtype=torch.float64)
    """
    every = [(one, one.interpolates) for one in times]
    try:
        for one, _ in every:
            one.interpolates = True
        yield
    finally:
        for one, before in every:
            one.interpolates = before
