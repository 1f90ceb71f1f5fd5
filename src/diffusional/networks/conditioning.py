"""Networks for conditions that are numbers, images or tokens: the condition is prepared, and goes to a network of the usual kind.

numbers   (B, n), standardised, as the network's `condition_dim` numbers
image     scaled to the size of z (nearest), as further input channels
tokens    the mean of the tokens that are present, as the network's `condition_dim` numbers, or to a network with cross-attention
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from diffusional.condition_form import ConditionForm
from diffusional.conditions import Condition, missing_rows
from diffusional.errors import DiffusionalError


class Adapter(nn.Module):
    """A module around a `network`, whose time input and activation checkpointing are the network's."""

    network: nn.Module

    @property
    def needs_time(self) -> bool:
        """Whether a `Denoiser` must be given the network's time input."""
        return bool(getattr(self.network, "needs_time", False))

    @property
    def recompute(self) -> bool:
        """Activation checkpointing of the network's blocks."""
        return bool(self.network.recompute)

    @recompute.setter
    def recompute(self, on: bool) -> None:
        setattr(self.network, "recompute", on)  # noqa: B010


class ConditionAdapter(Adapter):
    """A network z, log_snr, condition → output, for a condition of a given form.

    Args:
        network: gets numbers (B, condition_dim) as its condition or, for images, z with further channels and no condition; with
            `attention`, tokens {"tokens": (B, L, W), "mask": (B, L)}.
        form: of the condition.
        null: whether the condition may be missing, in all rows (None) or in some (`conditions.dropped`). For images, one more channel
            is 1 where it is missing; a network of numbers must be built with `null` as well.
        attention: whether the network reads tokens by cross-attention.

    >>> from diffusional.networks import MLP
    >>> form = ConditionForm("tokens", (7, 3))
    >>> network = ConditionAdapter(MLP((4,), hidden=8, condition_dim=3), form)
    >>> network(torch.zeros(2, 4), torch.zeros(2), torch.ones(2, 7, 3)).shape
    torch.Size([2, 4])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, form: ConditionForm, null: bool = False, attention: bool = False) -> None:
        super().__init__()
        self.network, self.form, self.null, self.attention = network, form, null, attention
        self.requires_condition = not null
        if form.kind == "numbers":
            self.register_buffer("mean", torch.tensor(form.mean))
            self.register_buffer("scale", torch.tensor(form.scale))
        if attention and null:
            self.null_token = nn.Parameter(0.1 * torch.randn(form.shape[-1]))

    @staticmethod
    def channels(form: ConditionForm, null: bool) -> int:
        """Return the number of further input channels that a network for images as condition has."""
        return form.shape[0] + null if form.kind == "image" else 0

    def forward(self, z: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        if condition is None:
            if not self.null:
                raise DiffusionalError(
                    f"the network requires a condition, {self.form}, but none was given; pass condition=…"
                )
        else:
            self._check(condition, len(z))
        if self.form.kind == "image":
            return self.network(torch.cat([z, self._image(condition, z)], 1), log_snr)
        if self.form.kind == "numbers":
            assert condition is None or isinstance(condition, Tensor)
            prepared = None if condition is None else (condition - self.mean) / self.scale
        elif self.attention:
            prepared = self._tokens(condition, len(z), z)
        else:
            prepared = None if condition is None else pooled(condition)
        return self.network(z, log_snr, prepared)

    def _check(self, condition: Condition, items: int) -> None:
        """Raise DiffusionalError for a condition of another form. Its values are not checked: missing rows are NaN."""
        parts = {"tokens": condition} if isinstance(condition, Tensor) else dict(condition)
        names = {"tokens", "mask"} if self.form.masked else {"tokens"}
        value = parts.get("tokens")
        if set(parts) != names or value is None or len(value) != items or not self.form.fits(value.shape[1:]):
            # The message of the form.
            self.form.check({n: v.nan_to_num() for n, v in parts.items()} if len(parts) > 1 else condition, items)
            raise DiffusionalError(f"expected a condition of {self.form} for {items} items")

    def _image(self, condition: Condition | None, z: Tensor) -> Tensor:
        """Return the further channels (B, C, H, W) for z (B, …, H, W)."""
        channels = self.form.shape[0]
        if condition is None:
            return torch.cat([z.new_zeros(len(z), channels, *z.shape[2:]), z.new_ones(len(z), 1, *z.shape[2:])], 1)
        assert isinstance(condition, Tensor)
        image = interpolate(condition.to(z), size=z.shape[2:], mode="nearest")
        if not self.null:
            return image
        missing = missing_rows(condition)[:, None, None, None]
        return torch.cat([image.masked_fill(missing, 0), missing.to(z).expand(-1, 1, *z.shape[2:])], 1)

    def _tokens(self, condition: Condition | None, items: int, z: Tensor) -> dict[str, Tensor]:
        """Return tokens and mask, in which the learned null token alone takes the place of missing ones."""  # vocabulary: allow
        if condition is None:
            tokens = z.new_full((items, *self.form.shape), torch.nan)
            mask = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=z.device)
        else:
            tokens, mask = _parts(condition)
        if not self.null:
            return {"tokens": tokens, "mask": mask}
        missing = missing_rows(tokens)
        tokens = torch.where(missing[:, None, None], self.null_token, tokens)
        first = torch.arange(tokens.shape[1], device=z.device) == 0
        return {"tokens": tokens, "mask": torch.where(missing[:, None], first, mask)}


class ConditionVectors(nn.Module):
    """Vectors (B, width), linear in a condition: in standardised numbers, in the mean of the tokens that are present, or in the values of an image.

    Raises DiffusionalError for a form of labels, or of two conditions.

    >>> form = ConditionForm("image", (1, 4, 4))
    >>> ConditionVectors(form, 16)(torch.zeros(3, 1, 4, 4), items=3).shape
    torch.Size([3, 16])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, form: ConditionForm, width: int) -> None:
        super().__init__()
        if form.kind not in ("numbers", "tokens", "image"):
            raise DiffusionalError(f"expected a condition of numbers, tokens or an image, got {form}")
        self.form = form
        if form.kind == "numbers":
            self.register_buffer("mean", torch.tensor(form.mean))
            self.register_buffer("scale", torch.tensor(form.scale))
        self.linear = nn.Linear(math.prod(form.shape) if form.kind == "image" else form.shape[-1], width, bias=False)

    def forward(self, condition: Condition | None, items: int) -> Tensor:
        """Return the vectors (items, width). Raises DiffusionalError for a condition that is missing or of another form."""
        if condition is None:
            raise DiffusionalError(
                f"the network requires a condition, {self.form}, but none was given; pass condition=…"
            )
        self.form.check(condition, items)
        if self.form.kind == "tokens":
            return self.linear(pooled(condition))
        assert isinstance(condition, Tensor)
        numbers = self.form.kind == "numbers"
        values = torch.div(condition - self.mean, self.scale) if numbers else condition.flatten(1)
        return self.linear(values.to(self.linear.weight))


def pooled(condition: Condition) -> Tensor:
    """Return the mean (B, W) of the tokens that are present; NaN in missing rows, and 0 in rows whose tokens are all padding.

    >>> pooled({"tokens": torch.tensor([[[2.0], [4.0], [9.0]]]), "mask": torch.tensor([[True, True, False]])})
    tensor([[3.]])
    """
    tokens, mask = _parts(condition)
    missing = missing_rows(tokens)
    values = torch.where(mask[:, :, None], tokens, 0)
    mean = values.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    return mean.masked_fill(missing[:, None], torch.nan)


def _parts(condition: Condition) -> tuple[Tensor, Tensor]:
    """Return tokens (B, L, W) and the mask (B, L) of those that are present."""
    if isinstance(condition, Tensor):
        return condition, torch.ones(condition.shape[:2], dtype=torch.bool, device=condition.device)
    return condition["tokens"], condition["mask"]
