"""Embeddings of the noise level and of a condition."""

import math

import torch
from torch import Tensor, nn

from diffusional.conditions import Condition, check_labels, missing_rows
from diffusional.errors import DiffusionalError


class LogSNREmbedding(nn.Module):
    """A small MLP of sin and cos of log_snr · f for log-spaced frequencies f: (B,) → (B, width).

    A condition (B, condition_dim) of numbers is added linearly; of class labels (B,), integers below `classes`, a learned vector for
    each class is added. With `null`, the condition may be missing, in all rows (None) or in some (`conditions.dropped`): a learned
    null vector is added instead.

    >>> LogSNREmbedding(16)(torch.zeros(3)).shape
    torch.Size([3, 16])
    """

    def __init__(
        self,
        width: int,
        condition_dim: int = 0,
        frequencies: int = 32,
        low: float = 0.1,
        high: float = 10.0,
        classes: int = 0,
        null: bool = False,
    ) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.logspace(math.log10(low), math.log10(high), frequencies))
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.condition_dim, self.classes = condition_dim, classes
        check_kinds(condition_dim, classes, null)
        self.condition = nn.Linear(condition_dim, width) if condition_dim else class_vectors(classes, width)
        self.null = nn.Parameter(0.1 * torch.randn(width)) if null else None

    def forward(self, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        angles = log_snr[:, None] * self.frequencies
        out = self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))
        condition = check_condition(condition, self.condition_dim, self.classes, self.null is not None)
        if self.condition is None:
            return out
        if condition is None:
            return out if self.null is None else out + self.null
        if self.null is None:
            return out + self.condition(condition)
        missing = missing_rows(condition)[:, None]
        present = condition.masked_fill(missing if condition.ndim > 1 else missing[:, 0], 0)
        return out + torch.where(missing, self.null, self.condition(present))


def class_vectors(classes: int, width: int) -> nn.Embedding | None:
    """Return a learnable vector of `width` small random numbers for each class; None for no classes.

    >>> class_vectors(10, 16)
    Embedding(10, 16)
    """
    if not classes:
        return None
    vectors = nn.Embedding(classes, width)
    nn.init.normal_(vectors.weight, std=0.1)
    return vectors


def check_kinds(condition_dim: int, classes: int, null: bool = False) -> None:
    """Raise DiffusionalError for a negative `condition_dim` or `classes`, for both at once, and for `null` without either."""
    if null and not (condition_dim or classes):
        raise DiffusionalError(
            "null=True was given without a condition; expected condition_dim or classes, for a condition that may be missing"
        )
    if condition_dim < 0 or classes < 0 or (condition_dim and classes):
        raise DiffusionalError(
            f"condition_dim={condition_dim} and classes={classes} were given; expected one of them, at least 1, or neither"
        )


def check_condition(
    condition: Condition | None, condition_dim: int, classes: int = 0, null: bool = False
) -> Tensor | None:
    """Return the condition, None for a network that was built without one.

    Raises DiffusionalError for a condition that is missing (unless `null`) or unexpected, and one that is not numbers
    (B, condition_dim), or integers (B,) below `classes`.

    >>> check_condition(None, 0)
    >>> check_condition(None, 0, classes=10)
    Traceback (most recent call last):
    diffusional.errors.DiffusionalError: the network requires a condition, labels (B,) of 10 classes, but none was given; pass condition=…
    """
    if condition is None:
        if (condition_dim or classes) and not null:
            expected = f"numbers (B, {condition_dim})" if condition_dim else f"labels (B,) of {classes} classes"
            raise DiffusionalError(
                f"the network requires a condition, {expected}, but none was given; pass condition=…"
            )
        return None
    if classes:
        check_labels(condition, classes, missing=null)
        assert isinstance(condition, Tensor)
        return condition
    if not condition_dim:
        raise DiffusionalError(
            "a condition was given to an unconditional network; build it with condition_dim or classes, or leave the condition out"
        )
    if not isinstance(condition, Tensor) or condition.ndim != 2 or condition.shape[1] != condition_dim:
        given = f"shape {tuple(condition.shape)}" if isinstance(condition, Tensor) else type(condition).__name__
        raise DiffusionalError(f"the condition must be a tensor (B, {condition_dim}), got {given}")
    return condition
