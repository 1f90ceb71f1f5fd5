"""Calls of networks of any origin: the single output tensor, or an error that describes what is wrong with it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffusional.conditions import Condition, called
from diffusional.errors import DiffusionalError


def call(
    network: Callable[..., Any], *inputs: Tensor, condition: Condition | None = None, role: str = "network"
) -> Tensor:
    """Call a network and return its output, which must be a single floating-point tensor on the device of the inputs.

    The network gets copies of the inputs and the condition: one that changes them in place (`nn.ReLU(inplace=True)`, `z *= 2`)
    would otherwise change the items of the caller and the z that its output is combined with.

    Args:
        network: any module or function.
        inputs: its arguments, before the condition.
        condition: its last argument, if there is one.
        role: the role of the network in the model, for messages.

    Raises DiffusionalError for any other output, for networks on another device or of another type than the inputs, and for
    group normalisation of a single value, which torch refuses. Other exceptions of the network propagate.

    >>> call(lambda z, s: (z, s), torch.zeros(2, 3), torch.zeros(2))
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: the network (function) returned a tuple of 2, expected a tensor. Wrap it in a function that returns the intended tensor
    """
    given = condition
    if isinstance(condition, Tensor):
        given = condition.clone()
    elif condition is not None:
        given = {name: value.clone() for name, value in condition.items()}
    with explained(network, *inputs, role=role):
        output = called(network, *(value.clone() for value in inputs), condition=given)
    place = inputs[0].device
    if not isinstance(output, Tensor):
        said = f"returned {_described(output)}, expected a tensor. {_advice(network, output)}"
    elif not output.dtype.is_floating_point:
        said = f"returned {_type(output.dtype)} values, expected floating-point numbers"
    elif output.device != place:
        said = f"returned a tensor on {output.device} for inputs on {place}; expected one device for both"
    else:
        return output
    raise DiffusionalError(f"the {role} ({_kind(network)}) {said}")


@contextmanager
def explained(network: Any, *inputs: Tensor, role: str = "network") -> Iterator[None]:
    """Raise DiffusionalError instead of an error in a call of a network whose cause the caller can change, such as weights of another type
    or on another device than the inputs.

    >>> network, x = nn.Linear(2, 2).double(), torch.zeros(3, 2)
    >>> with explained(network, x, role="ladder"):
    ...     network(x)
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: the ladder (Linear) has weights of float64, its input is float32: give both one type with .to(...)
    """
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        said = _explained(network, inputs, error)
        if said is None:
            raise
        raise DiffusionalError(f"the {role} ({_kind(network)}) {said}") from error


def shape_hint(output: Tensor, z: Tensor) -> str:
    """Return the likely cause of a wrong shape of a denoiser's output (B, …) for z (B, C, …), as a sentence, or "".

    >>> shape_hint(torch.zeros(2, 6, 4), torch.zeros(2, 3, 4))
    '. A network with twice the channels may predict a variance as well: learns_variance=True and variance="learned"'
    """
    if output.ndim == z.ndim and output.shape[2:] == z.shape[2:] and output.shape[:2] == (len(z), 2 * z.shape[1]):
        return '. A network with twice the channels may predict a variance as well: learns_variance=True and variance="learned"'
    if output.ndim == z.ndim and output.shape[1:] == z.shape[1:]:
        return ". The output must have one row per item"
    if output.numel() == z.numel():
        return ". The number of values is right: reshape the output"
    return ""


def _explained(network: Any, inputs: tuple[Tensor, ...], error: Exception) -> str | None:
    """Return why a call failed, if the caller can change it, else None."""
    if isinstance(error, DiffusionalError):
        return f"could not be called: {error}. {_FROM_DIFFUSERS}" if from_diffusers(network) else None
    if isinstance(error, TypeError):
        return (
            f"could not be called: {error}. {_FROM_DIFFUSERS}"
            if from_diffusers(network) and "argument" in str(error)
            else None
        )
    if "more than 1 value per channel" in str(error):
        return (
            f"normalises a single value ({error}), as batch normalisation in training and group normalisation of one item do: "
            "use at least 2 items in a batch, or groups of several channels"
        )
    parameters = list(network.parameters()) if isinstance(network, nn.Module) else []
    devices, place = {p.device for p in parameters}, inputs[0].device
    if devices and place not in devices:
        where = ", ".join(sorted(map(str, devices)))
        return f"is on {where}, its input on {place}: move both to one device with .to(...)"
    types = {p.dtype for p in parameters if p.dtype.is_floating_point}
    if types and inputs[0].dtype not in types and "dtype" in str(error):
        own = ", ".join(sorted(map(_type, types)))
        return f"has weights of {own}, its input is {_type(inputs[0].dtype)}: give both one type with .to(...)"
    return None


_FROM_DIFFUSERS = (
    "Use df.networks.FromDiffusers(network), and give Denoiser the time that the network was trained with, such as "
    "time=diffusional.models.time.TrainedIndex(schedule), or load its folder with df.load_checkpoint"
)


def _advice(network: Any, output: Any) -> str:
    if from_diffusers(network) or isinstance(getattr(output, "sample", None), Tensor):
        return _FROM_DIFFUSERS
    return "Wrap it in a function that returns the intended tensor"


def from_diffusers(network: Any) -> bool:
    """Return whether an object is one of diffusers, or of a class derived from one of its.

    >>> from_diffusers(nn.Identity())
    False
    """
    return any(kind.__module__.partition(".")[0] == "diffusers" for kind in type(network).__mro__)


def _kind(network: Any) -> str:
    return type(network).__name__


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _described(output: Any) -> str:
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    if isinstance(output, dict) and type(output) is dict:
        return f"a dict of {', '.join(map(repr, output)) or 'nothing'}"
    return "nothing (None)" if output is None else f"a {type(output).__name__}"
