"""The line that is printed for an error that ends a command, and the exit status."""

import errno
import re
import traceback
from pathlib import Path

from diffusional.errors import DiffusionalError

BAD_INPUT, INTERNAL = 2, 70
# Messages of torch, CUDA, NumPy and the system about a lack of memory, besides MemoryError.
_NO_MEMORY = re.compile(
    r"not enough memory|out of memory|cannot allocate memory|can't allocate memory|bad_alloc|unable to allocate|failed to allocate"
    r"|unable to mmap|CUBLAS_STATUS_ALLOC_FAILED|array is too big|invalid buffer size|storage size calculation overflowed",
    re.IGNORECASE,
)
_AMOUNT = re.compile(r"(?:allocate|buffer size:?) ([\d.,]+) ?(bytes|[KMGT]i?B)?", re.IGNORECASE)
# What to lower if memory is short, by command.
_LOWER = {
    "train": "--batch, --model.hidden or --model.widths, --data.size, or raise --system.accumulate, which divides a batch into parts",
    "evaluate": "the number of items (--split, or a smaller --data file), or use a computer or GPU with more memory",
    "sample": "--n",
    "information": "--samples, --timesteps or the number of items",
    "data": "--data.size, --levels or the number of items",
    "demo": "the number of other running programs",
}


def failure(error: BaseException, command: str = "") -> tuple[int, str]:
    """Return the exit status and the line for an error.

    >>> failure(DiffusionalError("levels must be at least 2, got 1"))
    (2, 'error: levels must be at least 2, got 1')
    >>> status, line = failure(MemoryError(), "sample")
    >>> line
    'error: out of memory. Lower --n'
    """
    if lacks_memory(error):
        amount = _amount(str(error))
        lower = _LOWER.get(command, "the size of the request")
        return BAD_INPUT, f"error: out of memory{amount}. Lower {lower}"
    if isinstance(error, DiffusionalError | OSError):
        return BAD_INPUT, f"error: {_line(str(error) or type(error).__name__)}"
    if isinstance(error, ImportError):
        return BAD_INPUT, f"error: a package could not be imported ({_line(str(error))}). Run: diffusional doctor"
    return INTERNAL, (
        f"internal error: {type(error).__name__}: {_line(str(error))[:500]} ({_place(error)}). This is a bug in diffusional: please "
        "report it with the output of the same command with --debug"
    )


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error is a lack of memory: MemoryError, torch's RuntimeError and OutOfMemoryError, or ENOMEM.

    >>> lacks_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.")), lacks_memory(OSError())
    (True, False)
    """
    if isinstance(error, DiffusionalError):
        return False
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError | ValueError) and _NO_MEMORY.search(str(error)) is not None


def _amount(said: str) -> str:
    found = _AMOUNT.search(said)
    if found is None:
        return ""
    number, unit = found.groups()
    try:
        amount = float(number.rstrip(".").replace(",", ""))
    except ValueError:
        return ""
    if unit in (None, "bytes"):
        amount, unit = (amount / 2**30, "GiB") if amount >= 2**30 else (amount / 2**20, "MiB")
    return f" ({amount:,.4g} {unit} more were needed)"


def _line(text: str) -> str:
    """Return text as one line."""
    return " ".join(text.splitlines())


def _place(error: BaseException) -> str:
    """Return where in this package an error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "diffusional" in Path(frame.filename).parts] or list(frames)
    if not own:
        return "nowhere"
    path = Path(own[-1].filename)
    return f"{path.parent.name}/{path.name}:{own[-1].lineno}"
