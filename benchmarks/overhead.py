"""What the bound costs on top of the network: ratios of interleaved medians, on the digits' U-Net with its levels head.

    python benchmarks/overhead.py [--repetitions 48] [--threads 1] [--out benchmarks/results/overhead.json]

Training: (model.loss + backward) over the bare module's forward + backward, module(z, log_snr).square().mean().backward(),
at the same batch; and what the loss takes by itself, the module's output given, as a share. Evaluation: network rows per second of a full sweep over those of the bare module in inference mode, at
the same rows per call. The levels head (a log-softmax over K levels at every position) is a part of the
model, not of the bound; it is outside the module, so each ratio is given to the bare module with it (the whole denoiser)
and without.

Targets: training at most 1.05, or 1 ms more; evaluation at least 0.9 of the bare throughput. Both are of the bound, so
they are read against the network with its head.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from provenance import machine, save

from diffusional.data import load
from diffusional.evaluation import evaluate, sweep
from diffusional.forward import GaussianDiffusion
from diffusional.models.denoiser import Denoiser
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import NetworkLevels
from diffusional.networks import UNet
from diffusional.schedule import log_snr_linear
from diffusional.space import Discrete
from diffusional.timesteps import Adaptive

LOSS_RATIO, LOSS_SECONDS, SWEEP_RATIO = 1.05, 1e-3, 0.9


def build(head: str) -> tuple[DiffusionModel, torch.Tensor]:
    """The (32, 64) U-Net of the digits in continuous time, off its zero initialisation, and the training images."""
    torch.manual_seed(0)
    dataset = load("digits")
    space = dataset.space
    assert isinstance(space, Discrete)
    module = UNet(1, outputs=2 if head == "logistic" else space.levels, widths=(32, 64))
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.02 * torch.randn_like(p))
    denoiser = Denoiser(module, "levels", space, head)  # type: ignore[arg-type]
    model = DiffusionModel(GaussianDiffusion(log_snr_linear(-9.21, 10.12)), denoiser, NetworkLevels(space))
    return model, dataset.encode("train")


def interleaved(ways: dict[str, Callable[[], None]], repetitions: int) -> dict[str, float]:
    """The median seconds of each way, all of them taken in turn, so that a busy machine is busy for all."""
    for way in ways.values():
        way()
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for i in range(repetitions):
        first = i % len(order)
        for name in order[first:] + order[:first]:
            start = clock()()
            ways[name]()
            seconds[name].append(clock()() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def clock() -> Callable[[], float]:
    """On one thread the process's own time, which neighbours on a shared machine disturb less; else the wall's."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def training(head: str, batch: int, repetitions: int) -> dict[str, Any]:
    """Milliseconds of a forward and backward pass, with the bound and without."""
    model, x = build(head)
    x = x[:batch]
    model.train()
    module, denoiser = model.denoiser.module, model.denoiser
    generator = torch.Generator().manual_seed(0)
    sampler = Adaptive(warmup=batch)
    z = torch.randn(x.shape, generator=generator)
    log_snr = torch.linspace(-10, 9, batch)

    def stepped(loss: torch.Tensor) -> None:
        loss.backward()
        for p in model.parameters():
            p.grad = None

    median = interleaved(
        {
            "module": lambda: stepped(module(z, log_snr).square().mean()),
            "module_and_head": lambda: stepped(denoiser(z, -log_snr).data.square().mean()),
            "loss": lambda: stepped(model.loss(x, generator)),
            "loss_adaptive": lambda: stepped(model.loss(x, generator, sampler=sampler)),
        },
        repetitions,
    )
    out: dict[str, Any] = {"milliseconds": {name: round(1e3 * s, 3) for name, s in median.items()}}
    for loss in ("loss", "loss_adaptive"):
        for bare in ("module", "module_and_head"):
            out[f"{loss}_over_{bare}"] = round(median[loss] / median[bare], 4)

    # The same with the module's output given: what head and bound cost by themselves. A few milliseconds that a busy machine
    # hides in the scatter of the hundred above are measured well here.
    given = module(z, log_snr).detach().requires_grad_()
    denoiser.module = _Given(given)
    own = interleaved(
        {
            "head": lambda: stepped(denoiser(z, -log_snr).data.square().mean()),
            "loss": lambda: stepped(model.loss(x, generator)),
            "loss_adaptive": lambda: stepped(model.loss(x, generator, sampler=sampler)),
        },
        4 * repetitions,
    )
    out["milliseconds_without_module"] = {name: round(1e3 * s, 3) for name, s in own.items()}
    for loss in ("loss", "loss_adaptive"):
        with_head = median["module"] + own["head"]
        excess = own[loss] - own["head"]
        out[f"{loss}_share_of_module"] = round(own[loss] / median["module"], 4)
        out[f"{loss}_share_of_module_beyond_head"] = round(excess / with_head, 4)
        out[f"{loss}_meets_target"] = excess <= (LOSS_RATIO - 1) * with_head or excess <= LOSS_SECONDS
    return out


class _Given(torch.nn.Module):
    """A network whose output is known."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, z: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        self.output.grad = None
        return self.output


def sweeping(head: str, items: int, cells: int, repetitions: int) -> dict[str, Any]:
    """Rows per second of a full sweep, and of the bare network at the same rows per call."""
    model, x = build(head)
    x = x[:items]
    model.eval()
    module, denoiser = model.denoiser.module, model.denoiser
    rows = min(sweep._ROWS, items * cells)
    total = evaluate(model, x[:1], cells=cells, draws=1).nelbo.network_evaluations * items
    z = torch.randn(rows, *x.shape[1:])
    log_snr = torch.linspace(-10, 9, rows)

    def bare(call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                for _ in range(-(-total // rows)):
                    call()

        return run

    median = interleaved(
        {
            "module": bare(lambda: module(z, log_snr)),
            "module_and_head": bare(lambda: denoiser(z, -log_snr)),
            "evaluate": lambda: evaluate(model, x, cells=cells, draws=1) and None,
        },
        repetitions,
    )
    bare_rows = -(-total // rows) * rows
    speed = {name: (total if name == "evaluate" else bare_rows) / s for name, s in median.items()}
    return {
        "rows_per_call": rows,
        "rows_per_second": {name: round(v) for name, v in speed.items()},
        "evaluate_over_module": round(speed["evaluate"] / speed["module"], 4),
        "evaluate_over_module_and_head": round(speed["evaluate"] / speed["module_and_head"], 4),
        "evaluate_meets_target": speed["evaluate"] >= SWEEP_RATIO * speed["module_and_head"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=48, help="of the training step; a sweep gets a sixth")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--items", type=int, default=32, help="of the sweep")
    parser.add_argument("--cells", type=int, default=128, help="of the sweep")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--heads", nargs="+", choices=["categorical", "logistic"], default=["categorical", "logistic"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overhead.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record: dict[str, Any] = {
        "machine": machine() | {"clock": clock().__name__},
        "batch": args.batch,
        "training": {},
        "evaluation": {},
    }
    for head in args.heads:
        record["training"][head] = training(head, args.batch, args.repetitions)
        print(f"training, {head} head:", json.dumps(record["training"][head]), flush=True)
        record["evaluation"][head] = sweeping(head, args.items, args.cells, max(3, args.repetitions // 6))
        print(f"evaluation, {head} head:", json.dumps(record["evaluation"][head]), flush=True)
    save(args.out, record)


if __name__ == "__main__":
    main()
