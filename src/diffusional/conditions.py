"""Conditions: a tensor, or several tensors by name, with one row for each item.

Networks receive a condition as the caller gave it: a tensor, or a dict of tensors (a text embedding and a class label, for
example). All code between the caller and the network, such as batches, blocks of levels and hashes, handles both through the functions
here. All of them accept None (no condition).

A class label is a condition of integers (N,): the numbers of classes whose names are `Dataset.classes` and `model.classes`. `labels`
turns names into such numbers.
"""

import copy
import difflib
import hashlib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
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
        DiffusionalError: for other types, an empty mapping, a number of rows other than `items`, and values that are NaN or infinite.

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
        if (value.is_floating_point() or value.is_complex()) and not bool(value.isfinite().all()):
            row = int((~value.isfinite()).reshape(items, -1).any(1).nonzero()[0])
            raise DiffusionalError(f"{what} has a value that is NaN or infinite in row {row}; expected finite numbers")


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


def concatenated(conditions: Sequence[Condition]) -> Any:
    """Return several conditions of one form one after the other.

    >>> concatenated([{"label": torch.zeros(1)}, {"label": torch.ones(1)}])
    {'label': tensor([0., 1.])}
    """
    first = conditions[0]
    if isinstance(first, Tensor):
        return torch.cat([one for one in conditions if isinstance(one, Tensor)])
    return {name: torch.cat([one[name] for one in conditions if not isinstance(one, Tensor)]) for name in first}


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


def dropped(condition: Condition, rows: Tensor | None = None, kept: Collection[str] = ()) -> Any:
    """Return a condition that is missing in the rows that the mask `rows` (B,) selects; by default in all rows. Entries of the names `kept`
    are not dropped.

    A missing row has the label −1, real numbers that are NaN, and a mask that is False everywhere. Networks built with
    `null=True` replace it by a learned null condition. Other networks refuse it.

    >>> dropped(torch.tensor([3, 4]), torch.tensor([False, True]))
    tensor([ 3, -1])
    >>> dropped({"text": torch.ones(1, 2)})
    {'text': tensor([[nan, nan]])}
    """
    if not isinstance(condition, Tensor):
        return {name: value if name in kept else dropped(value, rows) for name, value in condition.items()}
    if condition.dtype == torch.bool:
        missing = torch.zeros_like(condition)
    elif condition.is_floating_point() or condition.is_complex():
        missing = torch.full_like(condition, torch.nan)
    else:
        condition = condition.long()
        missing = torch.full_like(condition, -1)
    if rows is None:
        return missing
    return torch.where(rows.reshape(-1, *(1,) * (condition.ndim - 1)), missing, condition)


def missing_rows(condition: Tensor) -> Tensor:
    """Return a mask (B,) of the rows of a tensor that `dropped` has made missing.

    >>> missing_rows(torch.tensor([3, -1])), missing_rows(torch.tensor([[0.0, 1.0], [torch.nan, torch.nan]]))
    (tensor([False,  True]), tensor([False,  True]))
    """
    if condition.dtype == torch.bool:
        absent = ~condition
    elif condition.is_floating_point() or condition.is_complex():
        absent = condition.isnan()
    else:
        absent = condition == -1
    return absent.reshape(len(condition), -1).all(1)


def requires_condition(network: Callable[..., Any], inputs: int = 2) -> bool:
    """Return whether a network cannot be called with `inputs` arguments only, so that its condition may not be left out.

    The attribute `requires_condition` of the network decides, if it has one; otherwise its signature does.

    >>> requires_condition(lambda z, log_snr, c: z), requires_condition(lambda z, log_snr, c=None: z)
    (True, False)
    """
    stated = getattr(network, "requires_condition", None)
    return _required(network, (None,) * inputs) is not None if stated is None else bool(stated)


def called(network: Callable[..., Any], *inputs: Any, condition: Condition | None = None) -> Any:
    """Call `network(*inputs)`, or the network with a condition, if there is one.

    The condition is passed in the way that the signature of the network (of `forward`, for a module) allows, the first of:

    1. as one more positional argument, whatever its name;
    2. as `condition=…`, to a network with a keyword-only parameter of that name, or with `**kwargs`;
    3. by name, if it is a mapping whose names are all keyword parameters.

    A network marked by `ignoring_condition` is called without it.

    Raises DiffusionalError if the network has no parameter for the condition, or requires a condition and there is none.

    >>> called(lambda z, c: z + c, torch.ones(2), condition=torch.ones(2))
    tensor([2., 2.])
    >>> called(lambda z, *, label: z + label, torch.ones(2), condition={"label": torch.ones(2)})
    tensor([2., 2.])
    >>> called(lambda z, c: z + c, torch.ones(2))
    Traceback (most recent call last):
    diffusional.errors.DiffusionalError: <lambda> requires a condition (its parameter 'c'), but none was given; pass condition=…, one row per item
    """
    if condition is None or getattr(getattr(network, "__self__", network), _IGNORES, False):
        try:
            return network(*inputs)
        except TypeError as error:
            needed = _required(network, inputs)
            if needed is None:
                raise
            raise DiffusionalError(
                f"{_name(network)} requires a condition (its parameter {needed!r}), but none was given; pass condition=…, one row "
                "per item"
            ) from error
    try:
        more, named = _way(network, inputs, condition)
    except TypeError as error:
        raise DiffusionalError(
            f"a condition was given, but {_name(network)} takes {len(inputs)} inputs and no condition ({error}). Use a network "
            "that takes one, or leave the condition out"
        ) from error
    return network(*inputs, *more, **named)


def takes_condition(network: Callable[..., Any], *inputs: Any, condition: Condition) -> bool:
    """Return whether `called(network, *inputs, condition=condition)` finds a parameter for the condition.

    >>> takes_condition(lambda z: z, torch.ones(2), condition=torch.ones(2))
    False
    """
    try:
        _way(network, inputs, condition)
    except TypeError:
        return False
    return True


def _way(
    network: Callable[..., Any], inputs: tuple[Any, ...], condition: Condition
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments and keyword arguments that pass a condition; raises TypeError if there are none."""
    ways: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((condition,), {}), ((), {"condition": condition})]
    if isinstance(condition, Mapping):
        ways.append(((), dict(condition)))
    try:
        signature = inspect.signature(_function(network))
    except ValueError:  # some built-in functions have no signature: the call itself raises if it fails
        return ways[0]
    reasons = []
    for more, named in ways:
        try:
            signature.bind(*inputs, *more, **named)
        except TypeError as error:
            reasons.append(error)
        else:
            return more, named
    raise reasons[0]


def _function(network: Callable[..., Any]) -> Callable[..., Any]:
    return network.forward if isinstance(network, torch.nn.Module) else network


def _required(network: Callable[..., Any], inputs: tuple[Any, ...]) -> str | None:
    """Return the name of the first parameter that `network(*inputs)` leaves without a value; None if there is none."""
    try:
        signature = inspect.signature(_function(network))
        bound = signature.bind_partial(*inputs).arguments
    except (TypeError, ValueError):
        return None
    optional = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return next(
        (
            name
            for name, parameter in signature.parameters.items()
            if name not in bound and parameter.default is parameter.empty and parameter.kind not in optional
        ),
        None,
    )


def _name(network: object) -> str:
    if inspect.ismethod(network):
        return f"{type(network.__self__).__name__}.{network.__name__}"
    return getattr(network, "__name__", type(network).__name__)


# Attribute of networks and models that are called without the condition on purpose.
_IGNORES = "ignores_condition"


class _Ignoring:
    """A function that is called without the condition."""

    ignores_condition = True

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__name__ = _name(function)

    def __call__(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def ignoring_condition(model: Any) -> Any:
    """Return a model of p(x) as one of p(x|c) that does not depend on c: it takes any condition, and its networks do not get it.

    For comparing an unconditional model with a conditional one on the same items: `compare(a, ignoring_condition(b), x,
    condition=c)` estimates what the condition is worth. The provenance of the result has "condition_ignored" for b.

    All tensors are shared with `model`, which is not changed.

    >>> from diffusional import Denoiser
    >>> denoiser = ignoring_condition(Denoiser(lambda z, log_snr: 0 * z))
    >>> denoiser(torch.ones(2, 1), torch.zeros(2), torch.tensor([3, 4])).noise.flatten()
    tensor([0., 0.])
    """
    tensors: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    other = copy.deepcopy(model, tensors)
    for module in other.modules():
        for name in ("module", "network", "encoder", "decoder"):
            function = module.__dict__.get(name)
            if callable(function):
                module.__dict__[name] = _Ignoring(function)
        setattr(module, _IGNORES, True)
    return other


def ignores_condition(model: Any) -> bool:
    """Return whether a model was made by `ignoring_condition`."""
    return bool(getattr(model, _IGNORES, False))


def labels(wanted: str | int | Sequence[str | int] | Tensor, classes: Sequence[str], n: int | None = None) -> Tensor:
    """Return class labels as a condition: int64 numbers (n,) of the classes with the given names.

    Args:
        wanted: names of classes, or their numbers 0 … K−1. If a name is a number, such as a digit's, the name counts.
        classes: the names of all K classes: `dataset.classes` or `model.classes`.
        n: the number of rows; `wanted` is repeated in turn. Defaults to one row for each of `wanted`.

    Raises DiffusionalError for a class that does not exist, no class at all, and more classes than rows.

    >>> labels("cat", ["cat", "dog"], 3), labels([1, "cat"], ["cat", "dog"])
    (tensor([0, 0, 0]), tensor([1, 0]))
    >>> labels(["cow"], ["cat", "dog"])
    Traceback (most recent call last):
    diffusional.errors.DiffusionalError: unknown class 'cow'; expected one of the 2 classes 'cat', 'dog'
    """
    if isinstance(wanted, Tensor):
        check_labels(wanted, len(classes), "the label")
    given: list[Any] = [wanted] if isinstance(wanted, str | int) else list(wanted)
    names = {name: number for number, name in enumerate(classes)}
    numbered = any(_whole(name) is not None for name in classes)
    found = []
    for one in given:
        number = int(one) if isinstance(one, Tensor) else names.get(str(one))
        if number is None and not numbered:
            number = _whole(str(one))
        if number is None or isinstance(one, bool) or not 0 <= number < len(classes):
            close = difflib.get_close_matches(str(one), classes, n=1)
            hint = (
                f"did you mean {close[0]!r}?"
                if close
                else f"expected one of the {len(classes)} classes {_some(classes)}"
            )
            raise DiffusionalError(f"unknown class {one!r}; {hint}")
        found.append(number)
    if not found or (n is not None and len(found) > n):
        raise DiffusionalError(
            f"{len(found)} labels were given for {'any number of' if n is None else n} items; expected at least one, and no more "
            "than there are items"
        )
    n = len(found) if n is None else n
    return torch.tensor(found).repeat(-(-n // len(found)))[:n]


def check_labels(condition: Any, classes: int, what: str = "the condition", missing: bool = False) -> None:
    """Check that a condition is a tensor (B,) of integers 0 … classes − 1; values are not checked while torch compiles.

    With `missing`, −1 is allowed as well: no label (see `dropped`).

    >>> check_labels(torch.tensor([0, 2]), 3)
    >>> check_labels(torch.tensor([0, 3]), 3)
    Traceback (most recent call last):
    diffusional.errors.DiffusionalError: the condition has label 3 in row 1, expected 0 … 2: there are 3 classes
    """
    integer = isinstance(condition, Tensor) and not (
        condition.is_floating_point() or condition.is_complex() or condition.dtype == torch.bool
    )
    if not integer or condition.ndim != 1:
        shape = f"{condition.dtype} of shape {tuple(condition.shape)}" if isinstance(condition, Tensor) else ""
        raise DiffusionalError(
            f"{what} is {shape or 'a ' + type(condition).__name__}, expected a tensor of integers (B,), the numbers of {classes} classes"
        )
    if torch.compiler.is_compiling():
        return
    wrong = (condition < (-1 if missing else 0)) | (condition >= classes)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DiffusionalError(
            f"{what} has label {int(condition[row])} in row {row}, expected 0 … {classes - 1}: there are {classes} classes"
        )


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


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


def equal_conditions(a: Condition | None, b: Condition | None) -> bool:
    """Return whether two conditions give each item the same.

    >>> equal_conditions(torch.tensor([1, 2]), torch.tensor([1, 2])), equal_conditions(torch.tensor([1, 2]), torch.tensor([1, 3]))
    (True, False)
    """
    if a is None or b is None:
        return a is b
    return row_digests(a) == row_digests(b)


def once_each(
    known: dict[bytes, tuple[Tensor, ...]], keys: Sequence[bytes], compute: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Return rows (B, …) by the keys of B items, such as `row_digests`. Those that are not `known` are computed once, and kept there.

    Args:
        known: the rows of items so far, by key, to which new ones are added.
        keys: of the B items.
        compute: returns the rows of some of them, an index (n,).

    >>> known = {}
    >>> once_each(known, [b"a", b"b", b"a"], lambda rows: (10 * rows,))
    (tensor([20, 10, 20]),)
    """
    where = {key: i for i, key in enumerate(keys) if key not in known}
    if where:
        found = compute(torch.tensor(list(where.values())))
        known.update(zip(where, zip(*found, strict=True), strict=True))
    return tuple(map(torch.stack, zip(*(known[key] for key in keys), strict=True)))
