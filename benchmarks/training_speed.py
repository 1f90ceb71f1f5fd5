"""What `train` costs: over the bare network, in memory, beside other trainers of diffusion models, and on data of files.

    python benchmarks/training_speed.py [--parts overhead memory throughput] [--data] [--threads 1 2] [--rounds 200]
                                        [--peers /tmp/peers/site] [--out benchmarks/results/training_speed.json]

It is the real `train` that is timed, from where it asks for a batch to where it asks for the next: fetching, draws, forward,
backward, clipping, optimiser, average, level sampler, metrics, checks. In between, the other ways take a step each, so that
a busy machine is busy for all. On one thread the clock is the process's time, on more the wall's.

  overhead    the digits' U-Net, as in overhead.py, at batch 128, against plain PyTorch on the same network with its head (a
              denoised batch, its square, backward): + fused AdamW + clipping + foreach EMA. Target: at most 1.03 of network and
              AdamW. And where a step's time goes, by `train(profile=True)`.
  memory      growth of the peak resident memory over the imports, each in a process of its own, against the same network, loss
              of its output, fused AdamW and EMA in plain PyTorch. Target: at most 1.10 while steps are taken; the validation
              that follows them is given beside it.
  throughput  images per second on 1×32×32 against denoising-diffusion-pytorch and diffusers' example, all three with one
              diffusers UNet2DModel, their own defaults else; then its own Unet against our own of as many FLOPs.
  --data      a table of 10⁶ × 20 reals in .npy and a folder of 20,000 PNG images against the same values in memory, in turn, each
              in a process of its own. Target: at least 0.95 of the steps per second.

A ratio's error is a bootstrap over blocks of ten rounds: what is done every tenth step counts by a tenth.
"""

import argparse
import copy
import dataclasses
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from overhead import clock
from peers import diffusers_example, lucidrains
from provenance import machine, save
from rich.console import Console
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffusional import schedule as schedules
from diffusional.data import Dataset, load
from diffusional.forward import GaussianDiffusion
from diffusional.models.base import LatentVariableModel
from diffusional.models.denoiser import Denoiser
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import LevelPosterior
from diffusional.models.time import TrainedIndex
from diffusional.networks import FromDiffusers, UNet
from diffusional.space import Discrete
from diffusional.training import loop
from diffusional.training.build import build_model
from diffusional.training.config import Config, DataConfig, ModelConfig, ScheduleConfig
from diffusional.training.run import PROFILE

Step = Callable[[], Any]
STEP_RATIO, MEMORY_RATIO, DATA_RATIO = 1.03, 1.10, 0.95
BLOCK, WARM_UP = 10, 3


class _Enough(Exception):
    """As many steps were taken as were asked for."""


@contextmanager
def watched(at: Callable[[int], None], model: LatentVariableModel | None = None) -> Iterator[None]:
    """`train` calls at(step) when it asks for a step's batch; `model` is trained, if given, in place of the config's."""

    class BatchLoader(loop.BatchLoader):
        def __call__(self, step: int) -> tuple[Tensor, Tensor]:
            at(step)
            return super().__call__(step)

    made = build_model if model is None else lambda config, space: model
    with patch.object(loop, "BatchLoader", BatchLoader), patch.object(loop, "build_model", made):
        yield


def trained(config: Config, data: Dataset, at: Callable[[int], None], model: LatentVariableModel | None = None) -> None:
    """`train`, until it ends or `at` has had enough."""
    with tempfile.TemporaryDirectory() as folder, watched(at, model):
        try:
            loop.train(config, f"{folder}/run", data, console=Console(quiet=True))
        except _Enough:
            return


def steps_of(rounds: int, **config: Any) -> Config:
    """A config that neither validates nor saves within its steps."""
    far = rounds + WARM_UP + 1
    return Config(steps=far, validate_every=far, checkpoint_every=far, **config)


def taken_in_turn(
    ways: dict[str, Step], rounds: int, config: Config, data: Dataset, model: LatentVariableModel | None = None
) -> dict[str, list[float]]:
    """Seconds of every step, those of "ours" by `train`, the other ways between two of its steps in changing order."""
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *ways)}
    order, now, since = list(ways), clock(), 0.0

    def at(step: int) -> None:
        nonlocal since
        if step:
            seconds["ours"].append(now() - since)
        if step == rounds + WARM_UP:
            raise _Enough
        first = step % max(1, len(order))
        for name in order[first:] + order[:first]:
            start = now()
            ways[name]()
            seconds[name].append(now() - start)
        since = now()

    trained(config, data, at, model)
    return {name: values[WARM_UP:] for name, values in seconds.items()}


def blocks(seconds: list[float]) -> list[float]:
    """Means of ten steps each; the steps themselves where there are too few."""
    size = BLOCK if len(seconds) >= 2 * BLOCK else 1
    return [statistics.mean(seconds[i : i + size]) for i in range(0, len(seconds) - size + 1, size)]


def ratio(of: list[float], over: list[float]) -> dict[str, float]:
    """The ratio of two ways' medians over blocks of the same rounds, and its standard error."""
    a, b, dice = blocks(of), blocks(over), random.Random(0)
    draws = [[dice.randrange(len(a)) for _ in a] for _ in range(400)]
    again = [statistics.median(a[i] for i in d) / statistics.median(b[i] for i in d) for d in draws]
    return {
        "ratio": round(statistics.median(a) / statistics.median(b), 4),
        "error": round(statistics.stdev(again), 4),
    }


def milliseconds(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(1e3 * statistics.median(blocks(values)), 3) for name, values in seconds.items()}


def plain(
    network: nn.Module, loss: Callable[[], Tensor], clip: bool = False, average: bool = False, step: bool = True
) -> Step:
    """A training step in plain PyTorch, with as much around the network as is asked for."""
    weights = list(network.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    copies = [p.detach().clone() for p in weights] if average else []
    network.train()

    def run() -> None:
        loss().backward()
        if clip:
            nn.utils.clip_grad_norm_(weights, 1.0)
        if step:
            optimizer.step()
        if average:
            with torch.no_grad():
                torch._foreach_lerp_(copies, weights, 0.001)
        optimizer.zero_grad()

    return run


# Overhead over the bare network.


class Tiny(nn.Module):
    """Next to no network: what remains is the step's own cost, a few milliseconds that are measured well alone."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, outputs, 1)

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return self.layer(z)


def overhead(rounds: int, batch: int = 128) -> dict[str, Any]:
    """The step of `train` on the digits over those of plain PyTorch."""
    data = load("digits")
    config = steps_of(rounds, batch=batch, model=ModelConfig(widths=(32, 64), dropout=0.0))
    z, log_snr = torch.randn(batch, *data.space.shape), torch.linspace(-10, 9, batch)

    def ways(model: DiffusionModel) -> dict[str, Step]:
        def denoised(network: Denoiser) -> Callable[[], Tensor]:
            return lambda: network(z, -log_snr).data.square().mean()

        own = [copy.deepcopy(model.denoiser) for _ in range(4)]
        return {
            "forward_backward": plain(own[0], denoised(own[0]), step=False),
            "network": plain(own[1], denoised(own[1])),
            "network_clip": plain(own[2], denoised(own[2]), clip=True),
            "network_clip_ema": plain(own[3], denoised(own[3]), clip=True, average=True),
        }

    out: dict[str, Any] = {"batch": batch, "rounds": rounds}
    torch.manual_seed(0)
    for name in ("unet", "tiny"):
        model = build_model(config, data.space)
        assert isinstance(model, DiffusionModel)
        if name == "tiny":
            model.denoiser.module = Tiny(2)
        seconds = taken_in_turn(ways(model), rounds, config, data, model)
        out[name] = {"milliseconds": milliseconds(seconds)}
        if name == "unet":
            out[name]["ours_over"] = {other: ratio(seconds["ours"], seconds[other]) for other in list(seconds)[1:]}
    unet, tiny = out["unet"]["milliseconds"], out["tiny"]["milliseconds"]
    # The same ratios from what is measured well apart: clipping and averaging grow with the weights, the rest does not.
    by_itself = tiny["ours"] - tiny["network_clip_ema"]
    out["own_milliseconds"] = round(by_itself, 3)
    out["own_share_of_network"] = round(by_itself / unet["network"], 4)
    out["meets_target"] = out["unet"]["ours_over"]["network"]["ratio"] <= STEP_RATIO
    out["profile"] = profile(config, data, rounds)
    return out


def profile(config: Config, data: Dataset, rounds: int) -> dict[str, float]:
    """Wall milliseconds of each phase of a step, by `train` itself."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = Console(quiet=True)
        loop.train(dataclasses.replace(config, steps=rounds), f"{folder}/run", data, console=quiet, profile=True)
        record = json.loads((Path(folder) / "run" / PROFILE).read_text())
    once = ("validation", "checkpoint")
    return {k: round(1e3 * s / record["steps"], 3) for k, s in record["seconds"].items() if k not in once}


# Memory, each way in a process of its own.


def memory(steps: int) -> dict[str, Any]:
    """Peaks of resident memory of `train` and of plain PyTorch: noise predicted, and a head over 256 levels."""
    out: dict[str, Any] = {"steps": steps, "batch": 64, "shape": [1, 28, 28], "widths": [64, 128, 256]}
    for predicts in ("noise", "levels"):
        found = {way: child("memory", predicts, way, str(steps)) for way in ("plain", "ours")}
        plain_growth, ours = found["plain"]["growth"], found["ours"]
        out[predicts] = {
            "mebibytes": found,
            "ours_over_plain": round(ours["growth"] / plain_growth, 4),
            "with_validation_over_plain": round(ours["growth_with_validation"] / plain_growth, 4),
            "meets_target": ours["growth"] <= MEMORY_RATIO * plain_growth,
        }
        print(f"memory, {predicts}:", json.dumps(out[predicts]), flush=True)
    return out


def memory_child(predicts: str, way: str, steps: int) -> dict[str, float]:
    """Growth of the peak, MiB, in a process that has done nothing else."""
    before = resident("VmRSS")
    forget_peak()
    space, batch = Discrete((1, 28, 28), 256), 64
    raw = torch.randint(0, 256, (1024, *space.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = Dataset("noise", space, raw, raw[:256], raw[:256])
    chosen = ModelConfig(predicts=predicts, widths=(64, 128, 256), dropout=0.0)  # type: ignore[arg-type]
    config = dataclasses.replace(steps_of(steps, batch=batch, model=chosen), steps=steps)
    if way == "ours":
        peaks: list[float] = []
        with tempfile.TemporaryDirectory() as folder, watched(lambda step: peaks.append(resident("VmHWM"))):
            loop.train(config, f"{folder}/run", data, console=Console(quiet=True))
        # The last peak that was read is that of all steps but one.
        return {"growth": peaks[-1] - before, "growth_with_validation": resident("VmHWM") - before, "imports": before}
    model = build_model(config, space)
    assert isinstance(model, DiffusionModel)
    denoiser, log_snr = model.denoiser, torch.linspace(-10, 9, batch)

    def loss() -> Tensor:
        x = data.encode("train", torch.randint(0, len(raw), (batch,)))
        noise = torch.randn_like(x)
        alpha, sigma = (torch.sigmoid(s * log_snr).sqrt()[:, None, None, None] for s in (1, -1))
        said = denoiser(alpha * x + sigma * noise, -log_snr)
        return (said.data - x).square().mean() if predicts == "levels" else (said.value - noise).square().mean()

    step = plain(denoiser, loss, clip=True, average=True)
    for _ in range(steps):
        step()
    return {"growth": resident("VmHWM") - before, "imports": before}


def resident(what: str) -> float:
    """VmRSS or its peak VmHWM, MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return round(int(line.split()[1]) / 1024, 1)


def forget_peak() -> None:
    """The peak is the present again: imports and their garbage don't count."""
    Path("/proc/self/clear_refs").write_text("5")


def child(*args: str, threads: int | None = None) -> dict[str, Any]:
    """What a fresh process of this script says."""
    command = [sys.executable, __file__, "--threads", str(threads or torch.get_num_threads()), "--child", *args]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(said.splitlines()[-1])


# Throughput beside other trainers.


def throughput(rounds: int, site: Path, batch: int = 64) -> dict[str, Any]:
    """Images per second of the three trainers with one network, and of two with their own networks."""
    from diffusers import UNet2DModel, __version__

    found, versions = lucidrains.package(site)
    space = Discrete((1, 32, 32), 256)
    raw = torch.randint(0, 256, (2048, *space.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = Dataset("noise", space, raw, raw[:64], raw[:64])
    x = data.encode("train")
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        norm_num_groups=8,
    )
    z, t, noise = x[:batch], torch.arange(batch) * 15, torch.randn(batch, *space.shape)

    def model_of(module: nn.Module, indexed: bool) -> DiffusionModel:
        betas = schedules.linear(1000)
        denoiser = Denoiser(module, "noise", time=TrainedIndex(betas) if indexed else None)
        return DiffusionModel(GaussianDiffusion(betas), denoiser, LevelPosterior(space))

    config = steps_of(
        rounds, batch=batch, model=ModelConfig(predicts="noise"), schedule=ScheduleConfig("linear", steps=1000)
    )
    bare = copy.deepcopy(network)
    ways = {
        "diffusers": diffusers_example.steps(copy.deepcopy(network), x, batch, rounds),
        "denoising-diffusion-pytorch": lucidrains.steps(found, lucidrains.Adapted(copy.deepcopy(network), 1), x, batch),
        "plain": plain(bare, lambda: (bare(z, t).sample - noise).square().mean()),
    }
    same = taken_in_turn(ways, rounds, config, data, model_of(FromDiffusers(copy.deepcopy(network)), indexed=True))
    count = flops(network, lambda n: n(z[:1], t[:1]).sample)
    out: dict[str, Any] = {
        "versions": versions | {"diffusers": __version__},
        "batch": batch,
        "shape": list(space.shape),
        "rounds": rounds,
        "same_network": speeds(same, batch) | {"parameters": size(network), "flops_per_image": count},
    }
    print("throughput, the same network:", json.dumps(out["same_network"]), flush=True)

    # Their Unet and ours, ours as wide and deep as makes its FLOPs the nearest.
    theirs = found.Unet(dim=16, dim_mults=(1, 2, 4), channels=1)
    theirs_count = flops(theirs, lambda n: n(z[:1], t[:1]))

    def counted(width: int, depth: int) -> int:
        return flops(made(width, depth), lambda n: n(z[:1], -t[:1] / 100))

    def made(width: int, depth: int) -> UNet:
        return UNet(1, widths=(width, 2 * width, 4 * width), blocks=depth)

    # Every block adds the same.
    counts = {}
    for w in range(8, 65, 8):
        one, two = counted(w, 1), counted(w, 2)
        counts |= {(w, b): one + (b - 1) * (two - one) for b in range(1, 9)}
    width, depth = min(counts, key=lambda chosen: abs(counts[chosen] - theirs_count))
    ours = made(width, depth)
    own = taken_in_turn(
        {"denoising-diffusion-pytorch": lucidrains.steps(found, theirs, x, batch)},
        rounds,
        config,
        data,
        model_of(ours, indexed=False),
    )
    per_image = {"ours": counts[width, depth], "denoising-diffusion-pytorch": theirs_count}
    said = speeds(own, batch)
    out["own_networks"] = said | {
        "ours": {"widths": [width, 2 * width, 4 * width], "blocks": depth},
        "parameters": {"ours": size(ours), "denoising-diffusion-pytorch": size(theirs)},
        "flops_per_image": per_image,
        "gigaflops_per_second": {k: round(v * per_image[k] / 1e9, 1) for k, v in said["images_per_second"].items()},
    }
    print("throughput, own networks:", json.dumps(out["own_networks"]), flush=True)
    return out


def speeds(seconds: dict[str, list[float]], batch: int) -> dict[str, Any]:
    """Images per second of every way, and how many times those of others ours are."""
    others = [name for name in seconds if name != "ours"]
    return {
        "images_per_second": {k: round(batch / statistics.median(blocks(v)), 1) for k, v in seconds.items()},
        "ours_over": {name: ratio(seconds[name], seconds["ours"]) for name in others},
    }


def flops(network: nn.Module, call: Callable[[nn.Module], Tensor]) -> int:
    """Floating-point operations of a forward and backward pass."""
    network = copy.deepcopy(network)
    with FlopCounterMode(display=False) as counter:
        call(network).square().mean().backward()
    return counter.get_total_flops()


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# Data of files.


def files(steps: int, repeats: int, rows: int = 1_000_000, images: int = 20_000) -> dict[str, Any]:
    """Steps per second of `train` on data of files over those on the same values in memory."""
    from PIL import Image

    out: dict[str, Any] = {"steps": steps, "repeats": repeats, "rows": rows, "images": images}
    with tempfile.TemporaryDirectory() as name:
        folder, dice = Path(name), np.random.default_rng(0)
        table = dice.normal(size=(rows, 20))
        np.save(folder / "float64.npy", table)
        np.save(folder / "float32.npy", table.astype(np.float32))
        del table
        (folder / "images").mkdir()
        for i in range(images):
            pixels = dice.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{i:05}.png")
        for source in ("float32.npy", "float64.npy", "images"):
            # An image's step takes fifty times as long as a row's.
            some = steps if source != "images" else max(20, steps // 50)
            runs: dict[str, list[dict[str, Any]]] = {"memory": [], "file": []}
            for i in range(repeats):
                for how in ("memory", "file") if i % 2 else ("file", "memory"):
                    runs[how].append(child("data", str(folder / source), how, str(some)))
            medians = {
                how: {key: statistics.median(run[key] for run in of) for key in of[0]} for how, of in runs.items()
            }
            wall, cpu = (
                medians["file"][key] / medians["memory"][key]
                for key in ("steps_per_second", "steps_per_processor_second")
            )
            out[source] = medians | {"file_over_memory": round(wall, 4), "file_over_memory_processor": round(cpu, 4)}
            out[source]["meets_target"] = wall >= DATA_RATIO
            print(f"data, {source}:", json.dumps(out[source]), flush=True)
    return out


def data_child(source: str, how: str, steps: int) -> dict[str, float]:
    """`train` at full speed on a source, after its first steps."""
    before, start = resident("VmRSS"), time.perf_counter()
    forget_peak()
    data = load(source)
    loaded = time.perf_counter() - start
    after_load = resident("VmHWM")
    if how == "memory":
        data = dataclasses.replace(data, **{s: data.tensor(s) for s in ("train", "validation", "test")})
    times: list[tuple[float, float]] = []

    def at(step: int) -> None:
        times.append((time.perf_counter(), time.process_time()))
        if step == steps + WARM_UP:
            raise _Enough

    # A network that leaves the data nowhere to hide: small, and without a head over 256 levels.
    likelihood = "gaussian" if data.space.levels is None else "discretized-gaussian"
    model = ModelConfig(predicts="v", likelihood=likelihood, widths=(8, 16), dropout=0.0)
    trained(steps_of(steps, data=DataConfig(name=source), model=model), data, at)
    (wall, cpu), (wall_end, cpu_end) = times[WARM_UP], times[-1]
    return {
        "steps_per_second": round(steps / (wall_end - wall), 2),
        "steps_per_processor_second": round(steps / (cpu_end - cpu), 2),
        "load_seconds": round(loaded, 2),
        "load_peak_growth_mebibytes": round(after_load - before, 1),
        "peak_growth_mebibytes": round(resident("VmHWM") - before, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ("overhead", "memory", "throughput")
    parser.add_argument("--parts", nargs="*", choices=known, default=known)
    parser.add_argument("--data", action="store_true", help="the part on data of files too")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="overhead and throughput for each of these")
    parser.add_argument("--rounds", type=int, default=200, help="steps of each way of overhead and throughput")
    parser.add_argument("--memory-steps", type=int, default=50)
    parser.add_argument("--data-steps", type=int, default=2000, help="on a table; images take a fiftieth")
    parser.add_argument("--data-repeats", type=int, default=3)
    parser.add_argument("--peers", type=Path, default=Path("/tmp/peers/site"), help="see peers/lucidrains.py")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training_speed.json")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads[0])
    if args.child:
        what, one, way, steps = args.child
        print(json.dumps({"memory": memory_child, "data": data_child}[what](one, way, int(steps))))
        return

    # What is not measured this time stays as it was.
    record: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}

    def measured(part: str, of: Callable[[], dict[str, Any]]) -> None:
        record[part] = {"machine": machine()} | of()
        save(args.out, record)

    for threads in args.threads:
        torch.set_num_threads(threads)
        on = "one_thread" if threads == 1 else f"{threads}_threads"
        if "overhead" in args.parts:
            measured(f"overhead_{on}", lambda: overhead(args.rounds))
            print(f"overhead, {on}:", json.dumps(record[f"overhead_{on}"]), flush=True)
        if "throughput" in args.parts:
            measured(f"throughput_{on}", lambda: throughput(args.rounds, args.peers))
    torch.set_num_threads(args.threads[0])
    if "memory" in args.parts:
        measured("memory", lambda: memory(args.memory_steps))
    if args.data:
        measured("data", lambda: files(args.data_steps, args.data_repeats))
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
