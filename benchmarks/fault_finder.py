"""What does `check_denoiser` find, and does it find faults where there are none? Planted faults × kinds of networks × training.

    python benchmarks/fault_finder.py [--trials 100] [--networks 5] [--short] [--models WORD …] [--out benchmarks/results/fault_finder.json]

Small networks (an MLP, or the U-Net of the digits with `--unet`) are trained here on scikit-learn's digits, "well" for 1,500 steps or
"badly" for 150, each several times with other seeds: predictions of the noise and of v under DDPM's linear schedule, of the data under the
cosine one, an EDM-preconditioned network and a flow's velocity. Each is declared rightly and with every fault, and checked on other items
and other noise in every trial.

    detected    trials with a finding; for "none" these are false alarms
    named       trials whose finding names exactly what was planted
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from provenance import machine, save
from torch import Tensor, nn

import diffusional as df
from diffusional import likelihood, schedule
from diffusional.networks import UNet
from diffusional.shapes import align

T = 1000
SPACE = df.Discrete((1, 8, 8), levels=17)
HALVED = df.Discrete((1, 8, 8), levels=17, low=0.0, high=1.0)
LINEAR, COSINE, CONTINUOUS = schedule.linear(T), schedule.cosine(T), schedule.log_snr_linear(-7.0, 7.0)
STEPS = {"well": 1500, "badly": 150}
Clock = Callable[[Tensor], Tensor]


class MLP(nn.Module):
    """Three hidden layers over the pixels and sines of the time, which is divided by `unit`."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit
        self.layers = nn.Sequential(
            nn.Linear(64 + 32, 256),
            nn.SiLU(),
            nn.Linear(256, 256),
            nn.SiLU(),
            nn.Linear(256, 256),
            nn.SiLU(),
            nn.Linear(256, 64),
        )

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        angles = (time.float() / self.unit)[:, None] * torch.logspace(-1, 1.3, 16)
        return self.layers(torch.cat([z.flatten(1).float(), angles.sin(), angles.cos()], 1)).reshape(z.shape)


class ByTime(nn.Module):
    """Our U-Net, whose own time is a log SNR, with another clock."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit, self.net = unit, UNet(1, widths=(16, 32), blocks=1)

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        return self.net(z.float(), 10 * time.float() / self.unit)


class EDM(nn.Module):
    """x̂ of EDM's F, MATH (23), σ_data = 0.5; `scaled` is False for the fault that F sees y itself."""

    def __init__(self, net: nn.Module, scaled: bool = True) -> None:
        super().__init__()
        self.net, self.scaled = net, scaled

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        square = align(torch.exp(8 * time.double()), z).to(z)  # time is a quarter of ln σ/α
        y, total = z * (1 + square).sqrt(), square + 0.25
        return 0.25 / total * y + (square * 0.25 / total).sqrt() * self.net(
            y / total.sqrt() if self.scaled else y, time
        )


class Flow(nn.Module):
    """x̂ of a flow's velocity at t = σ/(α + σ), MATH (23); `scaled` is False for the fault that it sees z itself."""

    def __init__(self, net: nn.Module, scaled: bool = True) -> None:
        super().__init__()
        self.net, self.scaled = net, scaled

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        t = align(time.double(), z).to(z)
        mixed = z / (t.square() + (1 - t).square()).sqrt() * ((1 - t).square() + t.square())
        return mixed - t * self.net(mixed if self.scaled else z, time)


@dataclass(frozen=True)
class Kind:
    """How a kind of network is declared rightly."""

    predicts: Any
    process: schedule.Schedule
    clock: Clock
    unit: float
    wrapped: Callable[..., nn.Module] = lambda net, scaled=True: net if scaled else Unscaled(net)


class Unscaled(nn.Module):
    """The fault that a network that knows z sees z/α."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        grid = LINEAR.grid()
        alpha = torch.sigmoid(-grid[time.round().long().clamp(0, T - 1)]).sqrt()
        return self.net(z / align(alpha, z).to(z), time)


def index_of(one: schedule.Schedule) -> Clock:
    """The index of the nearest level of a schedule."""
    return lambda log_snr: (-log_snr.double()[:, None] - one.grid()).abs().argmin(1)


KINDS = {
    "noise": Kind("noise", LINEAR, index_of(LINEAR), T),
    "v": Kind("v", LINEAR, index_of(LINEAR), T),
    "data": Kind("data", COSINE, index_of(COSINE), T),
    "EDM": Kind("data", CONTINUOUS, lambda log_snr: -log_snr / 8, 1.0, EDM),
    "flow": Kind("data", CONTINUOUS, lambda log_snr: torch.sigmoid(-0.5 * log_snr), 1.0, Flow),
}


def declared(
    kind: Kind,
    module: nn.Module,
    predicts: Any = None,
    process: schedule.Schedule | None = None,
    clock: Clock | None = None,
    space: df.Discrete = SPACE,
) -> df.DiffusionModel:
    """The model of a network with declarations that may be wrong."""
    denoiser = df.Denoiser(module, predicts or kind.predicts, time=clock or kind.clock)
    return df.DiffusionModel(
        df.GaussianDiffusion(process or kind.process), denoiser, likelihood.DiscretizedGaussian(space)
    )


def trained(kind: Kind, steps: int, seed: int, unet: bool, x: Tensor) -> nn.Module:
    """A network of a kind, trained on L_simple."""
    torch.manual_seed(seed)
    net = (ByTime if unet else MLP)(kind.unit)
    model = declared(kind, kind.wrapped(net)).train()
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50, 2 * (steps - step) / steps)
        loss = model.simple_loss(x[torch.randint(len(x), (64,), generator=generator)], generator)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
    return net.eval()


def faults(kind: Kind, net: nn.Module) -> dict[str, tuple[df.DiffusionModel, set[str] | None]]:
    """Models by the fault that is planted, and the declarations that it concerns; None where no reading is right."""
    module = kind.wrapped(net)
    other = "v" if kind.predicts == "noise" else "noise"
    found: dict[str, tuple[df.DiffusionModel, set[str] | None]] = {
        "none": (declared(kind, module), set()),
        "output": (declared(kind, module, other), {"output"}),
        "range": (declared(kind, module, space=HALVED), {"data"}),
        "no input scaling": (declared(kind, kind.wrapped(net, False)), None),
    }
    if kind.process.steps:
        wrong = COSINE if kind.process is LINEAR else LINEAR
        found["schedule"] = (declared(kind, module, process=wrong, clock=index_of(wrong)), {"clock"})
        found["schedule and output"] = (
            declared(kind, module, other, process=wrong, clock=index_of(wrong)),
            {"clock", "output"},
        )
        found["time reversed"] = (declared(kind, module, clock=lambda s: T - 1 - kind.clock(s)), {"clock"})
        found["time over T"] = (declared(kind, module, clock=lambda s: kind.clock(s) / T), {"clock"})
    else:
        found["time reversed"] = (declared(kind, module, clock=lambda s: kind.clock(-s)), None)
    found["dropout"] = (declared(kind, Dropout(module)), None)
    return found


class Dropout(nn.Module):
    """A network whose dropout stays on."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        return nn.functional.dropout(self.net(z, time), 0.1, training=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--unet", action="store_true")
    parser.add_argument("--short", action="store_true", help="the short form, which `evaluate` runs")
    parser.add_argument("--models", nargs="*", default=list(KINDS))
    parser.add_argument("--training", nargs="*", default=list(STEPS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fault_finder.json"))
    args = parser.parse_args()
    data = df.data.load("digits")
    x, test = data.encode("train"), data.encode("test")
    rows: list[dict[str, Any]] = []
    options: dict[str, Any] = {"items": 24, "levels": 7, "search": "short"} if args.short else {"items": 16}
    calls: list[int] = []
    start = time.process_time()
    for name in args.models:
        kind = KINDS[name]
        for training in args.training:
            nets = [trained(kind, STEPS[training], seed, args.unet, x) for seed in range(args.networks)]
            counts: dict[str, list[int]] = {}
            for trial in range(args.trials):
                generator = torch.Generator().manual_seed(trial)
                items = test[torch.randperm(len(test), generator=generator)[: options["items"]]]
                for fault, (model, planted) in faults(kind, nets[trial % len(nets)]).items():
                    seen = (items + 1) / 2 if model.space == HALVED else items
                    said = df.check_denoiser(model, seen, seed=trial, **options)
                    calls.append(said.network_evaluations)
                    count = counts.setdefault(fault, [0, 0])
                    count[0] += bool(said.findings)
                    count[1] += planted is not None and set(said.declared.differences(said.best)) == planted
            for fault, (detected, named) in counts.items():
                planted = faults(kind, nets[0])[fault][1]
                row = {"network": "U-Net" if args.unet else "MLP", "kind": name, "training": training, "fault": fault}
                row |= {"trials": args.trials, "detected": detected, "named": None if planted is None else named}
                rows.append(row)
                print(row, f"{time.process_time() - start:.0f} s", flush=True)
            save(
                args.out,
                {
                    "rows": rows,
                    "networks": args.networks,
                    "options": options,
                    "network_evaluations": [min(calls), max(calls)],
                    "seconds": time.process_time() - start,
                    **machine(),
                },
            )


if __name__ == "__main__":
    main()
