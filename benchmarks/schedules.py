"""What γ's shape, its end points and T do to the bound of a trained continuous-time model, and what the shape does to the loss's variance.

    python benchmarks/schedules.py RUN [RUN …] [--data ../shared/data/mnist]      # of one system, several seeds

Of each run (a VDM with a learned γ, such as benchmarks/order.py leaves) and over the runs:

shape      the test NELBO of the same network under its own γ(u), a straight line and β-linear, with the same ends: one number (MATH (10));
ends       and with other ends, which gives another;
T          of the first run at VDM's T = 10, 100, 250, 1000 (T + 1 latents here), and T = ∞: the published shape of 7.54, 2.90, 2.74, 2.67,
           2.65 on CIFAR-10. What T latents more cost than continuous time, with the same x and ε at γ and at the next of T's γ_t, so that little is left to
           chance: with e(γ) = ½ ‖ε − ε̂‖², KL_t = ∫_{γ_{t−1}}^{γ_t} e^{γ_t − γ} e(γ_t) dγ (MATH (10)),
               L_T − L_∞ = ∫ (e^{γ_t − γ} e(γ_t) − e(γ)) dγ,      γ_t the first that is not below γ;
variance   of one draw of the diffusion loss L = ½ γ'(u) ‖ε − ε̂‖², u uniform, under the learned shape, log-SNR-linear, β-linear and α-cosine:
           published 0.53, 6.35, 31.6, 31.1 on CIFAR-10 (Kingma et al. 2021, Table 3). With e = ½‖ε − ε̂‖² at γ,
               E L = ∫ e dγ,      E L² = ∫ γ'(u) e² dγ,
           so that one set of draws of e, uniform in γ, serves all shapes, and the best of them, γ' ∝ 1/√E e².

Bounds are of the 10,000 test images, by --visits of each, whatever the error: draws that met no rare cost are not favoured.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from provenance import machine, save
from seeds import PILOT, Record, itemised, over_seeds, pm, spread
from torch import Tensor

import diffusional as df
from diffusional import schedule as schedules
from diffusional.evaluation.evaluation import evaluate
from diffusional.forward import diffuse
from diffusional.ledger import per_unit

# VDM's T; its T steps are T + 1 latents.
STEPS = (10, 100, 250, 1000)
# The schedule that a model has learned.
OWN = "its own"
ROWS = 256


class BetaLinear(schedules.Schedule):
    """γ(u) = ln expm1(e^γ_min + c u²), c such that γ(1) = γ_max: VDM's β-linear, 1e-4 + 10 u², with these ends."""

    def __init__(self, gamma_min: float, gamma_max: float) -> None:
        super().__init__(None)
        self.low = math.log1p(math.exp(gamma_min))
        self.rise = math.log1p(math.exp(gamma_max)) - self.low

    def gamma(self, u: Tensor) -> Tensor:
        return torch.log(torch.expm1(self.low + self.rise * u.double().square()))

    def dgamma(self, u: Tensor) -> Tensor:
        inside = self.low + self.rise * u.double().square()
        return 2 * self.rise * u.double() / -torch.expm1(-inside)


class AlphaCosine(schedules.Schedule):
    """γ(u) = 2 ln tan φ(u), φ straight between these ends: α = cos φ, without the offset that would end it at γ = −9.7."""

    def __init__(self, gamma_min: float, gamma_max: float) -> None:
        super().__init__(None)
        self.low = math.atan(math.exp(gamma_min / 2))
        self.rise = math.atan(math.exp(gamma_max / 2)) - self.low

    def gamma(self, u: Tensor) -> Tensor:
        return 2 * torch.log(torch.tan(self.low + self.rise * u.double()))

    def dgamma(self, u: Tensor) -> Tensor:
        return 4 * self.rise / torch.sin(2 * (self.low + self.rise * u.double()))


def with_schedule(model: df.DiffusionModel, schedule: schedules.Schedule) -> df.DiffusionModel:
    """The same network and decoder on another γ(u)."""
    return df.DiffusionModel(df.GaussianDiffusion(schedule), model.denoiser, model.likelihood, model.variance)


def bound(model: df.DiffusionModel, x: Tensor, reference: Tensor, visits: int) -> Record:
    plan = df.Plan.fit(model, reference, PILOT, controls=("wiener",))
    return itemised(evaluate(model, x, visits=visits, plan=plan), "bits/dim")


def spread_over(model: df.DiffusionModel, n: int) -> Tensor:
    """γ (n,), one in each of n equal cells between the ends."""
    low, high = model.process.schedule.ends().tolist()
    inside = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return low + (high - low) * (torch.arange(n) + inside) / n


@torch.inference_mode()
def errors(model: df.DiffusionModel, x: Tensor, gamma: Tensor) -> Tensor:
    """e (n,) at γ (n,) in bits/dim, one draw each: the same items and noise at every call."""
    n, generator = len(gamma), torch.Generator().manual_seed(1)
    items = torch.randint(len(x), (n,), generator=generator)
    e = []
    for rows in torch.arange(n).split(ROWS):
        some, noise = x[items[rows]], torch.randn(len(rows), *x.shape[1:], generator=generator)
        said = model.denoiser(diffuse(some, gamma[rows], noise), gamma[rows])
        e.append(0.5 * said.squared_error(some, noise))
    return torch.cat(e) / per_unit("bits/dim", model.space.dimensions)


def over_continuous_time(model: df.DiffusionModel, x: Tensor, gamma: Tensor, e: Tensor, t: int) -> dict[str, float]:
    """L_T − L_∞ in bits/dim, for VDM's T = `t`, and its Monte Carlo error."""
    grid = model.regrid(t + 1).process.schedule.grid().detach()
    up = grid[torch.searchsorted(grid, gamma).clamp(max=t)]
    low, high = grid[0], grid[-1]
    difference = (high - low) * ((up - gamma).exp() * errors(model, x, up) - e)
    return {"value": float(difference.mean()), "error": float(difference.std()) / len(gamma) ** 0.5}


def slope_at(schedule: schedules.Schedule, gamma: Tensor) -> Tensor:
    """γ'(u) where γ(u) = gamma."""
    low, high = schedule.ends().tolist()
    u = schedule.inverse(gamma.clamp(low, high))
    return schedule.dgamma(u).detach()


def variances(model: df.DiffusionModel, gamma: Tensor, e: Tensor) -> dict[str, float]:
    """Var L under each shape, in (bits/dim)²; E L is the diffusion loss."""
    low, high = model.process.schedule.ends().tolist()
    mean = (high - low) * float(e.mean())
    shapes: dict[str, Callable[[], schedules.Schedule]] = {
        OWN: lambda: model.process.schedule,
        "log-SNR-linear": lambda: schedules.log_snr_linear(low, high),
        "β-linear": lambda: BetaLinear(low, high),
        "α-cosine": lambda: AlphaCosine(low, high),
    }
    out = {
        name: (high - low) * float((slope_at(make(), gamma) * e**2).mean()) - mean**2 for name, make in shapes.items()
    }
    # The best shape, by √E e² in 100 cells of γ: ∫ γ' e² dγ with ∫ dγ/γ' = 1.
    root = torch.stack([part.square().mean().sqrt() for part in e.tensor_split(100)])
    return out | {"best of all shapes": ((high - low) * float(root.mean())) ** 2 - mean**2, "diffusion loss": mean}


def one(run: Path, x: Tensor, reference: Tensor, options: argparse.Namespace, at_every_t: bool) -> Record:
    model = df.load(run)
    assert isinstance(model, df.DiffusionModel)
    model.eval()
    low, high = model.process.schedule.ends().tolist()
    gamma = spread_over(model, options.draws)
    e = errors(model, x, gamma)
    out: Record = {
        "run": str(run),
        "ends": [low, high],
        "variance": variances(model, gamma, e),
        "T_over_continuous_time": {str(t): over_continuous_time(model, x, gamma, e, t) for t in STEPS},
    }
    made = {
        OWN: model,
        "log-SNR-linear": with_schedule(model, schedules.log_snr_linear(low, high)),
        "β-linear": with_schedule(model, BetaLinear(low, high)),
        "γ_1 two higher": with_schedule(model, schedules.log_snr_linear(low + 2, high)),
        "γ_T three lower": with_schedule(model, schedules.log_snr_linear(low, high - 3)),
    }
    out["shapes_and_ends"] = {name: bound(m, x, reference, options.visits) for name, m in made.items()}
    if at_every_t:
        out["T"] = {str(t): bound(model.regrid(t + 1), x, reference, options.visits) for t in STEPS}
    return out


def gap(bounds: dict[str, Record], name: str) -> dict[str, float]:
    """What a schedule costs more than the model's own."""
    a, b = bounds[name]["nelbo"], bounds[OWN]["nelbo"]
    return {"value": a["value"] - b["value"], "error": math.hypot(a["error"], b["error"])}


def over_runs(found: list[Record], what: Callable[[Record], Any]) -> dict[str, float | None]:
    """The mean of a number, or of one with an error, over the runs, and its standard error."""
    said = [what(run) for run in found]
    mean, error = over_seeds(said) if isinstance(said[0], dict) else spread(said)
    return {"value": mean, "error_by_runs": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", default="../shared/data/mnist")
    parser.add_argument("--visits", type=int, default=8, help="of each image")
    parser.add_argument("--draws", type=int, default=20_000, help="of the loss, for its variance")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "schedules.json")
    options = parser.parse_args()
    data = df.data.load(options.data, levels=256)
    x, reference = data.encode("test"), data.encode("train", slice(0, 10_000))
    found = []
    for i, run in enumerate(options.runs):
        found.append(one(run, x, reference, options, i == 0))
        print(json.dumps(found[-1], indent=1, ensure_ascii=False), flush=True)
    record = {
        "machine": machine(),
        "test_items": len(x),
        "shapes_and_ends": {
            name: over_runs(found, lambda run, name=name: run["shapes_and_ends"][name]["nelbo"])
            for name in found[0]["shapes_and_ends"]
        },
        # Of another shape or ends over its own.
        "gap": {
            name: over_runs(found, lambda run, name=name: gap(run["shapes_and_ends"], name))
            for name in found[0]["shapes_and_ends"]
            if name != OWN
        },
        "T_over_continuous_time": {
            str(t): over_runs(found, lambda run, t=t: run["T_over_continuous_time"][str(t)]) for t in STEPS
        },
        # Of one draw of the loss, over its own shape's.
        "variance": {
            name: over_runs(found, lambda run, name=name: run["variance"][name] / run["variance"][OWN])
            for name in ("log-SNR-linear", "β-linear", "α-cosine", "best of all shapes")
        },
        "runs": found,
    }
    for what in ("shapes_and_ends", "gap", "T_over_continuous_time", "variance"):
        for name, said in record[what].items():
            print(f"{what}, {name}: {pm(said['value'], said['error_by_runs'])}")
    save(options.out, record)


if __name__ == "__main__":
    main()
