"""Shrinkage of a sample covariance towards a multiple of the identity, by the formula of Ledoit and Wolf (2004).

For N centred items y in D dimensions, S = (1/N) Σ y yᵀ and μ = tr S / D, the estimate (1 − ρ) S + ρ μ I has the least expected squared
distance to the true covariance for

    ρ = min(β, δ) / δ,     δ = (tr S² − D μ²) / D,     β = (1/(N D)) ((1/N) Σ |y|⁴ − tr S²).
"""

import numpy as np
from torch import Tensor

# Dimensions up to which the sums run over pairs of dimensions, in scikit-learn's order, so that both agree to the last bit.
_BY_DIMENSION = 1000


def ledoit_wolf(x: Tensor) -> float:
    """Return ρ, between 0 and 1, for items (N, D) of float64 on the CPU, which need not be centred.

    A covariance of one dimension is not shrunk: ρ = 0, as for items that are all equal.

    >>> import torch
    >>> correlated = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-2.0, -2.0], [2.0, 2.0]]).double()
    >>> round(ledoit_wolf(correlated), 3)
    0.18
    """
    items, dimensions = x.shape
    if dimensions == 1:
        return 0.0
    centred = x.numpy() - x.numpy().mean(0)
    squares = centred**2
    traces = squares.sum(0) / items
    mean = traces.sum() / dimensions
    if dimensions <= _BY_DIMENSION or dimensions <= items:
        fourth, second = np.dot(squares.T, squares).sum(), (np.dot(centred.T, centred) ** 2).sum()
    else:  # the same sums over pairs of items: O(N² D)
        fourth, second = (squares.sum(1) ** 2).sum(), (np.dot(centred, centred.T) ** 2).sum()
    second /= items**2
    beta = 1.0 / (dimensions * items) * (fourth / items - second)
    delta = (second - 2.0 * mean * traces.sum() + dimensions * mean**2) / dimensions
    beta = min(beta, delta)
    return float(beta / delta) if beta != 0 else 0.0
