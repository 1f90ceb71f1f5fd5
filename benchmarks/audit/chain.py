"""Faults of chains like DDPM's, by our own small arithmetic from β_t, beside the right numbers.

It shares the network with the library, and nothing else: levels, posterior means and variances, bins and the prior are
formed here from β_t as public code forms them. The second routes are the library's, with other noise.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from record import LN2, Value, bits, case, mean
from torch import Tensor
from torch.special import log_ndtr
from trained import T, images

import diffusional as df
from diffusional.models.denoiser import clipped
from diffusional.models.likelihood import log_bin_mass

ROWS = 256
# Levels of a respaced schedule of 50 steps, as `set_timesteps(50)` of MONAI 1.5.0 gives them for 1,000 training steps.
SUBSETS = {"50 of 1,000": 20, "250 of 1,000": 4}


def betas(kind: str = "linear", steps: int = T) -> Tensor:
    """Return β_1 … β_T, float64."""
    low, high = (1e-4, 0.02) if kind == "linear" else (0.00085, 0.012)
    if kind == "scaled linear":
        return torch.from_numpy(np.linspace(low**0.5, high**0.5, steps) ** 2)
    return torch.from_numpy(np.linspace(low, high, steps))


@dataclass(frozen=True)
class Chain:
    """A network that predicts the noise, and DDPM's chain around it, in [−1, 1] with L levels."""

    module: torch.nn.Module
    levels: int
    beta: Tensor

    @property
    def kept(self) -> Tensor:
        """ᾱ_t."""
        return torch.cumprod(1 - self.beta, 0)

    @torch.inference_mode()
    def data(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x̂ (R, …), float64, at levels t (R,), counted from 0."""
        a = self.kept[t].reshape(-1, *(1,) * (x.ndim - 1))
        z = a.sqrt() * x.double() + (1 - a).sqrt() * noise.double()
        snr = torch.log(self.kept / (1 - self.kept))[t]
        return (z - (1 - a).sqrt() * self.module(z.float(), snr.float()).double()) / a.sqrt()

    def kl(self, x: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """Return KL[q(z_{t−1}|z_t, x) ‖ q(z_{t−1}|z_t, x̂)] (R,), nats, from the difference of the posterior means."""
        a, before = self.kept[t], self.kept[t - 1]
        coefficient = before.sqrt() * self.beta[t] / (1 - a)
        variance = self.beta[t] * (1 - before) / (1 - a)
        return coefficient.square() * (x.double() - data).square().flatten(1).sum(1) / (2 * variance)

    def decoder(self, x: Tensor, data: Tensor, width: float | None = None, low_open: bool = True) -> Tensor:
        """Return −ln of the mass of N(x̂, σ_1²) in the bin of x (R, …), nats at every position.

        The outermost bins are open, except the lowest one if `low_open` is False.
        """
        half = (2 / (self.levels - 1) if width is None else width) / 2
        s = (1 - self.kept[0]).sqrt()
        upper, lower = (x.double() + half - data) / s, (x.double() - half - data) / s
        upper = torch.where(x > 0.999, math.inf, upper)
        lower = torch.where((x < -0.999) & low_open, -math.inf, lower)
        flip = lower + upper > 0
        lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
        return -(log_ndtr(upper) + torch.log1p(-torch.exp(log_ndtr(lower) - log_ndtr(upper))))

    def step_function(self, x: Tensor, data: Tensor) -> Tensor:
        """Return the cost of a decoder of variance 1e-20 with a mass of at least 1e-12, nats at every position."""
        half, s = 1 / (self.levels - 1), 1e-10

        def cdf(y: Tensor) -> Tensor:
            return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))

        upper, lower = cdf((x.double() + half - data) / s), cdf((x.double() - half - data) / s)
        mass = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
        return -torch.log(mass.clamp(min=1e-12))

    def prior(self, x: Tensor) -> Tensor:
        """Return KL[q(z_T|x) ‖ N(0, I)] (N,), nats."""
        a = self.kept[-1]
        return 0.5 * (-1 - torch.log1p(-a) + (1 - a) + a * x.double().square()).flatten(1).sum(1)

    def sweep(self, x: Tensor, generator: torch.Generator, shared: bool = False) -> dict[str, Tensor]:
        """Return all costs (N, T) of items x (N, …), nats, as they are and with x̂ clipped, and the squared error of ε̂ (N, T).

        With `shared`, an item has one noise for all its levels.
        """
        once = torch.randn(x.shape, generator=generator)
        levels = torch.arange(T).repeat_interleave(len(x))
        found: dict[str, list[Tensor]] = {"plain": [], "clipped": [], "error": []}
        for rows in torch.arange(len(levels)).split(ROWS):
            t, item = levels[rows], rows % len(x)
            noise = once[item] if shared else torch.randn(len(rows), *x.shape[1:], generator=generator)
            data = self.data(x[item], t, noise)
            for name, seen in (("plain", data), ("clipped", data.clamp(-1, 1))):
                first = self.decoder(x[item], seen).flatten(1).sum(1)
                found[name].append(torch.where(t == 0, first, self.kl(x[item], seen, t.clamp(min=1))))
            snr = (self.kept / (1 - self.kept))[t]
            found["error"].append(snr * (x[item].double() - data).square().flatten(1).sum(1))
        return {name: torch.cat(parts).reshape(T, len(x)).T for name, parts in found.items()}


def chain_of(model: df.DiffusionModel) -> Chain:
    """Return our own chain around the network of a model."""
    assert isinstance(model.space, df.Discrete)
    return Chain(model.denoiser.module, model.space.levels, betas())


def evaluated(model: df.DiffusionModel, x: Tensor, reference: Tensor, error: float, seed: int = 1) -> Value:
    """Return the library's bound, bits/dim."""
    found = df.evaluate(model, x, target_error=error, reference=reference, seed=seed).nelbo.to("bits/dim", x[0].numel())
    return Value(found.value, found.error)


def decoders(name: str, model: df.DiffusionModel, x: Tensor) -> list[dict[str, Any]]:
    """Return the faults of the decoder: bins of another width, closed edges, variance 1e-20."""
    chain, d = chain_of(model), x[0].numel()
    assert isinstance(model.space, df.Discrete)
    levels, width = chain.levels, 2 / (chain.levels - 1)
    first = torch.zeros(len(x), dtype=torch.long)

    def predicted(seed: int) -> Tensor:
        return chain.data(x, first, torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))

    data, other = predicted(0), predicted(1)
    right = chain.decoder(x, data)
    # The second routes: the library's decoder and bins, with other noise.
    from diffusional.models.parameterization import Prediction

    gamma = model.end_gammas()[0].expand(len(x))
    seen = Prediction(torch.zeros_like(other), gamma, other, "data")
    library = -model.likelihood.log_prob(x, seen)
    s = torch.sigmoid(gamma[0].double()).sqrt()
    upper = torch.where(x > 0.999, math.inf, (x.double() + 1 / levels - other) / s)
    lower = torch.where(x < -0.999, -math.inf, (x.double() - 1 / levels - other) / s)
    narrow = -log_bin_mass(lower, upper).flatten(1).sum(1)
    table = model.likelihood.level_log_probs(seen).exp() if levels < 100 else None
    lost = torch.special.ndtr((model.space.low - width / 2 - other) / s)
    mass = table[:, 0] if table is not None else torch.special.ndtr((model.space.low + width / 2 - other) / s)
    black = x < -0.999
    # Where x̂ is far below the range, nearly all mass is lost; such masses are computed in logarithms by the first route only.
    closed = torch.where(black, torch.log(mass) - torch.log((mass - lost).clamp(min=1e-300)), 0.0).flatten(1).sum(1)
    wrong = (model.space.index(other) != model.space.index(x)).double()
    clamp = -math.log(1e-12)
    step = chain.step_function(x, data)
    return [
        case(
            "bin-widths", name, f"bins of a decoder 2/{levels} wide, levels 2/{levels - 1} apart",
            bits((chain.decoder(x, data, 2 / levels) - right).flatten(1).sum(1), d),
            bits(narrow - library, d),
            "the library's bins with other noise",
        ),
        case(
            "open-bins", name, "",
            bits((chain.decoder(x, data, low_open=False) - right).flatten(1).sum(1), d),
            bits(closed, d),
            "the mass below the range, from the library's table of levels with other noise",
            share_of_lowest_level=float(black.double().mean()),
        ),
        case(
            "decoder-variance", name, "",
            bits((step - right).flatten(1).sum(1), d),
            bits(clamp * wrong.flatten(1).sum(1) - library, d),
            "the share of wrong pixels times ln 10¹², less the library's decoder, with other noise",
            wrong_pixels=float(wrong.mean()),
            right=bits(right.flatten(1).sum(1), d),
        ),
    ]  # fmt: skip


def priors(name: str, x: Tensor) -> list[dict[str, Any]]:
    """Return what is lost without KL_T, for schedules in use."""
    d, found = x[0].numel(), []
    for label, kind, steps in (
        ("linear β, T = 1,000", "linear", 1000),
        ("scaled linear β (Stable Diffusion), T = 1,000", "scaled linear", 1000),
        ("linear β, T = 100", "linear", 100),
    ):
        chain = Chain(torch.nn.Identity(), 2, betas(kind, steps))
        a, generator = chain.kept[-1], torch.Generator().manual_seed(0)
        ratio = torch.zeros(len(x), dtype=torch.float64)
        draws = 16
        for _ in range(draws):
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            z = a.sqrt() * x + (1 - a).sqrt() * noise
            ratio += (0.5 * (z.square() - noise.square() - torch.log1p(-a))).flatten(1).sum(1) / draws
        exact = chain.prior(x)
        # The error of the draws only: that over items is common to both.
        error = bits(ratio - exact, d).error
        found.append(
            case(
                "no-prior", name, label, bits(-exact, d), Value(-bits(ratio, d).value, error),
                "draws of ln q(z_T|x) − ln p(z_T)",
                leading_order=-float(0.5 * a / (1 - a) * mean(x.double().square().flatten(1).sum(1)).value / (d * LN2)),
            )
        )  # fmt: skip
        found[-1]["agree"] = abs(found[-1]["size"]["value"] - found[-1]["second"]["value"]) <= 3 * error
    return found


def levels(
    name: str, model: df.DiffusionModel, x: Tensor, others: Tensor, reference: Tensor, repeats: int, error: float
) -> list[dict[str, Any]]:
    """Return the faults that take all levels: subsets of them, one noise, L_simple, clipping, units."""
    chain, d = chain_of(model), x[0].numel()
    generator = torch.Generator().manual_seed(0)
    sweeps = [chain.sweep(x, generator) for _ in range(repeats)]
    plain = torch.stack([one["plain"] for one in sweeps])  # (R, N, T)
    cut = torch.stack([one["clipped"] for one in sweeps])
    total = plain.mean(0).sum(1) + chain.prior(x)
    truth, library = bits(total, d), evaluated(model, x, reference, error)
    noise = Value(0.0, float(plain.sum(2).std(0).square().mean().sqrt()) / (d * LN2 * math.sqrt(len(x) * repeats)))
    found = [
        case("truth", name, "the bound", Value(truth.value, noise.error), library, "the library's evaluation")
        | {"error_over_items": truth.error}
    ]
    for label, step in SUBSETS.items():
        kept = torch.arange(0, T, step)
        levels_kept = kept[1:]
        again = model.reconstruction(x, torch.randn(x.shape, generator=generator)).detach()
        for t in levels_kept:  # KL_t of the library has the number of the cleaner latent, counted from 1
            with torch.no_grad():
                again = again + model.level_kl(x, t.expand(len(x)), torch.randn(x.shape, generator=generator))
        partial = plain.mean(0)[:, kept].sum(1)
        size = bits(partial - total, d)
        second = bits(again, d) - library
        found.append(
            case(
                "subset-of-levels", name, label, size, Value(second.value, math.hypot(size.error, second.error)),
                "the library's costs at these levels, with other noise", reported=bits(partial, d),
            )
        )  # fmt: skip
    mse = torch.stack([one["error"] for one in sweeps]).mean((0, 2)) / d
    with torch.no_grad():
        simple = torch.stack([model.simple_loss(x, generator) for _ in range(100)]).double()
    uncertain = float(simple.std() / len(simple) ** 0.5) / LN2
    found.append(
        case(
            "simple-loss", name, "", mean(mse, 1 / LN2) - truth, Value(float(simple.mean()) / LN2, uncertain) - library,
            "the library's L_simple at random levels, less its bound", L_simple=mean(mse),
        )
    )  # fmt: skip
    other = clipped(model.denoiser, model.likelihood.space)
    limited = df.DiffusionModel(model.process, other, model.likelihood)
    difference = (cut - plain).mean(0).sum(1)
    paired = df.compare(limited, model, x, target_error=error, reference=reference)
    apart = paired.difference.to("bits/dim", d)
    found.append(
        case(
            "clipping", name, "", bits(difference, d), Value(apart.value, math.hypot(apart.error, bits(difference, d).error)),
            "the library's comparison of both chains", clipped=bits(cut.mean(0).sum(1) + chain.prior(x), d), plain=truth,
        )
    )  # fmt: skip
    first = spread(chain, x, plain.sum(2), generator)
    again = torch.stack([chain.sweep(others, generator)["plain"].sum(1) for _ in range(repeats)])
    second = spread(chain, others, again, generator)
    found.append(
        case("one-noise", name, "the network", first["inflation"], second["inflation"], "other images and noise",
             independent=first["independent"], shared=first["shared"])
    )  # fmt: skip
    found.append(gaussian_inflation(name, reference, x))
    nats = truth.value * LN2
    found.append(
        case(
            "units", name, "mean nats per voxel, read as bits/dim", Value(nats - truth.value), Value((LN2 - 1) * truth.value),
            "the bound times ln 2 − 1", nats_per_voxel=nats,
        )
    )  # fmt: skip
    return found


def spread(chain: Chain, x: Tensor, totals: Tensor, generator: torch.Generator) -> dict[str, Value]:
    """Return the standard deviation of an item's sum over all levels (bits/dim) with noise of each level's own, of which `totals` (R, N)
    are draws in nats, with one noise for all levels, and the difference.
    """
    repeats, items = totals.shape
    one = torch.stack([chain.sweep(x, generator, shared=True)["plain"].sum(1) for _ in range(repeats)])
    # The error of a standard deviation that is pooled over items with R − 1 degrees of freedom each.
    part, scale = 1 / math.sqrt(2 * items * (repeats - 1)), x[0].numel() * LN2
    apart, common = (float(draws.std(0).square().mean().sqrt() / scale) for draws in (totals, one))
    independent, shared = Value(apart, part * apart), Value(common, part * common)
    return {"independent": independent, "shared": shared, "inflation": shared - independent}


def gaussian_inflation(name: str, reference: Tensor, x: Tensor, draws: int = 32, items: int = 8) -> dict[str, Any]:
    """Return the same for Gaussian data of equal mean and covariance and the best linear denoiser, simulated and in closed form.

    There ε − ε̂ = a ε + b x for every eigenvector, and KL_t = ½ expm1(γ_t − γ_s) Σ (a ε + b x)².
    """
    flat = reference.double().flatten(1)
    centred = flat - flat.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(flat))
    values = values.clamp(min=1e-6)
    some = (x[:items].double().flatten(1) - flat.mean(0)) @ vectors
    kept = torch.cumprod(1 - betas(), 0).unsqueeze(1)
    gain = kept.sqrt() * values / (kept * values + 1 - kept)  # x̂ = gain · z
    ratio = (kept / (1 - kept)).sqrt()
    a, b = ratio * gain * (1 - kept).sqrt(), ratio * (gain * kept.sqrt() - 1)
    gamma = torch.log((1 - kept) / kept)
    weight, a, b = 0.5 * torch.expm1(gamma[1:] - gamma[:-1]), a[1:], b[1:]
    # Variances of the sums over levels: covariances between levels are 0, or those of one noise.
    apart = (2 * weight**2 * a**4).sum() + ((4 * weight**2 * a**2 * b**2) @ some.square().T).sum(0)
    common = 2 * (weight * a**2).sum(0).square().sum() + 4 * some.square() @ (weight * a * b).sum(0).square()
    scale, generator = x[0].numel() * LN2, torch.Generator().manual_seed(0)
    exact = Value(float((common.mean().sqrt() - apart.mean().sqrt()) / scale))
    noise = torch.randn(draws, *some.shape, generator=generator, dtype=torch.float64)
    one, own = (torch.zeros(draws, items, dtype=torch.float64) for _ in range(2))
    for w, a_t, b_t in zip(weight, a, b, strict=True):
        one += w * (a_t * noise + b_t * some).square().sum(-1)
        new = torch.randn(noise.shape, generator=generator, dtype=torch.float64)
        own += w * (a_t * new + b_t * some).square().sum(-1)
    part = 1 / math.sqrt(2 * items * (draws - 1))
    sds = [float(drawn.std(0).square().mean().sqrt() / scale) for drawn in (one, own)]
    simulated = Value(sds[0] - sds[1], part * math.hypot(*sds))
    return case(
        "one-noise", name, "a Gaussian world", simulated, exact, "closed form", shared=sds[0], independent=sds[1]
    )


def run(name: str, mnist: str, model: df.DiffusionModel, quick: bool = False) -> list[dict[str, Any]]:
    """Return all cases of the chain's faults on a data set."""
    x, reference = images(name, mnist)[0], images(name, mnist, "train")[0][:2000]
    few, many = (32, 447) if name == "digits" else (24, 512)
    if quick:
        few, many = 4, 16
    error = 0.05 if quick else 0.01 if name == "digits" else 0.02
    return [
        *decoders(name, model, x[:many]),
        *priors(name, x[:many]),
        *levels(name, model, x[:few], x[few : 2 * few], reference, 2 if quick or name == "MNIST" else 4, error),
    ]
