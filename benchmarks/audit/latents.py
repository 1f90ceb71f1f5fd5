"""Faults of likelihoods on latents: bins of grey levels, with open ends, for values that have neither levels nor a range.

The latents are principal components of the images, scaled by one number to a standard deviation of 1, as those of a frozen autoencoder
are. z_1 has DDPM's first level of noise, and ẑ is the posterior mean for independent Gaussian components, so that no network is needed.
"""

import math
from typing import Any

import numpy as np
import torch
from record import LN2, Value, case, mean
from torch import Tensor
from torch.special import log_ndtr
from trained import images

# Principal components of each data set, DDPM's β_1, and the half-width of the bins of 256 levels in [−1, 1].
COMPONENTS = {"digits": 16, "MNIST": 32}
BETA, HALF, END = 1e-4, 1 / 255, 0.999
# Most test images.
MOST = 2000


def latents(name: str, mnist: str) -> tuple[Tensor, Tensor]:
    """Return the latents of test images (N, K), and the variance of each component (K,) in the training images, float64."""
    train, test = (images(name, mnist, split)[0].flatten(1).double() for split in ("train", "test"))
    centre = train.mean(0)
    _, _, axes = torch.linalg.svd(train - centre, full_matrices=False)
    chosen = axes[: COMPONENTS[name]].T
    seen, new = (train - centre) @ chosen, (test[:MOST] - centre) @ chosen
    scale = 1 / seen.square().mean().sqrt()
    return new * scale, (seen * scale).square().mean(0)


def predicted(z: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
    """Return ẑ = E[z | z_1] for independent Gaussian components with these variances."""
    kept = 1 - BETA
    z1 = math.sqrt(kept) * z + math.sqrt(BETA) * noise
    return variance * math.sqrt(kept) / (kept * variance + BETA) * z1


def density(z: Tensor, guess: Tensor) -> Tensor:
    """Return −ln N(z; ẑ, β_1) at every position, nats: the right cost."""
    return 0.5 * (math.log(2 * math.pi * BETA) + (z - guess).square() / BETA)


def in_bins(z: Tensor, guess: Tensor, ends: bool = True) -> Tensor:
    """Return −ln of the mass of N(ẑ, β_1) in the bin 2/255 wide around z, nats: from z on, or up to z, beyond ±0.999 if the ends are open."""
    s = math.sqrt(BETA)
    upper, lower = (z + HALF - guess) / s, (z - HALF - guess) / s
    if ends:
        upper, lower = torch.where(z > END, math.inf, upper), torch.where(z < -END, -math.inf, lower)
    flip = lower + upper > 0
    lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    return -(log_ndtr(upper) + torch.log1p(-torch.exp(log_ndtr(lower) - log_ndtr(upper))))


def expected(variance: float) -> tuple[float, float]:
    """Return the expected costs of a component in a bin and in an open end, bits, by quadrature over (z − ẑ)/√β_1."""
    from scipy.stats import norm

    kept, s = 1 - BETA, math.sqrt(BETA)
    # The variance of z − ẑ over β_1 for a Gaussian component.
    spread = math.sqrt(variance / (kept * variance + BETA))
    u = np.linspace(-9, 9, 20_001) * spread
    weight = norm.pdf(u, scale=spread) * (u[1] - u[0])
    half = HALF / s
    bin_ = -np.log2(norm.cdf(np.abs(u) * -1 + half) - norm.cdf(np.abs(u) * -1 - half))
    # (z − 1/255 − ẑ)/s = u − half, and the mass above it.
    return float(weight @ bin_), float(weight @ -norm.logcdf(half - u)) / LN2


def run(name: str, mnist: str) -> list[dict[str, Any]]:
    """Return the size of bins for latents, and the part of it that the open ends have."""
    z, variance = latents(name, mnist)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    guess = predicted(z, variance, noise)
    right, faulty, closed = density(z, guess), in_bins(z, guess), in_bins(z, guess, ends=False)
    beyond = z.abs() > END
    costs = np.array([expected(float(one)) for one in variance])
    # The share of values beyond the ends is that of the test images in both routes; their costs are expectations in the second.
    ends = mean(beyond.double() * torch.from_numpy(costs[:, 1] - costs[:, 0]))
    ends = Value(ends.value)
    bins = Value(math.log2(1 / (2 * HALF)))
    share = float(beyond.double().mean())
    return [
        case(
            "latents", name, "latents of standard deviation 1", mean(faulty - right, 1 / LN2), Value(bins.value + ends.value),
            "log₂ 255/2, and the share beyond ± 0.999 times the difference of expected costs by quadrature", relative=0.002,
            share_beyond=share,
        ),
        case(
            "latents", name, "of that, the open ends", mean(faulty - closed, 1 / LN2), ends,
            "the share beyond ± 0.999 times the difference of expected costs by quadrature",
        ),
    ]  # fmt: skip
