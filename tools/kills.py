"""Does a run survive SIGKILL? Kill one again and again, resume it each time, and compare what it leaves with a run left in peace.

    python tools/kills.py                           # 100 random moments and every write boundary: some minutes on two cores
    python tools/kills.py --random 4 --boundaries 8 # a sample, as the tests take it

A run is killed at a random moment of its life, which is the k-th call of any function in it, so that neither the speed of the machine
nor what else it does matters; or at the k-th of its write boundaries:

    before it opens a file of its folder for writing, makes, renames, links or removes something there (Python's audit events)
    before a safetensors file is written (in Rust, which audits nothing), with half of its bytes written, and after
    before anything is brought to disk (fsync), and with half of a line of the metrics written

Then it is resumed, killed again, in a quarter of the trials, and resumed to its end. Weights, their average, the optimiser, the
best model and the metrics must have the same bytes.

Exit status: 0 if every trial ended the same, 1 if not.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import safetensors.torch
import torch
from rich.console import Console

from diffusional.training import checkpoint
from diffusional.training.config import Config, DataConfig, ModelConfig, OptimizerConfig
from diffusional.training.loop import train
from diffusional.training.metrics_logger import METRICS, MetricsLogger

ROOT = Path(__file__).resolve().parents[1]
COMPARED = ("model.safetensors", "metrics.jsonl", "config.json", "data.json")
CHANGES = ("os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "shutil.rmtree")


def config_of(folder: Path) -> Config:
    """A small run with everything that a run has: dropout, an adaptive proposal, validations and checkpoints out of step."""
    np.save(folder / "tiny.npy", np.random.default_rng(0).integers(0, 5, (64, 1, 8, 8)).astype(np.uint8))
    return Config(
        data=DataConfig(name=str(folder / "tiny.npy"), levels=5),
        model=ModelConfig(widths=(8, 8), blocks=1, dropout=0.1),
        optimizer=OptimizerConfig(lr=1e-2, warmup=5),
        steps=36,
        batch=16,
        validate_every=8,
        checkpoint_every=5,
    )


def in_child(
    run: Path, config: Config, boundary: int | None = None, call: int | None = None, counted: Path | None = None
) -> int:
    """Fork a process that begins the run or resumes it, and kills itself at a write boundary or a call, counted from 1.

    A process that reaches its end writes the numbers of both to `counted`.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        boundaries, calls = Boundaries(run, boundary), Calls(call)
        boundaries.watch()
        resume = (run / "config.json").exists()
        with calls.watched():
            train(config, run, resume=resume, console=Console(quiet=True))
        if counted is not None:
            counted.write_text(json.dumps({"boundaries": boundaries.seen, "calls": calls.seen}))
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(70)


class Calls:
    """Counts the calls and returns of functions in this thread, builtin ones included, and kills the process at the `last`."""

    def __init__(self, last: int | None) -> None:
        self.last, self.seen = last, 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        sys.setprofile(self._called)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        self.seen += 1
        if self.seen == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


class Boundaries:
    """Counts the write boundaries of this process in the folder `run`, and kills the process at the `last`."""

    def __init__(self, run: Path, last: int | None) -> None:
        self.inside, self.last, self.seen = f"{run}{os.sep}", last, 0

    def reached(self, half: Callable[[], None] | None = None) -> None:
        """Another one. `half` leaves a write as it is in its middle, where this is the last."""
        self.seen += 1
        if self.seen == self.last:
            if half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """From now on, until this process ends."""
        sys.addaudithook(self._audited)
        save_file, fsync, write = safetensors.torch.save_file, os.fsync, MetricsLogger._write

        def saved(tensors: Any, filename: Any, metadata: Any = None) -> None:
            def half() -> None:
                save_file(tensors, filename, metadata)
                os.truncate(filename, os.path.getsize(filename) // 2)

            self.reached()
            self.reached(half)
            save_file(tensors, filename, metadata)
            self.reached()

        def synced(handle: int) -> None:
            self.reached()
            fsync(handle)

        def written(metrics_logger: MetricsLogger, values: dict[str, Any]) -> None:
            path = metrics_logger.run / METRICS

            def half() -> None:
                before = path.stat().st_size
                write(metrics_logger, values)
                os.truncate(path, (before + path.stat().st_size) // 2)

            self.reached(half)
            write(metrics_logger, values)

        safetensors.torch.save_file, os.fsync, MetricsLogger._write = saved, synced, written

    def _audited(self, event: str, args: tuple[Any, ...]) -> None:
        changing = event in CHANGES or (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if changing and f"{args[0]}{os.sep}".startswith(self.inside):
            self.reached()


def ended(pid: int) -> int:
    """0 for a process that came to its end, −9 for one that was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def left(run: Path) -> dict[str, bytes]:
    """What must be the same, by name."""
    last = checkpoint.newest(run / "checkpoints")
    assert last is not None
    names = sorted(p.name for p in (run / "checkpoints").iterdir())
    found = {name: (run / name).read_bytes() for name in COMPARED}
    found |= {name: (last / name).read_bytes() for name in ("state.safetensors", "best.safetensors")}
    return found | {
        "checkpoints": ",".join(names).encode(),
        "files": ",".join(sorted(p.name for p in run.iterdir())).encode(),
    }


def trial(
    name: str, run: Path, config: Config, kills: list[Callable[[], int]], wanted: dict[str, bytes]
) -> dict[str, Any]:
    """Each of `kills` begins or resumes the run and returns how it ended; then it is resumed to the end."""
    record: dict[str, Any] = {"trial": name, "killed": 0, "failed": None, "different": []}
    for kill in kills:
        status = kill()
        record["killed"] += status == -signal.SIGKILL
        if status not in (0, -signal.SIGKILL):
            record["failed"] = f"status {status} where it was to be killed"
    if ended(in_child(run, config)) != 0:
        record["failed"] = "could not be resumed"
    else:
        now = left(run)
        record["different"] = [key for key in wanted if now[key] != wanted[key]]
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=100, help="kills at random moments")
    parser.add_argument("--boundaries", type=int, default=0, help="of the write boundaries, evenly chosen; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng, records = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, count = config_of(folder), folder / "count"
        assert ended(in_child(folder / "whole", config, counted=count)) == 0
        whole = json.loads(count.read_text())
        boundaries, calls = whole["boundaries"], whole["calls"]
        wanted = left(folder / "whole")

        def at_random(run: Path, times: int) -> list[Callable[[], int]]:
            """Kill a run at a call, and again what is left of it. A run takes a few calls more or fewer each time."""
            kills, rest = [], 0.99 * calls
            for _ in range(times):
                call = 1 + int(rng.uniform(0, rest))
                rest -= call
                kills.append(lambda call=call: ended(in_child(run, config, call=call)))
            return kills

        trials: dict[str, list[Callable[[], int]]] = {}
        for i in range(args.random):
            run = folder / f"random-{i}"
            trials[run.name] = at_random(run, 2 if i % 4 == 3 else 1)
        some = args.boundaries or boundaries
        for k in sorted({1 + round(i * (boundaries - 1) / max(1, some - 1)) for i in range(some)}):
            run = folder / f"boundary-{k}"
            trials[run.name] = [lambda run=run, k=k: ended(in_child(run, config, boundary=k))]
        for key, kills in trials.items():
            records.append(trial(key, folder / key, config, kills, wanted))
            if records[-1]["failed"] or records[-1]["different"]:
                print(json.dumps(records[-1]), flush=True)
    bad = [r for r in records if r["failed"] or r["different"]]
    out = {
        "command": " ".join(["python", *sys.argv]),
        "torch": torch.__version__,
        "kills": sum(r["killed"] for r in records),
        "at_random_moments": sum(r["killed"] for r in records if r["trial"].startswith("random")),
        "at_write_boundaries": sum(r["killed"] for r in records if r["trial"].startswith("boundary")),
        "write_boundaries_of_a_run": boundaries,
        "calls_of_a_run": calls,
        "lost": [r["trial"] for r in bad if r["failed"]],
        "different": [r["trial"] for r in bad if r["different"]],
    }
    print(json.dumps(out, indent=1))
    if args.out:
        args.out.write_text(json.dumps(out, indent=1) + "\n")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
