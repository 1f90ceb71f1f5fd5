"""Do evaluations in shards add up if their machines vanish? Two shards of one data set, each killed at a random moment and started again.

    python benchmarks/shards.py [--items 40] [--visits 1000] [--shards 2] [--out benchmarks/results/shards.json]

A plan is learned once and saved. Every shard is a process of its own, which evaluates every n-th item by a fixed number of
visits under that plan and keeps the records of its draws in a file. Each process gets SIGKILL once, at a random moment after
its first records were written, and is started again with the same command. One further process evaluates all items at once;
the shards' scores are compared with its scores.

The network is an untrained U-Net on the digits: what is tried is not the model. Records are written every second here (every 20
seconds by default), so that a short trial shows what is kept.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from provenance import machine, save
from torch import Tensor

import diffusional as df
from diffusional.evaluation import Plan, task
from diffusional.networks import UNet

RESULTS = Path(__file__).parent / "results" / "shards.json"


def model_and_items(items: int) -> tuple[df.DiffusionModel, Tensor]:
    """Return the same model and items in every process."""
    data = df.data.load("digits")
    assert isinstance(data.space, df.Discrete)
    torch.manual_seed(0)
    network = UNet(1, widths=(16,), blocks=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    process = df.GaussianDiffusion(df.schedule.linear(1000))
    model = df.DiffusionModel(process, df.Denoiser(network, "v"), df.likelihood.DiscretizedGaussian(data.space))
    return model.eval(), data.encode("test")[:items]


def work(options: argparse.Namespace) -> None:
    """Evaluate the items of one shard, continuing from its records if there are any."""
    torch.set_num_threads(1)
    task._SAVE_EVERY = 1.0
    model, x = model_and_items(options.items)
    folder, name = options.folder, f"shard-{options.worker}-of-{options.shards}"
    found = df.evaluate(
        model,
        x[options.worker :: options.shards],
        visits=options.visits,
        plan=Plan.load(folder / "plan.json", model),
        records=folder / f"{name}.safetensors",
        deterministic=True,
        audit=False,
    )
    found.save(folder / f"{name}.json")


def start(options: argparse.Namespace, worker: int, shards: int, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--worker", str(worker), "--shards", str(shards), "--folder", str(folder)]
    return subprocess.Popen([*command, "--items", str(options.items), "--visits", str(options.visits)])


def finished(process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        raise SystemExit(f"expected a shard to exit with 0, got {process.returncode}")


def killed_once(options: argparse.Namespace, worker: int, folder: Path, rng: random.Random) -> dict[str, Any]:
    """Run a shard, kill it at a random moment after its first records, and run it to its end."""
    records = folder / f"shard-{worker}-of-{options.shards}.safetensors"
    begun = time.monotonic()
    process = start(options, worker, options.shards, folder)
    while not records.exists():
        if process.poll():
            raise SystemExit(f"expected a shard to write records, got exit status {process.returncode}")
        time.sleep(0.02)
    time.sleep(rng.uniform(0, options.longest))
    unfinished = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    after, kept = time.monotonic() - begun, records.stat().st_size
    finished(start(options, worker, options.shards, folder))
    return {"killed_after_seconds": round(after, 2), "bytes_kept": kept, "killed_before_the_end": unfinished}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--visits", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument(
        "--longest", type=float, default=2.0, help="seconds from the first records to the kill, at most"
    )
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options)
        return
    torch.set_num_threads(1)
    folder, rng = Path(tempfile.mkdtemp()), random.Random(0)
    Plan.fit(model_and_items(options.items)[0], df.data.load("digits").encode("train"), 1000, 0).save(
        folder / "plan.json"
    )
    shards = [killed_once(options, worker, folder, rng) for worker in range(options.shards)]
    finished(start(options, 0, 1, folder))
    nelbo = torch.zeros(options.items, dtype=torch.float64)
    error = torch.zeros_like(nelbo)
    for worker in range(options.shards):
        part = df.Evaluation.load(folder / f"shard-{worker}-of-{options.shards}.json")
        nelbo[worker :: options.shards] = torch.as_tensor(part.per_item["nelbo"])
        error[worker :: options.shards] = torch.as_tensor(part.per_item["error"])
    whole = df.Evaluation.load(folder / "shard-0-of-1.json")
    single = torch.as_tensor(whole.per_item["nelbo"])
    record = {
        "machine": machine(1),
        "items": options.items,
        "visits": options.visits,
        "shards": shards,
        "largest_difference_of_a_score_nats": float((nelbo - single).abs().max()),
        "mean_of_shards": {"value": float(nelbo.mean()), "error": float(error.square().sum().sqrt() / options.items)},
        "mean_of_one_process": {"value": whole.nelbo.value, "error": whole.nelbo.error},
    }
    save(options.out, record)
    print(record)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
