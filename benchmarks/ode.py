"""The likelihood of a probability flow: ours beside the ways of score_sde and flow_matching, with the same networks.

    python benchmarks/ode.py [--part errors|batch|coverage|orders|mass …] [--quick] [--out FILE]

Worlds: mixtures of Gaussians in 8 and 64 dimensions with their optimal denoisers, where ln p(x) is known, and the digits (17 levels, with
uniform noise added once, as public code does) with a small network that is trained here; its reference is the flow itself, by 512 steps of
the fourth-order method and the exact trace. All networks predict v for γ between those of the VP process of score_sde, at t = 1e-5 and 1.

The other ways are reimplemented here; none of their code is copied:

    score_sde       yang-song/score_sde_pytorch, likelihood.py at c8c18d1: scipy's RK45 for the flattened batch, rtol = atol = 1e-5,
                    t from 1e-5 to 1, one Rademacher probe for each item; x stands for z at t = 1e-5
    flow_matching   facebookresearch/flow_matching, flow_matching/solver/ode_solver.py at 0abac95: fixed steps of Euler's or the midpoint
                    method, or dopri5 for the batch, from t = 1 to 0 along t x + (1 − t) ε, one Rademacher probe

The cost is the number of network evaluations and of products with its Jacobian, each counted as one evaluation, per item: a right-hand side
with one probe costs two. All steps count, also those of coarser grids.

Results of other parts in --out are kept.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import commit, machine, save
from scipy.integrate import solve_ivp
from scipy.stats import t as student
from torch import Tensor, nn
from velocity import train

import diffusional as df
from diffusional.ledger import satterthwaite
from diffusional.models.flow import ProbabilityFlow, integrated
from diffusional.networks import MLP

# β(t) of score_sde's VP process, and the time that its likelihood starts at.
BETA, EPSILON = (0.1, 20.0), 1e-5
LN2, NORMAL = math.log(2), math.log(2 * math.pi)


def integral(t: float) -> float:
    """Return ∫_0^t β."""
    return BETA[0] * t + 0.5 * (BETA[1] - BETA[0]) * t**2


def vp_gamma(t: float) -> float:
    """Return γ(t) of the VP process."""
    return math.log(math.expm1(integral(t)))


ENDS = vp_gamma(EPSILON), vp_gamma(1.0)


@dataclass
class World:
    """A model, items x (N, D), the truth ln p(x) (N,) and items that are far from the data."""

    name: str
    model: df.DiffusionModel
    x: Tensor
    truth: Tensor
    far: Tensor

    @property
    def flow(self) -> ProbabilityFlow:
        return self.model.flow()

    @property
    def bit(self) -> float:
        """Nats of one bit/dim."""
        return self.x.shape[1] * LN2


def around(denoiser: df.Denoiser, d: int) -> df.DiffusionModel:
    """Return the chain of a denoiser between the ends of the VP process."""
    process = df.GaussianDiffusion(df.schedule.log_snr_linear(*ENDS))
    return df.DiffusionModel(process, denoiser, df.likelihood.GaussianLikelihood(df.Continuous((d,))))


def mixture(d: int, items: int, components: int = 4) -> World:
    """Return a mixture with mean zero, correlated dimensions and different scales."""
    generator = torch.Generator().manual_seed(d)
    roots = torch.randn(components, d, d, generator=generator, dtype=torch.float64)
    weights = torch.arange(1.0, components + 1).double()
    means = torch.randn(components, d, generator=generator, dtype=torch.float64)
    covariances = 0.5 / d * roots @ roots.mT + 0.05 * torch.eye(d, dtype=torch.float64)
    world = df.exact.Mixture(weights, means - weights / weights.sum() @ means, covariances)
    x = world.sample(items, torch.Generator().manual_seed(3))
    return World(
        f"mixture, D = {d}", around(world.denoiser("v"), d), x, world.log_prob(x), 5 * x[:1] / x[:1].abs().max()
    )


def digits(items: int, seconds: float, steps: int) -> World:
    """Return the digits with uniform noise, and a network trained for v on all γ with equal weights."""
    torch.manual_seed(0)
    data = df.data.load("digits")
    levels = data.space.levels
    network = MLP((64,), hidden=256)
    width = 2 / (levels - 1)
    print("digits:", train(network, data.encode("train").flatten(1), seconds, ENDS, dither=width), flush=True)
    model = around(df.Denoiser(network, "v"), 64)
    x = data.encode("test").flatten(1)[:items].double()
    x = x + width * (torch.rand(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 0.5)
    world = World(
        "digits, D = 64", model, x, x[:, 0], torch.randn(1, 64, generator=torch.Generator().manual_seed(1)).double()
    )
    # Its reference, by the flow's own equation.
    world.truth = torch.cat([fixed_gamma(world, some, steps) for some in x.split(16)])
    finer = fixed_gamma(world, x[:8], steps // 2)
    print(f"digits: reference changes by {float((finer - world.truth[:8]).abs().max()):.2g} nats", flush=True)
    return world


def fixed_gamma(world: World, x: Tensor, steps: int, directions: Tensor | None = None) -> Tensor:
    """Return ln p (B,) by `steps` steps of the fourth-order method in γ, with the exact trace or one probe."""
    d = x.shape[1]
    a = 0.5 * float(torch.nn.functional.logsigmoid(torch.tensor(-ENDS[0], dtype=torch.float64)))
    probe = torch.eye(d, dtype=torch.float64)[:, None] if directions is None else directions
    z, trace = integrated(world.flow, math.exp(a) * x, steps, probe)
    return normal(z) + trace.sum(0) + d * a


def normal(z: Tensor) -> Tensor:
    """Return ln N(z; 0, I) (B,)."""
    return -0.5 * (z.square() + NORMAL).sum(1)


# A right-hand side: z (B, D), its time and probes (P, B, D) to the slope and the trace's estimate (B,).
Slopes = Callable[[Tensor, float, Tensor], tuple[Tensor, Tensor]]


def vp(world: World) -> Slopes:
    """Return the flow in the time of score_sde."""

    def slopes(z: Tensor, t: float, probe: Tensor) -> tuple[Tensor, Tensor]:
        gamma = torch.tensor(vp_gamma(t), dtype=torch.float64)
        rate = (BETA[0] + t * (BETA[1] - BETA[0])) / float(torch.sigmoid(gamma))
        f, trace = world.flow.slopes(z, gamma, probe)
        return f * rate, trace.sum(0) * rate

    return slopes


def straight(world: World) -> Slopes:
    """Return the flow of flow_matching, dx_t/dt = x̂ − ε̂ with x_t = t x + (1 − t) ε; the network is not asked outside of its range of γ."""

    def slopes(z: Tensor, t: float, probe: Tensor) -> tuple[Tensor, Tensor]:
        norm = math.hypot(t, 1 - t)
        a, s = t / norm, (1 - t) / norm
        gamma = 2 * math.log(s / a) if 0 < t < 1 else -math.inf if t > 0 else math.inf
        gamma = torch.tensor(min(max(gamma, ENDS[0]), ENDS[1]), dtype=torch.float64)
        with torch.enable_grad():
            z = z.detach().clone().requires_grad_()
            v = world.model.denoiser(z / norm, gamma.expand(len(z)), None).v
            u = (a - s) / norm * z - (a + s) * v
            trace = torch.zeros(len(z), dtype=torch.float64)
            for e in probe:
                e = e.expand_as(u)
                (product,) = torch.autograd.grad(u, z, e, retain_graph=True)
                trace = trace + (product * e).sum(1)
        return u.detach(), trace.detach()

    return slopes


def adaptive(
    slopes: Slopes, x: Tensor, probe: Tensor, span: tuple[float, float], tolerance: float
) -> tuple[Tensor, int]:
    """Return ln p (B,) by scipy's RK45 with one step for the batch, and its number of right-hand sides."""
    n, d = x.shape

    def right(t: float, state: np.ndarray) -> np.ndarray:
        f, trace = slopes(torch.from_numpy(state[:-n].reshape(n, d).copy()), t, probe)
        return np.concatenate([f.double().numpy().ravel(), trace.double().numpy()])

    begin = np.concatenate([x.double().numpy().ravel(), np.zeros(n)])
    found = solve_ivp(right, span, begin, rtol=tolerance, atol=tolerance, method="RK45")
    z = torch.from_numpy(found.y[:-n, -1].reshape(n, d).copy())
    return normal(z) + torch.from_numpy(found.y[-n:, -1].copy()), found.nfev


def fixed(slopes: Slopes, x: Tensor, probe: Tensor, steps: int, method: str) -> tuple[Tensor, int]:
    """Return ln p (B,) by `steps` equal steps from t = 1 to 0, and the number of right-hand sides."""
    z, trace, h = x.double(), torch.zeros(len(x), dtype=torch.float64), -1 / steps
    for i in range(steps):
        t = 1 + i * h
        f, change = slopes(z, t, probe)
        if method == "midpoint":
            f, change = slopes(z + 0.5 * h * f, t + 0.5 * h, probe)
        z, trace = z + h * f, trace + h * change
    return normal(z) + trace, steps * (2 if method == "midpoint" else 1)


def rademacher(x: Tensor, seed: int) -> Tensor:
    """Return one probe (1, B, D)."""
    return torch.randint(0, 2, (1, *x.shape), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1


Way = Callable[[World, Tensor, Tensor, Any], tuple[Tensor, int]]
VP, FLOW = (EPSILON, 1.0), (1.0, 0.0)
WAYS: dict[str, tuple[Way, list[Any]]] = {
    "score_sde": (lambda w, x, e, tol: adaptive(vp(w), x, e, VP, tol), [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]),
    "flow_matching, midpoint": (lambda w, x, e, n: fixed(straight(w), x, e, n, "midpoint"), [8, 16, 32, 64, 128, 256]),
    "flow_matching, Euler": (lambda w, x, e, n: fixed(straight(w), x, e, n, "Euler"), [16, 64, 256]),
    "flow_matching, dopri5": (lambda w, x, e, tol: adaptive(straight(w), x, e, FLOW, tol), [1e-2, 1e-3, 1e-5]),
}


def rms(values: Tensor) -> float:
    """Return the root mean square."""
    return float(values.square().mean().sqrt())


def spread(squares: Tensor) -> float:
    """Return the error over items of a root mean square, from the squares (N,)."""
    value = float(squares.mean().sqrt())
    return float(squares.std()) / math.sqrt(len(squares)) / (2 * value) if value > 0 else 0.0


def errors(world: World, quick: bool) -> list[dict[str, Any]]:
    """Return the error of every way at every setting: in all, and that of its solver, with the exact trace."""
    x, rows = world.x, list[dict[str, Any]]()
    unit = torch.eye(x.shape[1], dtype=torch.float64)[:, None]
    repeats = 2 if quick else 5
    for name, (way, settings) in WAYS.items():
        for setting in settings[:1] if quick else settings:
            draws = [way(world, x, rademacher(x, 100 + r), setting) for r in range(repeats)]
            whole = way(world, x[:8], unit, setting)[0]
            for r in (1, repeats):
                off = [
                    (sum(d[0] for d in draws[k : k + r]) / r - world.truth) / world.bit for k in range(0, repeats, r)
                ]
                square = torch.stack(off).square().mean(0)
                rows.append(
                    {
                        "way": name,
                        "setting": setting,
                        "repeats": r,
                        "cost": 2 * sum(d[1] for d in draws) / repeats * r,
                        "error": float(square.mean().sqrt()),
                        "error_of_error": spread(square),
                        "solver_error": rms((whole - world.truth[:8]) / world.bit),
                        "stated": None,
                    }
                )
            print(world.name, rows[-1], flush=True)
    settings = [(t, p) for t in (1e-1, 1e-2, 1e-3) for p in (2, 8, 32)] + [(t, 0) for t in (1e-1, 1e-2, 1e-3)]
    for tolerance, probes in settings[3:4] if quick else settings:
        options = {"exact_up_to": 64, "probes": 2} if not probes else {"exact_up_to": 0, "probes": probes}
        found = df.ode_log_likelihood(world.model, x, tolerance=tolerance, **options)
        off = (found.per_item["nelbo"] + world.truth) / world.bit
        count = found.provenance["evaluations"]
        rows.append(
            {
                "way": "ours",
                "setting": tolerance,
                "probes": probes or "exact",
                "repeats": 1,
                "cost": (count["network"] + count["derivatives"]) / len(x),
                "error": rms(off),
                "error_of_error": spread(off.square()),
                "stated": rms(found.per_item["error"] / world.bit),
                "stated_solver": rms(found.per_item["solver_error"] / world.bit),
            }
        )
        print(world.name, rows[-1], flush=True)
    return rows


def batch(world: World, quick: bool) -> list[dict[str, Any]]:
    """Return how far the score of an item, with its probe held, depends on the items that it is computed with."""
    n = 2 if quick else 8
    x, probe, out = world.x[: 2 * n], rademacher(world.x, 7), list[dict[str, Any]]()
    probe = torch.cat([probe[:, : 2 * n], rademacher(world.far, 8)], 1)
    far = torch.cat([x, world.far])
    chosen = {"score_sde": [1e-3, 1e-5], "flow_matching, midpoint": [64], "flow_matching, dopri5": [1e-3, 1e-5]}

    def compared(name: str, setting: Any, score: Callable[[Tensor, Tensor], Tensor]) -> None:
        alone = torch.cat([score(x[i : i + 1], probe[:, i : i + 1]) for i in range(n)])
        among = score(x, probe[:, : 2 * n])[:n]
        beside = score(far, probe)[:n]
        pair = {"others": (among - alone).abs(), "one far out": (beside - alone).abs()}
        row = {"way": name, "setting": setting}
        row |= {
            key: {"rms": rms(off) / world.bit, "largest": float(off.max()) / world.bit} for key, off in pair.items()
        }
        out.append(row)
        print(world.name, row, flush=True)

    for name, settings in chosen.items():
        for setting in settings:
            compared(name, setting, lambda x, e, n=name, s=setting: WAYS[n][0](world, x, e, s)[0])
    compared(
        "ours", 1e-3,
        lambda x, e: -df.ode_log_likelihood(world.model, x, tolerance=1e-3, probes=8, exact_up_to=0).per_item["nelbo"],
    )  # fmt: skip
    return out


def noise_of_dequantisation(world: World, draws: int, steps: int) -> dict[str, float]:
    """Return the standard deviation of an item's score over the uniform noise that is added to its levels, bits/dim."""
    width = 2 / 16
    base = ((world.x + 1) / width).round() * width - 1
    generator = torch.Generator().manual_seed(11)
    scores = []
    for _ in range(draws):
        x = base + width * (torch.rand(base.shape, generator=generator, dtype=torch.float64) - 0.5)
        scores.append(fixed_gamma(world, x, steps))
    sd = torch.stack(scores).std(0) / world.bit
    return {"sd": float(sd.mean()), "error": float(sd.std()) / math.sqrt(len(sd)), "draws": draws}


def coverage(quick: bool) -> dict[str, Any]:
    """Return the coverage of 95 % intervals by 8 probes in 64 dimensions: of items, and of means of 4."""
    repeats, group, tolerance = (16, 4, 0.1) if quick else (1000, 4, 5e-3)
    world = mixture(64, repeats * group)
    inside, means, late, began = [], [], 0, time.process_time()
    for k, x in enumerate(world.x.split(64)):
        found = df.ode_log_likelihood(world.model, x, seed=k, exact_up_to=0, probes=8, tolerance=tolerance)
        late += not found.reached
        truth = -world.truth[64 * k : 64 * k + len(x)]
        off, error = found.per_item["nelbo"] - truth, found.per_item["error"]
        inside.append(off.abs() <= student.ppf(0.975, 7) * error)
        probes, solver = found.per_item["probe_error"], found.per_item["solver_error"]
        for i in range(0, len(x), group):
            own = slice(i, i + group)
            # As the record of these items alone has them.
            whole = math.hypot(float(probes[own].square().sum().sqrt()) / group, float(solver[own].mean()))
            freedom = satterthwaite((probes[own].square(), 7))
            means.append(abs(float(off[own].mean())) <= student.ppf(0.975, freedom) * whole)
        if k == 0:
            low, high = found.interval()
            assert low < high
    items, means = torch.cat(inside).double(), torch.tensor(means, dtype=torch.float64)

    def share(hits: Tensor) -> dict[str, float]:
        p = float(hits.mean())
        return {"value": p, "error": math.sqrt(p * (1 - p) / len(hits)), "repeats": len(hits)}

    out = {
        "dimensions": 64,
        "probes": 8,
        "tolerance": tolerance,
        "group": group,
        "items": share(items),
        "means": share(means),
    }
    out |= {"not_reached": late, "cpu_seconds": round(time.process_time() - began, 1)}
    print(out, flush=True)
    return out


def orders(world: World, quick: bool) -> list[dict[str, Any]]:
    """Return the error of the solver, with the exact trace, by the number of steps."""
    x = world.x[:4]
    unit = torch.eye(x.shape[1], dtype=torch.float64)[:, None]
    reference = fixed_gamma(world, x, 32 if quick else 512)
    straight_reference = (
        fixed(straight(world), x, unit, 32 if quick else 2048, "midpoint")[0] if x.shape[1] < 64 else None
    )
    out = []
    for name, order, run, truth in (
        ("ours", 4, lambda n: fixed_gamma(world, x, n), reference),
        ("flow_matching, midpoint", 2, lambda n: fixed(straight(world), x, unit, n, "midpoint")[0], straight_reference),
        ("flow_matching, Euler", 1, lambda n: fixed(straight(world), x, unit, n, "Euler")[0], straight_reference),
    ):
        if truth is None:
            continue
        steps = [8, 16] if quick else [8, 16, 32, 64, 128]
        off = [rms((run(n) - truth) / world.bit) for n in steps]
        out.append({"way": name, "order": order, "steps": steps, "error": off})
        print(world.name, out[-1], flush=True)
    return out


class Tanh(nn.Module):
    """A small, smooth network that is the optimum of no world."""

    def __init__(self, d: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(d + 1, 4).double(), nn.Linear(4, d).double()

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(torch.cat([z, 0.3 * log_snr[:, None]], 1))))


def mass(quick: bool) -> list[dict[str, Any]]:
    """Return the integral of the densities of small networks over a grid, with the tolerance of each way."""
    out = []
    for d, n, half in ((1, 400, 12.0), (2, 100, 10.0)):
        n = n // 10 if quick else n
        network = Tanh(d).requires_grad_(False)
        axis = torch.linspace(-half, half, n, dtype=torch.float64)
        grid = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
        world = World("", around(df.Denoiser(network, "v"), d), grid, grid[:, 0], grid[:1])
        cell = float(axis[1] - axis[0]) ** d
        probe = rademacher(grid, 5)
        densities = {
            "ours": -df.ode_log_likelihood(world.model, grid, tolerance=1e-3).per_item["nelbo"],
            "score_sde": adaptive(vp(world), grid, probe, VP, 1e-5)[0],
            "flow_matching, midpoint": fixed(straight(world), grid, probe, 100, "midpoint")[0],
        }
        for way, values in densities.items():
            out.append({"dimensions": d, "points": len(grid), "way": way, "mass": float(values.exp().sum()) * cell})
            print(out[-1], flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("mass", "coverage", "errors", "batch", "orders")
    parser.add_argument("--part", nargs="+", choices=parts, default=parts, help="some parts only")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ode.json")
    options = parser.parse_args()
    quick, began = options.quick, time.process_time()
    found = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}

    def keep(name: str, value: Any) -> None:
        found[name] = value
        found["machine"], found["commit"] = machine(), commit()
        found.setdefault("cpu_seconds", {})[name] = round(time.process_time() - began, 1)
        save(options.out, found)

    if "mass" in options.part:
        keep("mass", mass(quick))
    if "coverage" in options.part:
        keep("coverage", coverage(quick))
    rest = [part for part in options.part if part in ("errors", "batch", "orders")]
    if not rest:
        return
    items = 4 if quick else 32
    worlds = [mixture(8, items), mixture(64, items)]
    worlds.append(digits(items, 1 if quick else 60, 8 if quick else 512))
    for part, measure in (("errors", errors), ("batch", batch), ("orders", orders)):
        if part in rest:
            keep(part, {world.name: measure(world, quick) for world in worlds})
    keep("dequantisation", noise_of_dequantisation(worlds[-1], 2 if quick else 8, 4 if quick else 32))


if __name__ == "__main__":
    main()
