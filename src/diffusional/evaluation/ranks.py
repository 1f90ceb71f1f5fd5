"""Evaluation by several processes (torch.distributed): each computes its share of the rows, and all get all values."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from diffusional import launch
from diffusional.deprecation import renamed_names
from diffusional.errors import DiffusionalError

__getattr__ = renamed_names(__name__, {"count": "world_size"})


@contextmanager
def launched() -> Iterator[None]:
    """Join the processes that torchrun or `accelerate launch` has started with this one, and leave them at the end.

    Without a launcher, or with only some of its variables in the environment, there is one process. Raises DiffusionalError for
    variables that are not integers, and for processes that cannot connect to one another.

    >>> with launched():
    ...     share(3)
    tensor([0, 1, 2])
    """
    if launch.size() == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(_device())
    try:
        with launch.waiting():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    except (RuntimeError, ValueError) as error:  # torch's errors of a store or a network are RuntimeErrors
        raise DiffusionalError(
            f"the {launch.size()} processes of WORLD_SIZE could not connect at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} "
            f"({str(error).splitlines()[0]}). Start them with torchrun or accelerate launch, or unset WORLD_SIZE for one process"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def _device() -> int:
    index, there = launch.number("LOCAL_RANK", 0), torch.cuda.device_count()
    if not 0 <= index < there:
        raise DiffusionalError(
            f"expected LOCAL_RANK from 0 to {there - 1} (there are {there} GPUs), got {index}. Start at most {there} processes on this machine"
        )
    return index


def share(rows: int) -> Tensor:
    """Return the rows of this process: all rows if there is only one process.

    >>> share(3)
    tensor([0, 1, 2])
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if several() else (0, 1)
    return torch.arange(rows)[rank::world]


def collect(values: Tensor) -> Tensor:
    """Return the sum over processes of values (CPU), in which each process has set only its own rows.

    >>> collect(torch.ones(2))
    tensor([1., 1.])
    """
    if not several():
        return values
    shared = values.to(torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu"))
    dist.all_reduce(shared)
    return shared.cpu()


def agreed(values: Tensor) -> Tensor:
    """Return the values (CPU) of the first process, in every process.

    Results of linear algebra may differ between machines in the last bits. Values that decide on draws must not differ, since processes that
    decide differently would wait for each other forever.

    >>> agreed(torch.ones(2))
    tensor([1., 1.])
    """
    return collect(values if is_main() else torch.zeros_like(values))


def world_size() -> int:
    """Return the number of processes.

    >>> world_size()
    1
    """
    return dist.get_world_size() if several() else 1


def is_main() -> bool:
    """Return whether this process is the one that writes files.

    >>> is_main()
    True
    """
    return not several() or dist.get_rank() == 0


def several() -> bool:
    """Return whether there are several processes.

    >>> several()
    False
    """
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
