"""diffusers' networks, whatever their signatures: `network(z, time, condition)` with conditions by the names of their parameters."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusional.conditions import Condition, check_labels
from diffusional.errors import DiffusionalError
from diffusional.interop.packing import check_readable, packed, packing_of, unpacked

# Parameters other than conditions.
_TIMES = ("timestep", "timesteps", "t")
_OPTIONS = ("return_dict", "attention_kwargs", "cross_attention_kwargs", "joint_attention_kwargs")
# Conditions that a network takes inside a dict.
_NESTED = "added_cond_kwargs"


# Places that a caller may give instead of the pipeline's.
_OWN = ("img_ids", "txt_ids", "img_shapes")
# Conditions without which a network cannot be called, although its `forward` has defaults for them.
_NEEDED = {"SD3Transformer2DModel": ("encoder_hidden_states", "pooled_projections")}


class DiffusersNetwork(nn.Module):
    """A network of diffusers, called with a condition by name.

    A condition is a tensor, which is the network's labels if it has any, otherwise its text embedding; or a dict of tensors by the names of
    the parameters of the network's `forward`, with entries of `added_cond_kwargs` among them.

    Args:
        network: such as a UNet2DModel, UNet2DConditionModel or DiTTransformer2DModel.
        outputs: number of output channels to keep; the others are dropped, as diffusers' pipelines do. None for all.

    Raises DiffusionalError for a network whose pipeline makes its input in a way that is not known, for a condition that is missing or unknown, for labels of a network without classes, and for labels that are not integers (B,) of its classes.

    >>> from diffusers import UNet2DModel
    >>> net = UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=4, num_class_embeds=10,
    ...                   down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    >>> network = DiffusersNetwork(net)
    >>> network(torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.tensor([3, 9])).shape, network.required
    (torch.Size([2, 1, 8, 8]), ('class_labels',))
    """

    def __init__(self, network: nn.Module, outputs: int | None = None) -> None:
        super().__init__()
        self.network, self.outputs = network, outputs
        names = list(inspect.signature(network.forward).parameters)
        times = [name for name in names if name in _TIMES]
        if not names or not times:
            raise DiffusionalError(
                f"expected the forward of a {type(network).__name__} to have z and a timestep, got the parameters {', '.join(names)}; call "
                "it from a function of (z, time, condition), and use df.wrap"
            )
        self.packing = packing_of(network)
        check_readable(network, dict.fromkeys(names))
        self._z, self._time = names[0], times[0]
        self.conditions = tuple(
            name for name in names[1:] if name not in (*_TIMES, *_OPTIONS, _NESTED) and "kwargs" not in name
        )
        self._nested = _NESTED in names

    @property
    def classes(self) -> int | None:
        """The number of classes of its labels; None if it has none."""
        config: Any = getattr(self.network, "config", {})
        if "class_labels" not in self.conditions:
            return None
        if type(self.network).__name__ in ("DiTTransformer2DModel", "Transformer2DModel"):
            return config.get("num_embeds_ada_norm")
        return config.get("num_class_embeds")

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the conditions without which it cannot be called."""
        config: Any = getattr(self.network, "config", {})
        signature = inspect.signature(self.network.forward).parameters
        needed = {name for name in self.conditions if signature[name].default is inspect.Parameter.empty}
        kinds = [*(config.get("down_block_types") or ()), config.get("mid_block_type") or ""]
        if "encoder_hidden_states" in self.conditions and "down_block_types" in config:
            crossing = any("CrossAttn" in kind for kind in kinds)
            (needed.add if crossing else needed.discard)("encoder_hidden_states")
        if self.classes is not None or config.get("class_embed_type") is not None:
            needed.add("class_labels")
        needed |= set(_NEEDED.get(type(self.network).__name__, ()))
        if self.packing is not None:
            needed -= {"img_ids", "txt_ids", "img_shapes"}
            needed |= set(self.packing.needs) | ({"guidance"} if config.get("guidance_embeds") else set())
        return tuple(name for name in self.conditions if name in needed)

    def forward(self, z: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        named: dict[str, Any] = {} if condition is None else self._named(condition)
        missing = [name for name in self.required if name not in named]
        kind = type(self.network).__name__
        if missing:
            raise DiffusionalError(
                f"a {kind} needs the condition {' and '.join(missing)}, got {', '.join(named) or 'none'}: give condition="
                + (
                    "labels, integers (N,)"
                    if missing == ["class_labels"]
                    else "{" + ", ".join(f'"{name}": …' for name in missing) + "} with one row for each item"
                )
            )
        if "class_labels" in named and self.classes is not None:
            check_labels(named["class_labels"], self.classes)
        if named.get("class_labels") is not None and getattr(self.network, "class_embedding", self) is None:
            raise DiffusionalError(
                f"expected no class_labels, as this {kind} was built without classes, got labels of shape "
                f"{tuple(named['class_labels'].shape)}: leave the condition out"
            )
        nested = {name: named.pop(name) for name in list(named) if name not in self.conditions}
        if nested:
            named[_NESTED] = nested
        # By name, so that the order of parameters does not matter; those without a default are given, as None where nothing is required.
        signature = inspect.signature(self.network.forward).parameters
        for name in self.conditions:
            if name not in named and signature[name].default is inspect.Parameter.empty:
                named[name] = None
        seen = z
        if self.packing is not None:
            seen, more = packed(z, self.packing, named)
            named = {**more, **{name: one for name, one in named.items() if name not in more or name in _OWN}}
        output = self.network(**{self._z: seen, self._time: time}, **named)
        sample = getattr(output, "sample", output)
        if isinstance(sample, tuple | list) and len(sample):
            sample = sample[0]
        if not isinstance(sample, Tensor):
            raise DiffusionalError(
                f"expected the output of a {kind} to have a tensor `sample`, got a {type(output).__name__}; wrap it in a function that "
                "returns the tensor, and use df.wrap"
            )
        if self.packing is not None:
            sample = unpacked(sample, z)
        return sample if self.outputs is None else sample[:, : self.outputs]

    def _named(self, condition: Condition) -> dict[str, Tensor]:
        dtype = next((p.dtype for p in self.parameters() if p.dtype.is_floating_point), torch.float32)

        def typed(value: Tensor) -> Tensor:
            return value.to(dtype) if value.dtype.is_floating_point else value

        if not isinstance(condition, Mapping):
            if not self.conditions:
                raise DiffusionalError(
                    f"a condition was given, but a {type(self.network).__name__} takes none; leave it out"
                )
            required = self.required
            name = required[0] if len(required) == 1 else self.conditions[0]
            if "class_labels" in self.conditions and self.classes is not None:
                name = "class_labels"
            return {name: typed(condition)}
        unknown = [name for name in condition if name not in self.conditions]
        if unknown and not self._nested:
            close = difflib.get_close_matches(unknown[0], self.conditions, n=1)
            raise DiffusionalError(
                f"unknown condition {unknown[0]!r} of a {type(self.network).__name__}; "
                + (
                    f"did you mean {close[0]!r}?"
                    if close
                    else f"expected some of {', '.join(self.conditions) or 'none'}"
                )
            )
        return {name: typed(value) for name, value in condition.items()}
