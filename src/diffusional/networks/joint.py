"""A network of the usual kind for two conditions: the variable of the stage before in a system, and the condition of the system."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, one_hot

from diffusional.condition_form import ConditionForm, split_first
from diffusional.conditions import Condition, check_labels, missing_rows
from diffusional.errors import DiffusionalError
from diffusional.networks.conditioning import Adapter, pooled


class JointAdapter(Adapter):
    """A network z, log_snr, condition → output, for a condition of a `joint` form, such as {"low": (B, C, h, w), "condition": (B, n)}.

    The variable of the stage before is read as further input channels, scaled to the size of z, if it is an image, otherwise as numbers. The
    other condition is read as numbers: labels as unit vectors, tokens as their mean.

    Args:
        network: for `channels(form)` further channels, and `numbers(form, null)` numbers as its condition.
        form: of the condition.
        null: whether the other condition may be missing, in all rows or in some. The variable of the stage before may not.

    >>> from diffusional.networks import MLP
    >>> form = ConditionForm.of({"latent": torch.randn(9, 3), "condition": torch.arange(9)})
    >>> network = JointAdapter(MLP((4,), hidden=8, condition_dim=JointAdapter.numbers(form, True)), form, null=True)
    >>> network(torch.zeros(2, 4), torch.zeros(2), {"latent": torch.ones(2, 3), "condition": torch.tensor([8, 0])}).shape
    torch.Size([2, 4])
    """

    first_mean: Tensor
    first_scale: Tensor
    own_mean: Tensor
    own_scale: Tensor
    requires_condition = True

    def __init__(self, network: nn.Module, form: ConditionForm, null: bool = False) -> None:
        super().__init__()
        self.network, self.form, self.null = network, form, null
        (self.key, self.first), (_, self.own) = form.parts
        # Entries of the condition without which it has no prediction, if the others may be missing.
        self.always_given = (self.key,) if null else ()
        for name, part in (("first", self.first), ("own", self.own)):
            if part.kind == "numbers":
                self.register_buffer(f"{name}_mean", torch.tensor(part.mean))
                self.register_buffer(f"{name}_scale", torch.tensor(part.scale))

    @staticmethod
    def channels(form: ConditionForm) -> int:
        """Return the number of further input channels of the network."""
        (_, first), _ = form.parts
        return first.shape[0] if first.kind == "image" else 0

    @staticmethod
    def numbers(form: ConditionForm, null: bool) -> int:
        """Return the number of numbers that the network gets; with `null`, one of them is 1 where the other condition is missing."""
        (_, first), (_, own) = form.parts
        return _width(own) + null + (first.shape[0] if first.kind == "numbers" else 0)

    def forward(self, z: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        if not isinstance(condition, Mapping) or self.key not in condition:
            raise DiffusionalError(
                f"the network requires a condition, {self.form}, but {self.key!r} was not given; pass condition=…"
            )
        variable, own = split_first(condition, self.key)
        if tuple(variable.shape) != (len(z), *self.first.shape):
            raise DiffusionalError(
                f"expected {self.key!r} of shape {(len(z), *self.first.shape)} in the condition, got {tuple(variable.shape)}"
            )
        if own is None and not self.null:
            raise DiffusionalError(
                f"the network requires a condition, {self.form}, but only {self.key!r} was given; pass condition=…"
            )
        numbers = [self._vector(own, z)]
        if self.first.kind == "image":
            z = torch.cat([z, interpolate(variable.to(z), size=z.shape[2:], mode="nearest")], 1)
        else:
            numbers.append((variable - self.first_mean) / self.first_scale)
        return self.network(z, log_snr, torch.cat(numbers, 1))

    def _vector(self, own: Condition | None, z: Tensor) -> Tensor:
        """Return the other condition as numbers (B, n), where a missing one is 0; with `null` the last is 1 where it is missing."""
        if own is None:
            return torch.cat([z.new_zeros(len(z), _width(self.own)), z.new_ones(len(z), 1)], 1)
        if self.own.kind == "labels":
            check_labels(own, self.own.classes, "the label", missing=self.null)
            assert isinstance(own, Tensor)
            values, missing = one_hot(own.clamp(min=0).long(), self.own.classes).to(z), missing_rows(own)
        elif self.own.kind == "tokens":
            values = pooled(own)
            missing = missing_rows(values)
        else:
            assert isinstance(own, Tensor)
            values, missing = (own - self.own_mean) / self.own_scale, missing_rows(own)
        if values.shape[1] != _width(self.own):
            raise DiffusionalError(f"expected a condition of {self.form}, got {values.shape[1]} numbers for {self.own}")
        values = torch.where(missing[:, None], 0, values).to(z)
        return torch.cat([values, missing[:, None].to(z)], 1) if self.null else values


def _width(own: ConditionForm) -> int:
    return own.classes if own.kind == "labels" else own.shape[-1]
