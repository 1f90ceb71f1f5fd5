"""Embeddings of the noise level and of a condition."""

import math

import torch
from torch import Tensor, nn

from diffusional.conditions import Condition, check_labels
from diffusional.errors import DiffusionalError


class LogSNREmbedding(nn.Module):
    """A small MLP of sin and cos of log_snr · f for log-spaced frequencies f: (B,) → (B, width).

    A condition (B, condition_dim) of numbers is added linearly; of class labels (B,), integers below `classes`, a learned vector for
    each class is added.

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
    ) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.logspace(math.log10(low), math.log10(high), frequencies))
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.condition_dim, self.classes = condition_dim, classes
        check_kinds(condition_dim, classes)
        self.condition = nn.Linear(condition_dim, width) if condition_dim else class_vectors(classes, width)

    def forward(self, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        angles = log_snr[:, None] * self.frequencies
        out = self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))
        condition = check_condition(condition, self.condition_dim, self.classes)
        return out if condition is None or self.condition is None else out + self.condition(condition)


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


def check_kinds(condition_dim: int, classes: int) -> None:
    """Raise DiffusionalError for a negative `condition_dim` or `classes`, and for both at once."""
    if condition_dim < 0 or classes < 0 or (condition_dim and classes):
        raise DiffusionalError(
            f"condition_dim={condition_dim} and classes={classes} were given; expected one of them, at least 1, or neither"
        )


def check_condition(condition: Condition | None, condition_dim: int, classes: int = 0) -> Tensor | None:
    """Return the condition, None for a network that was built without one.

    Raises DiffusionalError for a condition that is missing or unexpected, and one that is not numbers (B, condition_dim), or
    integers (B,) below `classes`.

    >>> check_condition(None, 0)
    >>> check_condition(None, 0, classes=10)
    Traceback (most recent call last):
    diffusional.errors.DiffusionalError: the network requires a condition, labels (B,) of 10 classes, but none was given; pass condition=…
    """
    if condition is None:
        if condition_dim or classes:
            expected = f"numbers (B, {condition_dim})" if condition_dim else f"labels (B,) of {classes} classes"
            raise DiffusionalError(
                f"the network requires a condition, {expected}, but none was given; pass condition=…"
            )
        return None
    if classes:
        check_labels(condition, classes)
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
