"""Communication between the processes of one run, so that they take the same steps and end at the same step."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffusional import launch
from diffusional.deprecation import renamed_names
from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.ledger import Costs
from diffusional.schedule import Schedule

__getattr__ = renamed_names(__name__, {"Exchange": "ProcessGroup"})

with needed_for("training"):
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, InitProcessGroupKwargs

# One process may read and hash terabytes while the others wait for it.
_PATIENCE = timedelta(hours=2)
_LOST = ("Connection closed by peer", "Connection reset by peer", "NCCL", "Broken pipe", "Socket Timeout")


def accelerator() -> Accelerator:
    """Return the Accelerator for the processes and devices of a launcher.

    Raises DiffusionalError for kinds of sharding whose checkpoints would not be complete.
    """
    # Only the network is cast: see Objective. Without a GPU, Accelerate finds several processes only with cpu=True.
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
            f"expected DDP, or FSDP of version 2 (accelerate launch --use_fsdp --fsdp_version 2), from the launcher, got {kind.value}"
        )
    return made


def refuse_sharding(accelerator: Accelerator, model: nn.Module) -> None:
    """Raise DiffusionalError for learned schedules under FSDP, which cannot shard scalars, or float64 together with float32."""
    learned = [m for m in model.modules() if isinstance(m, Schedule) and any(True for _ in m.parameters())]
    if learned and accelerator.distributed_type == DistributedType.FSDP:
        raise DiffusionalError(
            f"expected a schedule without parameters for FSDP, which cannot shard float64, got a {type(learned[0]).__name__}: use several "
            "processes without sharding (torchrun), or a schedule that is not learned"
        )


class ProcessGroup:
    """Communication between the processes of an accelerator. With one process, values are returned unchanged."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.n, self.index, self._device = accelerator.num_processes, accelerator.process_index, accelerator.device

    def objects(self, mine: Any) -> list[Any]:
        """Gather an object of every process, in the order of their indices."""
        everyone: list[Any] = [mine]
        if self.n > 1:
            everyone = [None] * self.n
            dist.all_gather_object(everyone, mine)
        return everyone

    def loss(self, loss: float, signal: int) -> tuple[float, int]:
        """Return the mean loss of all processes, and the largest signal number that one of them received."""
        if self.n == 1:
            return loss, signal
        told = torch.zeros(self.n, 2, dtype=torch.float64, device=self._device)
        told[self.index] = torch.tensor([loss, signal], dtype=torch.float64)
        dist.all_reduce(told)
        return float(told[:, 0].mean()), int(told[:, 1].max())

    def seconds(self, mine: float) -> float:
        """Return the seconds of the main process, so that a time limit ends all processes at the same step."""
        if self.n == 1:
            return mine
        told = torch.tensor([mine], dtype=torch.float64, device=self._device)
        dist.broadcast(told, 0)
        return float(told)

    def visits(self, costs: Costs) -> tuple[Tensor, Tensor]:
        """Return positions and densities of the visits of all processes, in the order of the batch, for a common proposal."""
        parts = self.objects((costs.position.cpu(), costs.density.cpu()))
        return torch.cat([p for p, _ in parts]), torch.cat([d for _, d in parts])

    def agree(self, what: str, mine: Any) -> None:
        """Raise DiffusionalError unless all processes have the same object; `what` describes it in the message."""
        said = self.objects(mine)
        if any(one != said[0] for one in said):
            raise DiffusionalError(
                f"the processes of this run differ in {what}: {'; '.join(map(str, said))}. Give all of them the same files, and a run "
                "folder on a shared disk"
            )

    def raise_together(self, fault: Exception | None) -> None:
        """Raise an error that occurred in any process in all of them."""
        for one in self.objects(fault):
            if one is not None:
                raise one

    @contextmanager
    def lost_one_named(self, checkpoints: Path) -> Iterator[None]:
        """Report that another process has died, whose end makes the next communication fail, instead of the transport's error."""
        try:
            yield
        except RuntimeError as error:
            if self.n > 1 and any(word in str(error) for word in _LOST):
                raise DiffusionalError(
                    f"another process of this run has ended ({str(error).splitlines()[0]}); the last good checkpoint in "
                    f"{checkpoints} is intact: continue with --resume, on any number of processes that divides the batch"
                ) from error
            raise
