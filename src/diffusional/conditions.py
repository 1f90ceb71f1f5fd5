"""Conditions: a tensor, or several tensors by name, with one row for each item.

Networks receive a condition as the caller gave it: a tensor, or a dict of tensors (a text embedding and a class label, for
example). All code between the caller and the network, such as batches, blocks of levels and hashes, handles both through the functions
here. All of them accept None (no condition).
"""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusional.errors import DiffusionalError

# One row for each item, (N, …), or several such tensors by name.
Condition = Tensor | Mapping[str, Tensor]

# The name under which a single tensor is hashed; named tensors are hashed as "condition.name".
_SINGLE = "condition"


def check_condition(condition: Any, items: int) -> None:
    """Check that `condition` is None, a tensor (items, …), or a mapping from names to such tensors.

    Raises:
        DiffusionalError: for other types, an empty mapping, and a number of rows other than `items`.

    >>> check_condition({"text": torch.zeros(4, 7, 2), "label": torch.ones(4)}, 4)
    >>> check_condition(torch.zeros(3, 1), 4)
    Traceback (most recent call last):
    diffusional.errors.DiffusionalError: condition has 3 rows for 4 items; expected one row per item
    """
    if condition is None:
        return
    if not isinstance(condition, Tensor | Mapping):
        raise DiffusionalError(
            f"condition must be a tensor or a dict of tensors by name, got {type(condition).__name__}; give one row per item"
        )
    if isinstance(condition, Mapping) and not condition:
        raise DiffusionalError("condition is an empty dict; give at least one tensor, or None for no condition")
    parts = {"condition": condition} if isinstance(condition, Tensor) else condition
    for name, value in parts.items():
        what = "condition" if condition is value else f"condition[{name!r}]"
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise DiffusionalError(
                f"{what} must be a tensor under a string name, got {type(value).__name__}; give one row per item"
            )
        if value.ndim == 0 or len(value) != items:
            rows = "no rows (a scalar)" if value.ndim == 0 else f"{len(value)} rows"
            raise DiffusionalError(f"{what} has {rows} for {items} items; expected one row per item")


def rows_of(condition: Condition | None, index: Tensor | slice) -> Any:
    """Return the rows `index` (a tensor of positions, a mask or a slice) of a condition, such as those of a batch.

    >>> rows_of({"label": torch.arange(4)}, torch.tensor([3, 0]))
    {'label': tensor([3, 0])}
    """
    if condition is None:
        return None
    if isinstance(condition, Tensor):
        return condition[index]
    return {name: value[index] for name, value in condition.items()}


def repeated(condition: Condition | None, times: int) -> Any:
    """Repeat a condition (B, …) to (times · B, …): the rows of item b are b, B + b, 2 B + b, ….

    >>> repeated(torch.tensor([[1], [2]]), 2).flatten().tolist()
    [1, 2, 1, 2]
    """
    if condition is None:
        return None
    if isinstance(condition, Tensor):
        return condition.repeat(times, *(1,) * (condition.ndim - 1))
    return {name: repeated(value, times) for name, value in condition.items()}


def moved(condition: Condition | None, device: torch.device) -> Any:
    """Move a condition to `device`; types are unchanged.

    >>> moved({"label": torch.ones(2)}, torch.device("cpu"))
    {'label': tensor([1., 1.])}
    """
    if condition is None:
        return None
    if isinstance(condition, Tensor):
        return condition.to(device)
    return {name: value.to(device) for name, value in condition.items()}


def called(network: Callable[..., Any], *inputs: Tensor, condition: Condition | None = None) -> Any:
    """Call `network(*inputs)`, or `network(*inputs, condition)` if there is a condition.

    Raises DiffusionalError if the network has no parameter for the condition.

    >>> called(lambda z, c: z + c, torch.ones(2), condition=torch.ones(2))
    tensor([2., 2.])
    """
    if condition is None:
        return network(*inputs)
    function = network.forward if isinstance(network, torch.nn.Module) else network
    try:
        inspect.signature(function).bind(*inputs, condition)
    except TypeError as error:
        raise DiffusionalError(
            f"a condition was given, but {_name(network)} takes {len(inputs)} inputs and no condition ({error}). Use a network "
            "that takes one, or leave the condition out"
        ) from error
    except ValueError:  # some built-in functions have no signature: the call itself raises if it fails
        pass
    return network(*inputs, condition)


def _name(network: object) -> str:
    return getattr(network, "__name__", type(network).__name__)


def by_name(condition: Condition | None) -> dict[str, Tensor]:
    """Return the tensors of a condition to hash, by names that distinguish a single tensor from a dict with one entry.

    >>> list(by_name(torch.ones(2))), list(by_name({"label": torch.ones(2)})), by_name(None)
    (['condition'], ['condition.label'], {})
    """
    if condition is None:
        return {}
    if isinstance(condition, Tensor):
        return {_SINGLE: condition}
    return {f"{_SINGLE}.{name}": condition[name] for name in sorted(condition)}


def row_digests(condition: Condition) -> list[bytes]:
    """Return a 32-byte hash of the values of each row; the type of floating-point numbers does not matter.

    >>> one, two, three = row_digests(torch.tensor([[0.0], [1.0], [0.0]]))
    >>> one == three, one == two
    (True, False)
    """
    hashes: list[Any] = []
    for name, value in by_name(condition).items():
        values = value.detach().cpu()
        values = values.double() if values.dtype.is_floating_point else values
        values = torch.view_as_real(values.to(torch.complex128)) if values.dtype.is_complex else values
        values = values if values.dtype.is_floating_point else values.long()
        array = np.ascontiguousarray(values.reshape(len(values), -1).numpy())
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        hashes = hashes or [hashlib.blake2b(digest_size=32) for _ in range(len(array))]
        for digest, row in zip(hashes, array, strict=True):
            digest.update(f"{name}:{row.nbytes};".encode())
            digest.update(row.tobytes())
    return [digest.digest() for digest in hashes]
