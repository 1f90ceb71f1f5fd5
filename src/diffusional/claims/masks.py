"""C17: a masked diffusion in an enumerable world of sequences, MATH (34)."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from diffusional.absorbing import Absorbing
from diffusional.claims.check import Check
from diffusional.models.masked import MaskedDiffusion
from diffusional.sequences import SequenceWorld

_LENGTH, _CATEGORIES = 4, 3
_SIGNALS = ("linear", "cosine", "square")
_NODES = 60


class _Tempered(nn.Module):
    """Conditionals that are too flat: an imperfect network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        return 0.6 * self.network(tokens)


def c17(seed: int, weighted: bool = True) -> list[Check]:
    """Compare the bound, (1/L) Σ_n (L/n) E_{|M| = n} Σ_M −ln p_i, with ∫ −a'/(1 − a) E Σ_M −ln p_i du for three shapes of a, and for exact
    conditionals with H(x) and −ln p(x) from the table of the world. `weighted=False` leaves out the weight L/n.
    """
    world = SequenceWorld.random(_LENGTH, _CATEGORIES, seed)
    share, entropy = world.table.flatten(), world.entropy()

    def sums(model: MaskedDiffusion) -> Tensor:
        """Return E_{|M| = n} Σ_{i ∈ M} −ln p_i (states, L)."""
        ledger = model.exact_ledger(world.states)
        return torch.cat([ledger.reconstruction[:, None], ledger.kl], 1) * torch.arange(1, _LENGTH + 1)

    def bound(each: Tensor) -> Tensor:
        """Return the bound of every state from its sums."""
        weight = _LENGTH / torch.arange(1, _LENGTH + 1).double()
        return (each * (weight if weighted else torch.ones_like(weight))).mean(1)

    exact = bound(sums(MaskedDiffusion(world.conditionals(), world.space)))
    found = [
        Check("exact conditionals: bound / H(x) − 1", float(share @ exact) / entropy - 1),
        Check(
            "exact conditionals: the largest |bound + ln p(x)| / H(x)",
            _largest(exact + world.log_prob(world.states)) / entropy,
        ),
    ]
    network = _Tempered(world.conditionals())
    each = sums(MaskedDiffusion(network, world.space))
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    u, du = torch.from_numpy(0.5 * (nodes + 1)), torch.from_numpy(0.5 * weights)
    n = torch.arange(1, _LENGTH + 1)
    ways = torch.tensor([math.comb(_LENGTH, k) for k in n.tolist()], dtype=torch.float64)
    for signal in _SIGNALS:
        process = Absorbing(_CATEGORIES, None, signal)
        keep = process.keeps(u)[:, None]
        chance = ways * (1 - keep) ** n * keep ** (_LENGTH - n)
        integral = each @ ((du * process.rate(u)) @ chance)
        away = _largest(integral - bound(each)) / entropy
        found.append(Check(f"{signal} a(u): the largest difference from the bound by orders / H(x)", away))
    return found


def _largest(values: Tensor) -> float:
    return float(values.abs().max())
