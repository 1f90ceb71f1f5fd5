"""CIFAR-10 as Kingma et al. 2021 have it (the preset vdm), and what it would take: 10 million steps of 128 images.

    python benchmarks/gpu/cifar10.py --dry-run [--data NPZ] [--steps 40] [--out FILE]
    python benchmarks/gpu/cifar10.py --data CIFAR10 --run RUN [--piece SECONDS] [--out FILE]

--dry-run takes real training steps on 6,000 of the images, and prints and writes memory, throughput, the part of the device's
peak that is used (model FLOPs utilisation: forward and backward pass of the network, as torch.utils.flop_counter counts them), and
the time that the paper's run would take. On a GPU it runs the paper's network; on a CPU a narrow one, whose utilisation it assumes for
the paper's. Peaks are the makers' for dense bf16; of a CPU, or a GPU not listed, that of a large matrix product, measured.

Without it, the run itself, in pieces of any length, on all that --data names (hf:uoft-cs/cifar10 if the machine has the Hub). The
network is compiled and runs in bf16. When training has ended: all test images, continuous time, to ±0.005 bits/dim. (Published: 2.65.)
"""

import argparse
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import pieces
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusional.data import load
from diffusional.networks import VDMUNet
from diffusional.space import Space
from diffusional.training.config import Config, DataConfig, SystemConfig
from diffusional.training.recipes import vdm

SUBSET = Path(__file__).parents[2] / "../shared/data/cifar10-subset.npz"
RESULTS = Path(__file__).parents[1] / "results"
ERROR = 0.005  # bits/dim
BETWEEN = 600.0  # seconds from one validation to the next, unless pieces are shorter
# Dense bf16, FLOP/s, by what the device's name contains.
PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "A10": 125e12,
}


def paper(data: str) -> Config:
    """The preset, as this machine would run it."""
    config = dataclasses.replace(vdm(), data=DataConfig(name=data, levels=256))
    if pieces.device().type == "cpu":
        return config
    return dataclasses.replace(config, system=SystemConfig(compile=True, channels_last=True), precision="bf16")


def narrow(config: Config) -> Config:
    """A network that a CPU trains."""
    model = dataclasses.replace(config.model, widths=(32,), blocks=4)
    return dataclasses.replace(config, model=model, batch=16)


def network(config: Config, space: Space) -> dict[str, float]:
    """Parameters of the preset's network, and FLOPs of its forward and backward pass for one image. Takes no memory."""
    with torch.device("meta"):
        module = VDMUNet(space.shape[0], width=config.model.widths[0], blocks=config.model.blocks)
        z, log_snr = torch.zeros(1, *space.shape), torch.zeros(1)
    with FlopCounterMode(display=False) as counter:
        module(z, log_snr).sum().backward()
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "flop_per_image": counter.get_total_flops(),
    }


def peak(dtype: torch.dtype) -> tuple[float, str]:
    """FLOP/s that the device could do, and who says so."""
    device = pieces.device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else ""
    for known, rate in PEAKS.items():
        if known in name.replace("-", " ").split() or (" " in known and known in name):
            return rate, f"maker's, {known}"
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = math.inf
    for _ in range(5):
        since = time.perf_counter()
        float((a @ b)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - since)
    return 2 * n**3 / best, f"measured, {n}×{n} {str(dtype).removeprefix('torch.')} product"


def memory() -> dict[str, float]:
    """The peak so far, GiB."""
    if torch.cuda.is_available():
        return {"gpu_gibibytes": round(torch.cuda.max_memory_allocated() / 2**30, 2)}
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"resident_gibibytes": round(int(line.split()[1]) / 2**20, 2)}


def dry_run(path: str, steps: int) -> dict[str, Any]:
    """What a step costs here, and what all of the paper's would."""
    data, full = load(path, levels=256), paper(path)
    taken = full if pieces.device().type == "cuda" else narrow(full)
    rate = pieces.steps_per_second(taken, data, steps)
    here, there = network(taken, data.space), network(full, data.space)
    most, source = peak(torch.bfloat16 if taken.precision == "bf16" else torch.float32)
    used = rate * taken.batch * here["flop_per_image"]
    total = full.steps * full.batch * there["flop_per_image"]
    return {
        "measured": {
            "width": taken.model.widths[0],
            "blocks": taken.model.blocks,
            "batch": taken.batch,
            **here,
            "steps": steps,
            "steps_per_second": round(rate, 3),
            "images_per_second": round(rate * taken.batch, 2),
            "teraflops": round(used / 1e12, 4),
            "utilisation": round(used / most, 4),
            **memory(),
        },
        "peak": {"teraflops": round(most / 1e12, 4), "source": source},
        "paper": {
            "width": full.model.widths[0],
            "blocks": full.model.blocks,
            "batch": full.batch,
            "steps": full.steps,
            **there,
            "exaflop": round(total / 1e18, 1),
            "days_at_this_utilisation": round(total / used / 86_400, 2),
        },
        "images": {split: len(data.tensor(split)) for split in ("train", "validation", "test")},
        "machine": pieces.machine(),
    }


def run(path: str, folder: Path, piece: float, out: Path) -> None:
    """A piece of the paper's run, or its evaluation."""
    until = time.monotonic() + piece
    data, config = load(path, levels=256), pieces.begun(folder)
    if config is None:
        config = paper(path)
        every = max(1, round(pieces.steps_per_second(config, data) * min(BETWEEN, piece / 6)))
        config = dataclasses.replace(config, validate_every=every, checkpoint_every=every)
    model, _ = pieces.train_until(config, folder, data, until)
    if model is not None:
        how = {"target_error": ERROR, "every_item": True, "reference": data.encode("train")}
        pieces.write(out, pieces.evaluated(model, data, folder, config, **how))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(SUBSET), help="where the images are: a file, a folder, or hf:owner/name")
    parser.add_argument("--run", type=Path, help="the run's folder, which a later piece finds again")
    parser.add_argument("--piece", type=float, default=math.inf, help="seconds that this piece may take, at most")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--steps", type=int, default=40, help="of the dry run: 20 or more")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.dry_run:
        record = dry_run(args.data, args.steps)
        for part in ("measured", "peak", "paper"):
            print(part, record[part], flush=True)
        pieces.write(args.out or RESULTS / "gpu-cifar10-dry-run.json", record)
    elif args.run is None:
        parser.error("give --run RUN, or --dry-run")
    else:
        run(args.data, args.run, args.piece, args.out or RESULTS / "gpu-cifar10.json")


if __name__ == "__main__":
    main()
