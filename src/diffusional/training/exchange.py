"""What the processes of one run tell each other, so that they take one step together and end together."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn

from diffusional import launch
from diffusional.errors import DiffusionalError
from diffusional.ledger import Costs
from diffusional.schedule import Schedule

# One process may read and hash terabytes while the others wait for it.
_PATIENCE = timedelta(hours=2)
_LOST = ("Connection closed by peer", "Connection reset by peer", "NCCL", "Broken pipe", "Socket Timeout")


def accelerator() -> Accelerator:
    """The processes and devices that a launcher gave.

    Raises DiffusionalError for ways of sharding weights whose checkpoints would not be whole.
    """
    # The network alone is cast: see Objective. Without a GPU, Accelerate sees several processes only if told that it is so.
    with launch.without_leftovers(), launch.waiting():
        made = Accelerator(
            mixed_precision="no",
            cpu=not torch.cuda.is_available(),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
        )
    kind = made.distributed_type
    plain = kind == DistributedType.NO or kind.value.startswith("MULTI_")
    if not plain and not (kind == DistributedType.FSDP and made.is_fsdp2):
        raise DiffusionalError(
            f"{kind.value} came from the launcher; a run is spread by DDP, or by FSDP of version 2 (accelerate launch --use_fsdp "
            "--fsdp_version 2)"
        )
    return made


def refuse_sharding(accelerator: Accelerator, model: nn.Module) -> None:
    """Raise DiffusionalError for learned schedules under FSDP, which shards no numbers without an axis and no float64 beside float32."""
    learned = [m for m in model.modules() if isinstance(m, Schedule) and any(True for _ in m.parameters())]
    if learned and accelerator.distributed_type == DistributedType.FSDP:
        raise DiffusionalError(
            f"a {type(learned[0]).__name__} schedule came with FSDP, which can't shard its float64 numbers: train it on several processes "
            "without sharding (torchrun), or with a schedule that isn't learned"
        )


class Exchange:
    """Between the processes of an accelerator; with one process everything is as it was told."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.n, self.index, self._device = accelerator.num_processes, accelerator.process_index, accelerator.device

    def objects(self, mine: Any) -> list[Any]:
        """What every process has to say, by its index."""
        everyone: list[Any] = [mine]
        if self.n > 1:
            everyone = [None] * self.n
            dist.all_gather_object(everyone, mine)
        return everyone

    def loss(self, loss: float, signal: int) -> tuple[float, int]:
        """The mean loss of all processes, and the largest number of a signal that one was sent."""
        if self.n == 1:
            return loss, signal
        told = torch.zeros(self.n, 2, dtype=torch.float64, device=self._device)
        told[self.index] = torch.tensor([loss, signal], dtype=torch.float64)
        dist.all_reduce(told)
        return float(told[:, 0].mean()), int(told[:, 1].max())

    def seconds(self, mine: float) -> float:
        """The main process's clock: a time limit ends all at the same step."""
        if self.n == 1:
            return mine
        told = torch.tensor([mine], dtype=torch.float64, device=self._device)
        dist.broadcast(told, 0)
        return float(told)

    def visits(self, costs: Costs) -> tuple[Tensor, Tensor]:
        """Positions and densities of all processes' visits, in the order of the batch: one proposal for all."""
        parts = self.objects((costs.position.cpu(), costs.density.cpu()))
        return torch.cat([p for p, _ in parts]), torch.cat([d for _, d in parts])

    def agree(self, what: str, mine: Any) -> None:
        """Raise DiffusionalError unless every process has the same to say of `what`."""
        said = self.objects(mine)
        if any(one != said[0] for one in said):
            raise DiffusionalError(
                f"the processes of this run differ in {what}: {'; '.join(map(str, said))}. Give all the same files, the run folder "
                "on a disk that they share"
            )

    def raise_together(self, fault: Exception | None) -> None:
        """Raise what went wrong on any of them, on all."""
        for one in self.objects(fault):
            if one is not None:
                raise one

    @contextmanager
    def lost_one_named(self, checkpoints: Path) -> Iterator[None]:
        """A process that died takes the others' next exchange with it; say so, in place of a transport's error."""
        try:
            yield
        except RuntimeError as error:
            if self.n > 1 and any(word in str(error) for word in _LOST):
                raise DiffusionalError(
                    f"another process of this run has ended ({str(error).splitlines()[0]}); the last good checkpoint in "
                    f"{checkpoints} is intact: go on with --resume, on any number of processes that divides the batch"
                ) from error
            raise
