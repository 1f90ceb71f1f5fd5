"""What does `check_denoiser` find, and does it find faults where there are none? Planted fault × kind × architecture × training.

    python benchmarks/fault_finder.py [--networks MLP U-Net DiT] [--models WORD …] [--training well badly] [--trials 100] [--seconds 400]

Small networks of three architectures are trained here on scikit-learn's digits, "well" or for a tenth of the steps ("badly"), each with
several seeds: predictions of the noise and of v under DDPM's linear schedule, of the data under the cosine one, EDM's F, and a flow's
velocity. Each is declared rightly and with every fault, and checked on other items and other noise in every trial.

    detected    trials with a finding; for "none" these are false alarms
    named       trials whose reading differs in exactly what was planted, and has the right values there

Networks and finished trials are kept in runs/fault_finder: a run that was stopped, by --seconds or otherwise, continues there. --merge
writes benchmarks/results/fault_finder.json from everything that is there.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from provenance import machine, save
from torch import Tensor, nn

import diffusional as df
from diffusional import likelihood, schedule
from diffusional.interop.adapter import Adapter, Output, value_at
from diffusional.interop.clocks import FlowTime, SigmaTime, edm_scale, flow_scale, ve_scale
from diffusional.interop.diagnosis import Diagnosis
from diffusional.interop.readings import OUTPUTS
from diffusional.networks import UNet
from diffusional.shapes import align

T = 1000
SPACE = df.Discrete((1, 8, 8), levels=17)
HALVED = df.Discrete((1, 8, 8), levels=17, low=0.0, high=1.0)
LINEAR, COSINE, CONTINUOUS = schedule.linear(T), schedule.cosine(T), schedule.log_snr_linear(-7.0, 7.0)
STEPS = {"MLP": 1500, "U-Net": 1000, "DiT": 1500}
SHARE = {"well": 1.0, "badly": 0.2}
CACHE = Path(__file__).parents[1] / "runs" / "fault_finder"
OUT = Path(__file__).parent / "results" / "fault_finder.json"
# Seeds of the networks and of the trials. The check's margins were chosen on trials of networks with seeds below.
FIRST_NETWORK, FIRST_TRIAL = 100, 10_000
Clock = Callable[[Tensor], Tensor]


class MLP(nn.Module):
    """Three hidden layers over the pixels and sines of the time, which is divided by `unit`."""

    def __init__(self, unit: float, channels: int = 1) -> None:
        super().__init__()
        # The noise of all pixels must pass through a layer.
        self.unit, width = unit, 128 * channels
        self.layers = nn.Sequential(
            nn.Linear(64 * channels + 32, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 64 * channels),
        )

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        angles = (time.float() / self.unit)[:, None] * torch.logspace(-1, 1.3, 16)
        return self.layers(torch.cat([z.flatten(1).float(), angles.sin(), angles.cos()], 1)).reshape(z.shape)


class SmallUNet(nn.Module):
    """Our U-Net, whose own time is a log SNR, with another clock."""

    def __init__(self, unit: float, channels: int = 1) -> None:
        super().__init__()
        self.unit, self.net = unit, UNet(channels, widths=(8, 16), blocks=1)

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        return self.net(z.float(), 10 * time.float() / self.unit)


class SmallDiT(nn.Module):
    """diffusers' DiT of two blocks, 32 channels and patches of 2 × 2."""

    def __init__(self, unit: float, channels: int = 1) -> None:
        super().__init__()
        from diffusers import DiTTransformer2DModel

        self.unit = unit
        self.net = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=channels, num_layers=2, sample_size=8, patch_size=2,
            num_embeds_ada_norm=1, norm_num_groups=1,
        )  # fmt: skip

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        label = torch.zeros(len(z), dtype=torch.long)
        return self.net(z.float(), timestep=1000 * time.float() / self.unit, class_labels=label).sample


NETWORKS: dict[str, Callable[..., nn.Module]] = {"MLP": MLP, "U-Net": SmallUNet, "DiT": SmallDiT}


def index_of(one: schedule.Schedule) -> Clock:
    """The index of the nearest level of a schedule."""
    grid = one.grid()
    between = 0.5 * (grid[1:] + grid[:-1])
    return lambda log_snr: torch.searchsorted(between, -log_snr.double().contiguous())


@dataclass(frozen=True)
class Kind:
    """How a kind of network is declared rightly, and the faults that are planted."""

    output: str
    scale: Any
    process: schedule.Schedule
    clock: Clock
    unit: float
    clock_name: str
    wrong_output: str
    wrong_scale: Any


EDM_OUTPUT, EDM_INPUT = "EDM's F, σ_data = 0.5", "z/α divided by √(σ²/α² + 0.25)"
KINDS = {
    "noise": Kind("noise", 1.0, LINEAR, index_of(LINEAR), T, "the linear schedule's index", "v", ve_scale),
    "v": Kind("v", 1.0, LINEAR, index_of(LINEAR), T, "the linear schedule's index", "noise", ve_scale),
    "data": Kind("data", 1.0, COSINE, index_of(COSINE), T, "the cosine schedule's index", "noise", ve_scale),
    "EDM": Kind(
        EDM_OUTPUT, edm_scale(0.5), CONTINUOUS, SigmaTime("log"), 1.0, "a quarter of ln σ/α", "noise", ve_scale
    ),
    "flow": Kind(
        "velocity", flow_scale, CONTINUOUS, FlowTime(), 1.0, "a flow's time from data to noise",
        "velocity towards the data", 1.0,
    ),
}  # fmt: skip
INPUT_NAMES = {"noise": "z", "v": "z", "data": "z", "EDM": EDM_INPUT, "flow": "z/(α + σ)"}
WORDS = {"noise", "v", "data"}


class Factor(nn.Module):
    """The fault that the code round a network multiplies its input by a function of the noise level."""

    def __init__(self, net: nn.Module, factor: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        return self.net(z * align(self.factor(time), z).to(z), time)


class Preconditioned(nn.Module):
    """x̂ of a network, as code of one's own forms it; `scaled` is False for the fault that the network gets another z than it knows."""

    def __init__(self, kind: Kind, net: nn.Module, scaled: bool = False) -> None:
        super().__init__()
        self.kind, self.net, self.scaled = kind, net, scaled

    def gamma(self, time: Tensor) -> Tensor:
        time = time.double()
        return 8 * time if self.kind.output == EDM_OUTPUT else 2 * torch.logit(time.clamp(1e-9, 1 - 1e-9))

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        gamma = self.gamma(time)
        scale = self.kind.scale if self.scaled else self.kind.wrong_scale
        output = self.net((z * align(value_at(scale, gamma), z)).to(z.dtype), time)
        a, b = OUTPUTS[self.kind.output].at(gamma)
        al, si = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
        # o = a x + b ε and z = α x + σ ε.
        q = 1 / (b * al - a * si)
        return (align(q * b, z) * z - align(q * si, z) * output).to(z.dtype)


class Dropout(nn.Module):
    """A network whose dropout stays on."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        return nn.functional.dropout(self.net(z, time), 0.1, training=True)


class Memo(nn.Module):
    """A network that remembers its outputs by row: the readings that are tried are mostly the same for every planted fault."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.known = net, dict[bytes, Tensor]()

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        rows = torch.cat([z.flatten(1).float(), time.float()[:, None]], 1).numpy()
        keys = [row.tobytes() for row in rows]
        new = [i for i, key in enumerate(keys) if key not in self.known]
        if new:
            outputs = self.net(z[new], time[new])
            self.known |= {keys[i]: output for i, output in zip(new, outputs, strict=True)}
        return torch.stack([self.known[key] for key in keys])


def declared(
    kind: Kind,
    net: nn.Module,
    output: str | None = None,
    process: schedule.Schedule | None = None,
    clock: Clock | None = None,
    space: df.Discrete = SPACE,
    scale: Any = None,
) -> df.DiffusionModel:
    """The model of a network with declarations that may be wrong."""
    output, process, clock = output or kind.output, process or kind.process, clock or kind.clock
    scale = kind.scale if scale is None else scale
    if output in WORDS and not callable(scale):
        denoiser: df.Denoiser = df.Denoiser(net, output, time=clock)  # type: ignore[arg-type]
    else:
        of: Output = OUTPUTS[output]
        denoiser = df.wrap(net, predicts=(of.of_data, of.of_noise), time=clock, scale=scale)
        assert isinstance(denoiser, Adapter)
    return df.DiffusionModel(df.GaussianDiffusion(process), denoiser, likelihood.DiscretizedGaussian(space))


def by_hand(kind: Kind, net: nn.Module, scaled: bool = False) -> df.DiffusionModel:
    """The model of a network whose input is scaled in code of one's own, rightly or not."""
    if kind.output in WORDS:
        grid = kind.process.grid()
        alpha = lambda time: torch.sigmoid(-grid[time.round().long().clamp(0, T - 1)]).sqrt()  # noqa: E731
        return declared(kind, net if scaled else Factor(net, lambda time: 1 / alpha(time)))
    denoiser = df.Denoiser(Preconditioned(kind, net, scaled), "data", time=kind.clock)
    return df.DiffusionModel(df.GaussianDiffusion(kind.process), denoiser, likelihood.DiscretizedGaussian(SPACE))


Planted = tuple[df.DiffusionModel, dict[str, Sequence[str]] | None]


def faults(name: str, net: nn.Module) -> dict[str, Planted]:
    """Models by the fault that is planted, with the right values of the declarations that are wrong; None where no reading is right."""
    kind = KINDS[name]
    right = {"output": [kind.output], "data": ["[−1, 1]"], "input": [INPUT_NAMES[name]], "clock": [kind.clock_name]}

    def planted(*words: str, **more: Sequence[str]) -> dict[str, Sequence[str]]:
        return {word: [*right[word], *more.get(word, ())] for word in words}

    found: dict[str, Planted] = {
        "none": (declared(kind, net), {}),
        "output": (declared(kind, net, kind.wrong_output), planted("output")),
        "range": (declared(kind, net, space=HALVED), planted("data")),
        "input scaling": (declared(kind, net, scale=kind.wrong_scale), planted("input")),
        "input scaling, in the code": (by_hand(kind, net), None),
    }
    times = {"clock": ["as declared, times 1000", "as declared, divided by 1000"]}
    reverse = {"clock": ["as declared, reversed"]}
    if kind.process.steps:
        wrong = COSINE if kind.process is LINEAR else LINEAR
        other = index_of(wrong)
        found["schedule"] = (declared(kind, net, process=wrong, clock=other), planted("clock"))
        both = declared(kind, net, kind.wrong_output, process=wrong, clock=other)
        found["schedule and output"] = (both, planted("clock", "output"))
        found["time reversed"] = (
            declared(kind, net, clock=lambda s: T - 1 - kind.clock(s)),
            planted("clock", **reverse),
        )
        found["time over or times 1000"] = (
            declared(kind, net, clock=lambda s: kind.clock(s) / T),
            planted("clock", **times),
        )
    else:
        found["time reversed"] = (declared(kind, net, clock=lambda s: kind.clock(-s)), planted("clock", **reverse))
        found["time over or times 1000"] = (
            declared(kind, net, clock=lambda s: kind.clock(s) * 1000),
            planted("clock", **times),
        )
    found["dropout"] = (declared(kind, Dropout(net)), None)
    return found


def network(architecture: str, name: str, training: str, seed: int) -> nn.Module:
    """A network of a kind, trained on L_simple, or loaded."""
    kind, steps = KINDS[name], int(STEPS[architecture] * SHARE[training])
    torch.manual_seed(seed)
    net = NETWORKS[architecture](kind.unit)
    path = CACHE / f"{architecture}-{name}-{training}-{seed}.pt"
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()
    train(declared(kind, net), net, df.data.load("digits").encode("train"), steps, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), path)
    return net.eval()


def train(
    model: df.DiffusionModel,
    net: nn.Module,
    x: Tensor,
    steps: int,
    seed: int,
    decay: bool = True,
    after: Callable[[], None] | None = None,
) -> None:
    """Train a network on L_simple, with a learning rate that falls to zero or stays; `after` is called after every step."""
    model.train()
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50, 2 * (steps - step) / steps if decay else 1.0)
        loss = model.simple_loss(x[torch.randint(len(x), (64,), generator=generator)], generator)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        if after is not None:
            after()


def trial(name: str, net: nn.Module, number: int, test: Tensor, short: bool = False) -> dict[str, Any]:
    """What the check says of every planted fault, on items and noise of this trial."""
    options: dict[str, Any] = {"items": 24, "levels": 7} if short else {"items": 16}
    generator = torch.Generator().manual_seed(number)
    items = test[torch.randperm(len(test), generator=generator)[: options["items"]]]
    rows: dict[str, Any] = {}
    for fault, (model, planted) in faults(name, Memo(net)).items():
        seen = (items + 1) / 2 if model.space == HALVED else items
        # Dropout shows in repeated calls, before any reading is tried.
        search: Any = fault != "dropout" and ("short" if short else True)
        found: Diagnosis = df.check_denoiser(model, seen, seed=number, search=search, **options)
        differences = found.declared.differences(found.best)
        named = planted is not None and differences.keys() == planted.keys()
        rows[fault] = {
            "detected": bool(found.findings),
            "named": None
            if planted is None
            else named and all(differences[word][1] in values for word, values in (planted or {}).items()),
            "margin": found.margin,
            "error": found.error,
            "best": {word: pair[1] for word, pair in differences.items()},
            "score": found.squared_error.log().mean().item(),
            "findings": list(found.findings),
            "notes": list(found.notes),
            "network_evaluations": found.network_evaluations,
        }
    return rows


def piece(
    architecture: str, name: str, training: str, seeds: int, trials: int, until: float, directory: Path, short: bool
) -> None:
    """Run the trials of a cell that are missing."""
    test = df.data.load("digits").encode("test")
    path = directory / f"{architecture}-{name}-{training}.json"
    known = json.loads(path.read_text()) if path.exists() else {"trials": [], "seconds": 0.0}
    nets = [network(architecture, name, training, FIRST_NETWORK + seed) for seed in range(seeds)]
    while len(known["trials"]) < trials and time.monotonic() < until:
        start = time.process_time()
        number = len(known["trials"])
        known["trials"].append(trial(name, nets[number % seeds], FIRST_TRIAL + number, test, short))
        known["seconds"] += time.process_time() - start
        if number % 10 == 9 or time.monotonic() >= until or number + 1 == trials:
            save(path, known)
    rows = known["trials"]
    print(architecture, name, training, len(rows), f"{known['seconds']:.0f} s", flush=True)
    for fault in rows[0] if rows else ():
        found = [row[fault] for row in rows]
        print(f"    {fault:28s} {sum(r['detected'] for r in found):4d} {sum(bool(r['named']) for r in found):4d}")


def merged(directory: Path, seeds: int) -> dict[str, Any]:
    """The counts of all pieces."""
    rows, seconds = [], 0.0
    for architecture in NETWORKS:
        for name in KINDS:
            for training in SHARE:
                path = directory / f"{architecture}-{name}-{training}.json"
                if not path.exists():
                    continue
                known = json.loads(path.read_text())
                seconds += known["seconds"]
                for fault in known["trials"][0]:
                    found = [one[fault] for one in known["trials"]]
                    named = [one["named"] for one in found if one["named"] is not None]
                    rows.append(
                        {
                            "network": architecture,
                            "kind": name,
                            "training": training,
                            "fault": fault,
                            "trials": len(found),
                            "detected": sum(one["detected"] for one in found),
                            "named": sum(named) if named else None,
                            # Findings that name a reading, right or wrong; the others say that no reading fits, or that it is random.
                            "reading": sum("another reading" in " ".join(one["findings"]) for one in found),
                            "clock may not be found": sum("time input" in " ".join(one["notes"]) for one in found),
                            "score": statistics.mean(one["score"] for one in found),
                        }
                    )
    return {"rows": rows, "networks": seeds, "seconds": seconds, **machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=2, help="networks of each kind")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--models", nargs="*", default=list(KINDS))
    parser.add_argument("--training", nargs="*", default=list(SHARE))
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this time, and continue in another run")
    parser.add_argument("--short", action="store_true", help="the short form, which `evaluate` runs")
    parser.add_argument("--only-train", action="store_true", help="train and keep the networks")
    parser.add_argument("--pieces", type=Path, help="folder of finished trials")
    parser.add_argument(
        "--merge", type=Path, nargs="?", const=OUT, help="write the counts of all finished trials to this file"
    )
    args = parser.parse_args()
    until = time.monotonic() + args.seconds
    pieces = args.pieces or CACHE / ("short" if args.short else "full")
    for architecture in args.networks:
        for name in args.models:
            for training in args.training:
                if time.monotonic() >= until:
                    continue
                if args.only_train:
                    start = time.process_time()
                    for seed in range(args.seeds):
                        network(architecture, name, training, FIRST_NETWORK + seed)
                    print(architecture, name, training, f"{time.process_time() - start:.0f} s", flush=True)
                else:
                    piece(architecture, name, training, args.seeds, args.trials, until, pieces, args.short)
    if args.merge:
        save(args.merge, merged(pieces, args.seeds))


if __name__ == "__main__":
    main()
