"""A world of a few bits in plain numpy, all states enumerated: what the binomial diffusion and its model are measured by.

States of D bits are rows of −1 and 1, the first bit the slowest. Probabilities are written out and multiplied, on {0, 1} as the
paper has them (Sohl-Dickstein et al. 2015), without a logit.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn

from battery import F64, randn


def states(d: int) -> np.ndarray:
    """(2^d, d)."""
    return np.array(list(itertools.product([-1.0, 1.0], repeat=d)))


def step(beta: float) -> np.ndarray:
    """q(z_t|z_{t−1}) of one bit (from, to): B(z_t; z_{t−1}(1 − β) + ½β)."""
    one = np.array([0, 1]) * (1 - beta) + 0.5 * beta
    return np.stack([1 - one, one], 1)


def each(matrix: np.ndarray, d: int) -> np.ndarray:
    """The same for d bits (2^d, 2^d)."""
    out = np.ones((1, 1))
    for _ in range(d):
        out = np.kron(out, matrix)
    return out


def constant(steps: int) -> list[float]:
    """The paper's betas."""
    return [1 / (steps - t + 1) for t in range(1, steps + 1)]


class Network(nn.Module):
    """Logits of z and the log-SNR, no bit's like another's."""

    def __init__(self, d: int, seed: int = 0) -> None:
        super().__init__()
        self.weight, self.out = nn.Parameter(randn(d, d, seed=seed)), nn.Parameter(randn(d, d, seed=seed + 1))
        self.asked: list[tuple[Tensor, ...]] = []

    def forward(self, z: Tensor, log_snr: Tensor, *condition: Tensor) -> Tensor:
        self.asked.append((z, log_snr, *condition))
        return torch.tanh(z @ self.weight + 0.3 * log_snr[:, None]) @ self.out + 0.1

    def plain(self, z: np.ndarray, log_snr: float) -> np.ndarray:
        weight, out = (p.detach().numpy() for p in (self.weight, self.out))
        return np.tanh(z @ weight + 0.3 * log_snr) @ out + 0.1


class Table(nn.Module):
    """Any logits (T, 2^d, d), found by the log-SNR of the betas and the state."""

    def __init__(self, betas: list[float], logits: np.ndarray) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.log_snr = torch.tensor([log_snr(betas, t) for t in range(1, len(betas) + 1)], dtype=F64)

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        t = (self.log_snr - log_snr[:, None]).abs().argmin(1)
        assert (self.log_snr[t] - log_snr).abs().max() < 1e-9
        return self.logits[t, index(z)]

    def plain(self, z: np.ndarray, log_snr: float) -> np.ndarray:
        return self(torch.tensor(z), torch.full((len(z),), log_snr, dtype=F64)).detach().numpy()


def index(z: Tensor) -> Tensor:
    """Of a state (…, d) among `states`."""
    return ((z > 0) * 2 ** torch.arange(z.shape[-1] - 1, -1, -1)).sum(-1)


def signal(betas: list[float], t: int) -> float:
    """ᾱ_t."""
    return math.prod(1 - beta for beta in betas[:t])


def log_snr(betas: list[float], t: int) -> float:
    """ln ᾱ²/(1 − ᾱ²), within ±20."""
    a = signal(betas, t)
    return 20 * math.copysign(1, a - 0.5) if a in (0, 1) else min(20.0, max(-20.0, math.log(a**2 / (1 - a**2))))


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Over the last axis; 0 ln 0 = 0."""
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0).sum(-1)


class World:
    """q and p of a model with the given betas and network, as tables over states (x, z_t, z_{t+1}, …)."""

    def __init__(self, betas: list[float], d: int, network: Network | Table) -> None:
        self.betas, self.d, self.network, self.states, self.steps = betas, d, network, states(d), len(betas)

    def bit(self, s: int, t: int) -> np.ndarray:
        """q(z_t|z_s) of one bit, by walking."""
        out = np.eye(2)
        for beta in self.betas[s:t]:
            out = out @ step(beta)
        return out

    def q(self, s: int, t: int) -> np.ndarray:
        """q(z_t|z_s) (from, to); z_0 = x."""
        return each(self.bit(s, t), self.d)

    def posterior(self, s: int, t: int) -> np.ndarray:
        """q(z_s|z_t, x) (x, z_t, z_s), Bayes' rule on the walk."""
        joint = self.q(0, s)[:, None, :] * self.q(s, t).T[None]
        return joint / joint.sum(2, keepdims=True)

    def guess(self, t: int) -> np.ndarray:
        """P(x_d|z_t) (z_t, d, 2): e^{±f/2} q(z_d|x_d), normalised."""
        f = self.network.plain(self.states, log_snr(self.betas, t))[:, :, None] * np.array([-0.5, 0.5])
        seen = self.bit(0, t).T[(self.states > 0).astype(int)]
        odds = np.exp(f) * seen
        return odds / odds.sum(2, keepdims=True)

    def _joined(self, bits: np.ndarray) -> np.ndarray:
        """Of independent bits (…, d, 2) the probabilities of all states (…, 2^d)."""
        values = (self.states > 0).astype(int)
        return np.prod([bits[..., i, values[:, i]] for i in range(self.d)], axis=0)

    def decoder(self) -> np.ndarray:
        """p(x|z_1) (z_1, x)."""
        return self._joined(self.guess(1))

    def backward(self, t: int) -> np.ndarray:
        """p(z_t|z_{t+1}) (z_{t+1}, z_t): each bit the mixture of its posteriors."""
        joint = self.bit(0, t)[:, None, :] * self.bit(t, t + 1).T[None]
        given = joint / joint.sum(2, keepdims=True)  # (x, z_{t+1}, z_t) of one bit
        mine = given[:, (self.states > 0).astype(int)]  # (x, z_{t+1}, d, z_t)
        return self._joined(np.einsum("zdx,xzdk->zdk", self.guess(t + 1), mine))

    def reconstruction(self) -> np.ndarray:
        """−E ln p(x|z_1) (x,)."""
        return -(self.q(0, 1) * np.log(self.decoder()).T).sum(1)

    def kl_given(self, t: int) -> np.ndarray:
        """KL[q(z_t|z_{t+1},x) ‖ p(z_t|z_{t+1})] (x, z_{t+1})."""
        return kl(self.posterior(t, t + 1), self.backward(t)[None])

    def kl(self) -> np.ndarray:
        """E KL_t (x, T − 1)."""
        return np.stack([(self.q(0, t + 1) * self.kl_given(t)).sum(1) for t in range(1, self.steps)], 1)

    def prior(self) -> np.ndarray:
        """KL_T (x,)."""
        return kl(self.q(0, self.steps), np.full(2**self.d, 0.5**self.d))

    def nelbo(self) -> np.ndarray:
        """(x,)."""
        return self.reconstruction() + self.kl().sum(1) + self.prior()

    def log_prob(self) -> np.ndarray:
        """ln p(x) (x,), the latents summed out."""
        p = np.full(2**self.d, 0.5**self.d)
        for t in range(self.steps - 1, 0, -1):
            p = p @ self.backward(t)
        return np.log(p @ self.decoder())

    def best(self, share: np.ndarray) -> np.ndarray:
        """The logits (T, 2^d, d) of the optimal denoiser for data with these shares (2^d,), the evidence of the bit itself taken off."""
        out = np.zeros((self.steps, 2**self.d, self.d))
        ones = self.states > 0
        for t in range(1, self.steps + 1):
            joint = share[:, None] * self.q(0, t)
            seen = self.bit(0, t)
            for i in range(self.d):
                high, low = joint[ones[:, i]].sum(0), joint[~ones[:, i]].sum(0)
                own = ones[:, i].astype(int)
                out[t - 1, :, i] = np.log(high / low) - np.log(seen[1, own] / seen[0, own])
        return out


def share_of(d: int, seed: int = 0) -> np.ndarray:
    """Probabilities of all states, bits dependent."""
    raw = np.random.default_rng(seed).exponential(size=2**d) + 0.05
    return raw / raw.sum()


def information(joint: np.ndarray) -> float:
    """I(a; b | c) of p(a, b, c), nats."""
    ab, a, b = joint.sum((0, 1)), joint.sum(1), joint.sum(0)
    ratio = joint * ab / np.maximum(a[:, None] * b[None], 1e-300)
    return float(np.where(joint > 0, joint * np.log(np.where(joint > 0, ratio, 1)), 0).sum())
