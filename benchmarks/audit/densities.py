"""Faults of dequantised densities: half of a bin, another bin's Jacobian, a missing entropy."""

import math
from typing import Any

import numpy as np
import torch
from record import LN2, Value, case
from torch import Tensor
from trained import images

import diffusional as df

# Bins of the density within a level, and the number of pseudo-observations of every level.
PARTS, SMOOTHING = 8, 0.1


def dequantised(name: str, mnist: str, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Return, for every test image (N,), −log₂ of the density at x + u and of the mass of x, bits/dim, u uniform in [0, width).

    The density is P_d(level) · p(u), both histograms, fitted to training images with the same noise.
    """
    x, space = images(name, mnist, "train")
    assert isinstance(space, df.Discrete)
    test = images(name, mnist)[0]
    rng = np.random.default_rng(0)
    train, held = (space.decode(part).flatten(1).numpy().astype(np.int64) for part in (x[:10_000], test[:2_000]))
    (n, d), levels = train.shape, space.levels
    counts = np.bincount((train + levels * np.arange(d)).ravel(), minlength=d * levels).reshape(d, levels)
    mass = (counts + SMOOTHING) / (n + SMOOTHING * levels)
    noise, new = width * rng.random(train.shape), width * rng.random(held.shape)
    within = np.bincount((noise.ravel() * PARTS).astype(np.int64), minlength=PARTS) / noise.size * PARTS
    exact = -np.log2(mass[np.arange(d), held]).mean(1)
    return exact - np.log2(within[(new * PARTS).astype(np.int64)]).mean(1), exact


def half_bins(name: str, mnist: str) -> list[dict[str, Any]]:
    """Return the fault of noise in half of a bin, and its control, noise in the whole bin."""
    found = []
    for label, width in (("half of the bin", 0.5), ("control: the whole bin", 1.0)):
        naive, exact = dequantised(name, mnist, width)
        difference = naive - exact
        found.append(
            case(
                "half-bins", name, label,
                Value(float(difference.mean()), float(difference.std(ddof=1) / len(difference) ** 0.5)),
                Value(math.log2(width)), "log₂ of the noise's width in bins, for a density that fits the noise", relative=0.001,
                reported=float(naive.mean()), exact=float(exact.mean()),
            )
        )  # fmt: skip
    return found


def offsets(name: str, space: df.Discrete) -> list[dict[str, Any]]:
    """Return the size of the Jacobian of bins 2/L for levels 2/(L − 1) apart."""
    jacobians = [df.Continuous((1,), scale=(n / 2,)).log_jacobian() / LN2 for n in (space.levels, space.levels - 1)]
    size = Value(float(jacobians[0]) - float(jacobians[1]))
    label = f"Jacobian of bins 2/{space.levels} wide, levels 2/{space.levels - 1} apart"
    second = Value(math.log2(space.levels / (space.levels - 1)))
    return [case("bin-widths", name, label, Value(abs(size.value)), second, "log₂ L/(L − 1)")]


def entropies(name: str, x: Tensor, levels: int) -> list[dict[str, Any]]:
    """Return the size of the offset log₂(L/2) of uniform noise where −H(q(z|x)) belongs."""
    found, d = [], x[0].numel()
    # VP-SDE from β = 0.1 to 20 at t = 1e-5, and DDPM's first level.
    at = {"VP-SDE at t = 1e-5": -math.expm1(-(0.1e-5 + 0.5 * 19.9e-10)), "DDPM's first level": 1e-4}
    for label, variance in at.items():
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).flatten(1)
        z = (1 - variance) ** 0.5 * x.double().flatten(1) + variance**0.5 * noise
        apart = z - (1 - variance) ** 0.5 * x.double().flatten(1)
        density = -0.5 * (math.log(2 * math.pi * variance) + apart.square() / variance).sum(1) / (d * LN2)
        offset = math.log2(levels / 2)
        size = Value(offset - float(density.mean()), float(density.std() / len(density) ** 0.5))
        second = Value(offset + 0.5 * math.log2(2 * math.pi * math.e * variance))
        found.append(
            case(
                "missing-entropy", name, label, size, second, "the entropy of a Gaussian",
                offset=offset, needed=float(density.mean()),
            )
        )  # fmt: skip
    return found


def run(name: str, mnist: str) -> list[dict[str, Any]]:
    """Return all cases of densities on a data set."""
    x, space = images(name, mnist)
    assert isinstance(space, df.Discrete)
    return [*half_bins(name, mnist), *offsets(name, space), *entropies(name, x[:447], space.levels)]
