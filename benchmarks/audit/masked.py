"""The continuous bound of a masked diffusion with t on [ε, 1], averaged as if it were [0, 1].

The denoiser is exact: the images are modelled as a Markov chain over their pixels in order, whose conditional distributions of a
masked pixel given the nearest pixels that are not masked are closed forms. The bound is then −ln p(x) of every image.
"""

from typing import Any

import numpy as np
from record import LN2, Value, case
from torch.nn.functional import avg_pool2d, pad
from trained import images

import diffusional as df

EPSILONS = (0.1, 0.01, 0.001)
SIDE = 8


def sequences(name: str, mnist: str, split: str, items: int) -> tuple[np.ndarray, int]:
    """Return 8 × 8 images as sequences of levels (N, 64) and the number of levels: 17 of the digits, 16 of MNIST."""
    x, space = images(name, mnist, split)
    assert isinstance(space, df.Discrete)
    raw = space.decode(x[:items]).float()
    if name == "digits":
        return raw.flatten(1).long().numpy(), space.levels
    small = avg_pool2d(pad(raw, (1, 1, 1, 1)), 2).flatten(1)
    return (small / 16).floor().clamp(max=15).long().numpy(), 16


class Markov:
    """A chain of D positions with one transition matrix; row 0 of `left` and `right` stands for a neighbour that is not there."""

    def __init__(self, x: np.ndarray, levels: int) -> None:
        self.d = x.shape[1]
        counts = np.full((levels, levels), 0.5)
        np.add.at(counts, (x[:, :-1].ravel(), x[:, 1:].ravel()), 1.0)
        self.start = (np.bincount(x[:, 0], minlength=levels) + 0.5) / (len(x) + 0.5 * levels)
        step = counts / counts.sum(1, keepdims=True)
        self.powers = np.stack([np.linalg.matrix_power(step, n) for n in range(self.d + 1)])
        self.marginal = np.stack([self.start @ power for power in self.powers])

    def nats(self, x: np.ndarray) -> np.ndarray:
        """Return −ln p(x) (N,)."""
        return -np.log(self.start[x[:, 0]]) - np.log(self.powers[1][x[:, :-1], x[:, 1:]]).sum(1)

    def cost(self, x: np.ndarray, i: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return −ln p(x_i | x_{i−a}, x_{i+b}) of a sequence x (D,); a = i + 1 and b = D − i stand for no neighbour."""
        left, right = np.maximum(i - a, 0), np.minimum(i + b, self.d - 1)
        has_left, has_right = i - a >= 0, i + b < self.d
        before = np.where(has_left, self.powers[a, x[left], x[i]], self.marginal[i, x[i]])
        after = np.where(has_right, self.powers[b, x[i], x[right]], 1.0)
        both = self.powers[np.minimum(a + b, self.d), x[left], x[right]]
        whole = np.where(has_right, np.where(has_left, both, self.marginal[right, x[right]]), 1.0)
        return -np.log(before * after / whole)


def integrand(chain: Markov, x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return the expected cost (1/t) Σ −ln p(x_i | the rest) over masked positions i of a sequence, at every t: a polynomial."""
    d = chain.d
    total = np.zeros(len(t))
    for i in range(d):
        a, b = (grid.ravel() for grid in np.meshgrid(np.arange(1, i + 2), np.arange(1, d - i + 1)))
        cost = chain.cost(x, np.full_like(a, i), a, b)
        power = (a - 1) + (b - 1)
        ends = (a <= i).astype(int) + (b < d - i).astype(int)
        table = np.zeros((power.max() + 1, 3))
        np.add.at(table, (power, ends), cost)
        powers = t[:, None] ** np.arange(len(table))
        total += sum((powers @ table[:, k]) * (1 - t) ** k for k in range(3))
    return total


def sampled(chain: Markov, x: np.ndarray, draws: int, epsilon: float, rng: np.random.Generator) -> float:
    """Return the mean over draws of (1/t) Σ −ln p(x_i | the rest), t on [ε, 1] by low discrepancy."""
    t = (1 - epsilon) * ((rng.random() + np.arange(draws) / draws) % 1) + epsilon
    masked = rng.random((draws, chain.d)) < t[:, None]
    place = np.arange(chain.d)
    left = np.maximum.accumulate(np.where(masked, -1, place), axis=1)
    right = np.minimum.accumulate(np.where(masked, chain.d, place)[:, ::-1], axis=1)[:, ::-1]
    row, i = masked.nonzero()
    cost = chain.cost(x, i, i - left[row, i], right[row, i] - i)
    return float((np.bincount(row, cost, minlength=draws) / t).mean())


def run(name: str, mnist: str, items: int = 40, draws: int = 20_000) -> list[dict[str, Any]]:
    """Return the sizes for several ε on a data set."""
    train, levels = sequences(name, mnist, "train", 20_000)
    x = sequences(name, mnist, "test", items)[0]
    chain, rng = Markov(train, levels), np.random.default_rng(0)
    exact, per = chain.nats(x), 1 / (chain.d * LN2)
    node, weight = np.polynomial.legendre.leggauss(40)

    def between(low: float) -> np.ndarray:
        t = low + (1 - low) * (node + 1) / 2
        return np.stack([integrand(chain, one, t) @ weight / 2 for one in x])

    closed = float(np.abs(between(0.0) - exact).max())
    assert closed < 1e-6, f"the integral differs from −ln p(x) by {closed:g} nats"
    found = []
    for epsilon in EPSILONS:
        # Means of independent thirds of the draws, whose spread is the error.
        parts = np.array([[sampled(chain, one, draws // 4, epsilon, rng) for one in x] for _ in range(4)])
        apart = (parts - exact).mean(1) * per
        size = Value(float(apart.mean()), float(apart.std(ddof=1) / 2))
        second = Value(float((between(epsilon) - exact).mean() * per))
        found.append(
            case(
                "t-range", name, f"ε = {epsilon:g}", size, second, "the integral over [ε, 1] in closed form",
                bound=float(exact.mean() * per),
            )
        )  # fmt: skip
    return found
