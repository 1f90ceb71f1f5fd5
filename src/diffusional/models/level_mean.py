"""x̂ of a logistic levels head and its derivatives in closed form, without storing a table of levels × positions (MATH (5)).

With p_k ∝ exp[ℓ_k − (z − α x_k)²/(2σ²)] as in `parameterization`, x̂ = Σ_k p_k x_k has ∂x̂/∂θ = Cov_p(x_k, ∂ ln p_k/∂θ). With
V = E (x_k − x̂)², W = E (x_k − x̂)³, SNR = α²/σ² = e^{−γ}, u = Δ/s and a_k = (upper edge of k − μ)/s, a_{k−1} that of its lower edge,

    ∂x̂/∂z    = SNR/α · V,
    ∂x̂/∂γ    = SNR [½ W + (x̂ − z/α) V] + ½ α z V,
    ∂x̂/∂μ    = Cov(x_k, σ(a_{k−1}) − σ(−a_k))/s,
    ∂x̂/∂ln s = Cov(x_k, a_{k−1} σ(a_{k−1}) − a_k σ(−a_k) − u/(e^u − 1)),

where the first level has neither the term of a lower edge nor that of u, and the last level has no term of an upper edge. The sums are
short, since

    p_k ∝ (1 − e^{−u}) σ(|a_k|) σ(|a_{k−1}|) exp[min(a_k, 0) − max(a_{k−1}, 0) − evidence] for an inner level: one sigmoid
    for each edge and one exponential for each level, no logarithm;
    the prior is log-concave, so that on both sides of the mode p falls at least as fast as the evidence N(x_k; z/α, σ²/α²) does:
    inner levels beyond 10 σ/α are below e^{−50} of those next to the mode, and omitted.

Coefficients of positions are computed in float64, each relative to a point at which it is small, and converted to the network's type last.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffusional.errors import DiffusionalError
from diffusional.shapes import Batch
from diffusional.space import Discrete

# Standard deviations σ/α around the mode within which levels are counted.
_REACH = 10.0
# Scales s beyond the range at which μ is held, so that nothing overflows float32.
_FAR = 1e30
# ln of a negligible weight. Processors are slow with float32 numbers that are still smaller (denormals).
_NOTHING = -70.0
# Entries of a table of levels × positions that fit into the cache of a core, or that suffice to occupy a GPU.
_CPU_BLOCK, _GPU_BLOCK = 2**18, 2**25


def logistic_mean(mu: Batch, s: Batch, z: Batch, gamma: Tensor, space: Discrete) -> Batch:
    """Return x̂ (B, *dims) under a discretised logistic prior with μ and s (B, *dims) in the data's units, at z and γ (B,) or ().

    It has first derivatives in all four arguments; a second derivative raises DiffusionalError.

    >>> space, half = Discrete((1,), 3), torch.full((1, 1), 0.5)
    >>> logistic_mean(half, half, torch.ones(1, 1), torch.tensor([torch.inf]), space)        # σ(0) − σ(−2)
    tensor([[0.3808]])
    """
    gamma = gamma.to(device=z.device, dtype=torch.float64).expand(z.shape[0])
    value = _LogisticMean.apply(mu, s, z, gamma, space)
    assert isinstance(value, Tensor)
    return value


class _LogisticMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mu: Tensor, s: Tensor, z: Tensor, gamma: Tensor, space: Discrete) -> Tensor:
        asked = ctx.needs_input_grad
        # In float16, steps of a hundred levels would be off by a level.
        with torch.autocast(z.device.type, enabled=False):
            value, slopes = _mean_and_slopes(mu, s, z, gamma, space, any(asked[:2]), any(asked[2:4]))
        ctx.save_for_backward(*slopes)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise DiffusionalError(
                "expected create_graph=False, got True: the mean of a logistic levels head has only a first derivative. For a second, "
                "compute the mean from a LevelsPrediction's log_probs, (log_probs.exp() * values).sum(1)"
            )
        asked = zip(ctx.saved_tensors, ctx.needs_input_grad[:4], strict=True)
        mu, s, z, gamma = (grad_outputs[0] * slope if wanted else None for slope, wanted in asked)
        return mu, s, z, None if gamma is None else gamma.double().flatten(1).sum(1), None


@dataclass(frozen=True)
class _Places:
    """Coefficients of P positions, (P,), or (2, P) for the first and the last level.

    Steps j count levels from the middle of those that are summed; the edges of a level are at j ± ½. a = `at_edge` + u (j − `edge`), where
    `edge` is the edge next to μ. −ln of the evidence is y (`slope` + `curvature` y) + const with y = j − `mode`. `ends` are −ln p + const of
    the first and the last level, at the steps `end_steps`, and `end_weight` is their factor 1/(1 − e^{−u}).
    """

    edge: Tensor
    at_edge: Tensor
    u: Tensor
    mode: Tensor
    slope: Tensor
    curvature: Tensor
    ends: Tensor
    end_steps: Tensor
    end_weight: Tensor

    def part(self, places: slice, dtype: torch.dtype) -> "_Places":
        return _Places(*(value[..., places].to(dtype) for value in vars(self).values()))


def _blocks(counts: list[int], size: int, entries: int) -> list[tuple[slice, int]]:
    """Return slices of the positions of items of `size` positions, each with the number of levels to sum, which decreases over the items.

    >>> _blocks([4, 1], 3, 12)
    [(slice(0, 2, None), 4), (slice(2, 4, None), 4), (slice(4, 6, None), 1)]
    """
    blocks, start = [], 0
    while start < size * len(counts):
        n = counts[start // size]
        stop = min(start + max(1, entries // (n + 2)), size * len(counts))
        blocks.append((slice(start, stop), n))
        start = stop
    return blocks


def _sums(at: _Places, n: int, scratch: Tensor, of_prior: bool, of_evidence: bool) -> Tensor:
    """Return sums (8, P) over n inner levels and the two ends: the mean step, p of both ends, and over the inner levels, with y = j − mean,

    Σ p y, Σ p y [σ(a_{k−1}) − σ(−a_k)], Σ p y [a_{k−1} σ(a_{k−1}) − a_k σ(−a_k)], Σ p y², Σ p y³; 0 for those that are not requested.

    `scratch` (6, at least (n + 2) P) is overwritten, since allocating memory for every block would cost more than the sums.
    """
    below, width = (n - 1) // 2, at.u.shape[0]
    a, lower, upper, spare = scratch[:4, : (n + 1) * width].view(4, n + 1, width)
    p, y = scratch[4, : (n + 2) * width].view(n + 2, width), scratch[5, : n * width].view(n, width)
    inner = p[1:-1]
    steps = torch.arange(-below, n - below, dtype=at.u.dtype, device=at.u.device)
    edges = torch.arange(n + 1, dtype=at.u.dtype, device=at.u.device) - (below + 0.5)
    torch.sub(edges.unsqueeze(1), at.edge, out=a)
    torch.addcmul(at.at_edge, a, at.u, out=a)
    torch.sigmoid(a, out=lower)
    torch.sub(1, lower, out=upper)

    torch.sub(steps.unsqueeze(1), at.mode, out=y)
    torch.clamp(a, min=0, out=spare)
    torch.addcmul(at.slope, y, at.curvature, out=inner).mul_(y).add_(spare[:-1])
    inner.sub_(torch.clamp(a, max=0, out=spare)[1:])
    p[0], p[-1] = at.ends
    torch.sub(p.amin(0), p, out=p).clamp_(min=_NOTHING).exp_()
    torch.maximum(lower, upper, out=spare)  # σ(|a|)
    inner.mul_(spare[:-1]).mul_(spare[1:])
    p[:: n + 1] *= at.end_weight
    p /= p.sum(0)

    out = a.new_zeros(8, width)
    ends = p[:: n + 1]
    mean = steps @ inner + (ends * at.end_steps).sum(0)
    out[0], out[1:3] = mean, ends
    if of_prior or of_evidence:
        torch.sub(steps.unsqueeze(1), mean, out=y)
        out[3] = inner.mul_(y).sum(0)
    if of_prior:
        lower, upper = lower[:-1].mul_(inner), upper[1:].mul_(inner)
        out[4] = lower.sum(0) - upper.sum(0)
        out[5] = lower.mul_(a[:-1]).sum(0) - upper.mul_(a[1:]).sum(0)
    if of_evidence:
        out[6] = inner.mul_(y).sum(0)
        out[7] = inner.mul_(y).sum(0)
    return out


def _mean_and_slopes(
    mu: Tensor, s: Tensor, z: Tensor, gamma: Tensor, space: Discrete, of_prior: bool, of_evidence: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return x̂, and its derivatives in μ, s, z and γ (B, *dims), which are empty if they are not requested."""
    low, high, width, last = space.low, space.high, space.width, space.levels - 1
    gamma = gamma.clamp(-80.0, 80.0)  # beyond, z determines x or is independent of it, and e^γ overflows
    reach = torch.ceil(_REACH / width * torch.exp(0.5 * gamma)) + 2
    # Items with many levels first, so that the items of a part have about the same number of levels.
    counts, order = (2 * reach + 1).nan_to_num().clamp(max=last - 1).long().sort(descending=True)
    size = math.prod(z.shape[1:])
    blocks = _blocks(counts.tolist(), size, _CPU_BLOCK if z.device.type == "cpu" else _GPU_BLOCK)

    def ordered(values: Tensor) -> Tensor:
        return values[order].double().flatten()

    def restored(values: Tensor) -> Tensor:
        out = torch.empty_like(z)
        out[order] = values.reshape(z.shape).to(z.dtype)
        return out

    noisy, s, gamma = ordered(z), ordered(s), gamma[order].repeat_interleave(size)
    mu = torch.clamp(ordered(mu), low - _FAR * s, high + _FAR * s)
    snr, alpha = torch.exp(-gamma), torch.exp(0.5 * logsigmoid(-gamma))
    scaled, pull = noisy / alpha, 1 / (snr * s)  # z/α; how far the prior can shift the mode from it
    mode = ((scaled + torch.clamp(mu - scaled, -pull, pull) - low) / width).round().clamp(0, last)
    edge = torch.clamp(torch.floor((mu - low) / width), 0, last - 1) + 0.5
    n = torch.empty_like(noisy)
    for part, count in blocks:
        n[part] = count
    below = torch.floor(0.5 * (n - 1))
    middle = torch.clamp(mode, 1 + below, last - n + below)

    u = width / s
    slope, curvature = width * snr * (low + width * mode - scaled), 0.5 * width**2 * snr
    inward = torch.stack([low + 0.5 * width - mu, mu - (high - 0.5 * width)]) / s  # a of the first edge, −a of the last
    off = torch.stack([-mode, last - mode])
    places = _Places(
        edge=edge - middle,
        at_edge=(low + width * edge - mu) / s,
        u=u,
        mode=mode - middle,
        slope=slope,
        curvature=curvature,
        ends=off * (slope + off * curvature) - logsigmoid(inward),
        end_steps=torch.stack([-middle, last - middle]),
        end_weight=-1 / torch.expm1(-u),
    )
    sums = noisy.new_empty(8, len(noisy))
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    most = max(((part.stop - part.start) * (count + 2) for part, count in blocks), default=0)
    scratch = torch.empty(6, most, dtype=dtype, device=z.device)
    for part, count in blocks:
        sums[:, part] = _sums(places.part(part, dtype), count, scratch, of_prior, of_evidence)

    mean, _, _, moved, tilt, lean, second, third = sums
    y = places.end_steps - mean
    py = sums[1:3] * y
    value = low + width * (middle + mean)
    slopes = [value.new_zeros(0)] * 4
    if of_prior:
        outward = torch.sigmoid(-inward)
        tilt = tilt - py[0] * outward[0] + py[1] * outward[1]
        lean = lean - moved * u / torch.expm1(u) - (py * inward * outward).sum(0)
        slopes[:2] = restored(width * tilt / s), restored(width * lean / s)
    if of_evidence:
        residue = moved + py.sum(0)  # Σ p y, which is zero except for rounding
        second = second + (py * y).sum(0)
        third = width**3 * (third + (py * y.square()).sum(0) - 3 * residue * second)
        second = width**2 * (second - residue.square())
        slopes[2] = restored(snr / alpha * second)
        slopes[3] = restored(snr * (0.5 * third + (value - scaled) * second) + 0.5 * alpha * noisy * second)
    return restored(value), slopes
