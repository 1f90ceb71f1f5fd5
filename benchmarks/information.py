"""How fast the information of a large data set is: MNIST's 60,000 images against the bare matrix product.

    python benchmarks/information.py [--points 60000] [--samples 2000] [--data ../shared/data/mnist] [--threads 2] [--out FILE]

One level: `samples` rays at one log-SNR, over the product (samples, D) × (D, N) of the same type, which nothing that compares
every ray with every point can do without; at high noise in float32, at low noise in float64. Medians of interleaved runs. The
whole curve: 50 levels of DDPM's linear schedule on shared rays. Memory is the process's highest resident size during the curve,
after the data were read (Linux).

Targets at full size, on 2 cores: one level in under 5 s and 1.5 times the bare product, the curve in under 3 minutes, under 2 GB.
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
from diffusional.information import curve, points_of
from diffusional.information.finite import _FLOAT32_UP_TO
from diffusional.schedule import linear

LEVEL_SECONDS, LEVEL_RATIO, CURVE_SECONDS, GIGABYTES = 5.0, 1.5, 180.0, 2.0


def interleaved(ways: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """The median seconds of each way, taken in turn, so that a busy machine is busy for all."""
    # On one thread the process's own time, which neighbours on a shared machine disturb less.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(repetitions):
        for name, way in ways.items():
            start = clock()
            way()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def one_level(x: torch.Tensor, samples: int, repetitions: int) -> dict[str, Any]:
    """Seconds of one level and of its bare product, in both types."""
    points = points_of(x)
    generator = torch.Generator().manual_seed(0)
    index = points.draw(samples, generator)
    noise = torch.empty(samples, points.centred.shape[1]).normal_(generator=generator)
    largest = float(points.squares.max())
    out: dict[str, Any] = {"max_squared_norm": round(largest, 1)}
    for name, dtype, snr in (
        ("float32", torch.float32, 0.5 * _FLOAT32_UP_TO / largest),
        ("float64", torch.float64, 1e4),
    ):
        gamma = -torch.tensor([snr], dtype=torch.float64).log()
        table, rows = points.centred.to(dtype), points.centred[index].to(dtype)

        def bare(table: torch.Tensor = table, rows: torch.Tensor = rows) -> None:
            for some in rows.split(256):
                some @ table.T

        found = interleaved(
            {"bare": bare, "level": lambda gamma=gamma: points.log_posterior(index, noise, gamma)}, repetitions
        )
        out[name] = {
            "snr": round(snr, 3),
            "bare_seconds": round(found["bare"], 3),
            "level_seconds": round(found["level"], 3),
            "ratio": round(found["level"] / found["bare"], 3),
            "meets_targets": found["level"] < LEVEL_SECONDS and found["level"] < LEVEL_RATIO * found["bare"],
        }
        del table, rows
    return out


def whole_curve(x: torch.Tensor, samples: int) -> dict[str, Any]:
    """The seconds of 50 levels on shared rays, and their curve."""
    start = time.perf_counter()
    found = curve(x, linear(steps=1000), 50, samples, torch.Generator().manual_seed(0))
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 2),
        "entropy": found.entropy.value,
        "information_at_z1": float(found.information[0]),
        "information_at_zT": [float(found.information[-1]), float(found.error[-1])],
        "half_lost_by_t": found.lost(0.5),
        "meets_target": seconds < CURVE_SECONDS,
        "t": found.level.tolist(),
        "log_snr": [round(-gamma, 5) for gamma in found.gamma.tolist()],
        "information": [round(value, 6) for value in found.information.tolist()],
        "error": [round(value, 6) for value in found.error.tolist()],
    }


def reset_peak() -> None:
    """Forget the highest resident size so far."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_gigabytes() -> float:
    """The highest resident size since then, 2³⁰ bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[1] / "../shared/data/mnist")
    parser.add_argument("--points", type=int, default=60_000, help="of the 60,000 images")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "information.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dataset = load(args.data, levels=256)
    x = torch.cat([dataset.encode("train"), dataset.encode("validation")])[: args.points]
    del dataset
    reset_peak()
    record: dict[str, Any] = {"machine": machine(), "points": len(x), "samples": args.samples}
    record["curve"] = whole_curve(x, args.samples)
    print("curve:", json.dumps(record["curve"]), flush=True)
    # The product that it is compared with holds its own copies: the curve's memory is taken before.
    record["peak_gigabytes"] = round(peak_gigabytes(), 3)
    record["memory_meets_target"] = record["peak_gigabytes"] < GIGABYTES
    record["one_level"] = one_level(x, args.samples, args.repetitions)
    print("one level:", json.dumps(record["one_level"]), flush=True)
    save(args.out, record)


if __name__ == "__main__":
    main()
