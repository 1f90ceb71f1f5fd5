"""Where the seconds of an evaluation go: the network's, and everything else.

    python benchmarks/seconds.py [--data cifar10-subset.npz] [--threads 2] [--network] [--only NAME …]

    cifar        8-bit images 3 × 32 × 32 and a network of one convolution, whose own time is negligible: a pilot of 3,000 evaluations, and
                 100 items × 2 visits. With --network, DDPM's U-Net (35.7 M parameters) visits a few items for its seconds a visit.
    images       8-bit images 3 × 256 × 256, the same with fewer evaluations
    latents      reals 4 × 64 × 64, the same

Each row has the milliseconds per visit outside the network, the peak memory of the process so far, and for `cifar` what share of DDPM's
network seconds that is, pilot included, for 1,000 items to two visits each. Seconds are of this machine; their ratio is in one run.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import machine, save
from torch import Tensor, nn

import diffusional as df
from diffusional import likelihood, schedule
from diffusional.evaluation import Plan
from diffusional.evaluation.visit_records import VisitRecords

SHAPES = {"cifar": (3, 32, 32), "images": (3, 256, 256), "latents": (4, 64, 64)}
# Evaluations of the pilot, reference items, items and visits.
SIZES = {"cifar": (3000, 1000, 100, 2), "images": (300, 24, 8, 8), "latents": (1000, 200, 50, 4)}


class Timed(nn.Module):
    """A network that adds up the seconds of its calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seconds, self.rows = network, 0.0, 0

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        start = time.perf_counter()
        out = self.network(z)
        self.seconds += time.perf_counter() - start
        self.rows += len(z)
        return out


def items(name: str, n: int, data: Path | None) -> tuple[df.Discrete | df.Continuous, Tensor]:
    """The space, and n items of it: images of `data` if they are given and small, otherwise smooth random ones."""
    shape, generator = SHAPES[name], torch.Generator().manual_seed(0)
    coarse = torch.rand(n, shape[0], shape[1] // 4, shape[2] // 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=shape[1:], mode="bicubic")
    if name == "latents":
        return df.Continuous(shape), (smooth - 0.5) * 2
    space = df.Discrete(shape, 256)
    if name == "cifar" and data is not None:
        with np.load(data) as file:
            images = next(file[key] for key in file.files if file[key].shape[1:] == shape)
        return space, space.encode(torch.from_numpy(images[:n].astype(np.int64)))
    return space, space.encode((255 * smooth.clamp(0, 1)).round().long())


def measured(name: str, data: Path | None) -> dict[str, Any]:
    """The seconds of a pilot and of draws, less those of a network of one convolution."""
    pilot, references, n, visits = SIZES[name]
    space, x = items(name, references + n, data)
    torch.manual_seed(0)
    network = Timed(nn.Conv2d(space.shape[0], space.shape[0], 3, padding=1))
    discrete = isinstance(space, df.Discrete)
    decoder = likelihood.DiscretizedGaussian(space) if discrete else likelihood.GaussianLikelihood(space)
    model = df.DiffusionModel(df.GaussianDiffusion(schedule.linear(1000)), df.Denoiser(network), decoder).eval()

    def outside(work: Callable[[], Any]) -> tuple[float, Any]:
        before, start = network.seconds, time.perf_counter()
        result = work()
        return time.perf_counter() - start - (network.seconds - before), result

    of_pilot, plan = outside(lambda: Plan.fit(model, x[:references], pilot))
    of_base, draws = outside(lambda: VisitRecords(model, plan, x[references:]))
    every = torch.arange(n)
    of_draws, _ = outside(lambda: draws.extend(every, torch.full((n,), visits)))
    return {
        "shape": list(space.shape),
        "pilot": {"evaluations": pilot, "seconds outside the network": of_pilot},
        "base": {"items": n, "seconds": of_base},
        "draws": {"visits": n * visits, "milliseconds outside the network, each": 1000 * of_draws / n / visits},
        "peak memory, GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def ddpm_seconds(rows: int = 8, repeats: int = 3) -> float:
    """Seconds of one evaluation of DDPM's U-Net on CIFAR-10, in batches of `rows`."""
    network = df.networks.ddpm_unet(3, (32, 32))
    z, t = torch.randn(rows, 3, 32, 32), torch.zeros(rows)
    with torch.inference_mode():
        network(z, t)
        start = time.perf_counter()
        for _ in range(repeats):
            network(z, t)
    return (time.perf_counter() - start) / rows / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="an .npz file with images (N, 3, 32, 32)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--network", action="store_true", help="time DDPM's U-Net too")
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "seconds.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record: dict[str, Any] = {"machine": machine(options.threads), "rows": {}}
    for name in options.only:
        row = record["rows"][name] = measured(name, options.data)
        if name == "cifar" and options.network:
            each = ddpm_seconds()
            visits = 1000 * 2
            own = row["pilot"]["seconds outside the network"]
            own += visits * row["draws"]["milliseconds outside the network, each"] / 1000
            row["DDPM's U-Net"] = {
                "seconds a visit": each,
                "seconds outside the network over its own, pilot included": own
                / each
                / (visits + row["pilot"]["evaluations"]),
            }
        print(name, row, flush=True)
        save(options.out, record)


if __name__ == "__main__":
    main()
