"""Systems trained and evaluated with several seeds, side by side, such that the work can be stopped and taken up again."""

import json
import math
import multiprocessing
import re
import statistics
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import diffusional as df
from diffusional.files import load_json, save_json
from diffusional.models.base import LatentVariableModel
from diffusional.training.config import Config

Record = dict[str, Any]
# Evaluations that a plan is learned from: the same for all, whatever is found. To learn another where a bound has a caveat would favour draws
# that met no rare cost.
PILOT = 12_000


def folder(runs: Path, name: str, seed: int) -> Path:
    """Where a system's run with a seed is."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower().replace("γ", "gamma").replace("∞", "inf")).strip("-")
    return runs / f"{slug}-seed{seed}"


def kept(path: Path, make: Callable[[], Record]) -> Record:
    """What a file says; it is made where it is not there."""
    if not path.exists():
        save_json(path, make())
    return load_json(path)


def itemised(found: df.Evaluation, unit: str) -> Record:
    """An evaluation in `unit`."""
    return {
        "nelbo": found.nelbo.to(unit, found.dimensions).to_dict(),
        "terms": {term: e.to(unit, found.dimensions).to_dict() for term, e in found.terms.items()},
        "network_evaluations": found.nelbo.network_evaluations,
        "reached": found.reached,
        "caveats": list(found.caveats),
    }


def measured(
    run: Path, wanted: Config, error: float, unit: str, measure: Callable[[LatentVariableModel], df.Evaluation]
) -> Record:
    """What a run's evaluation.json says, in `unit`; where there is none, the run is trained to its end and measured, to ± `error`.

    Raises SystemExit where the folder holds another config's, or another error's.
    """

    def made() -> Record:
        # A run that has ended takes no more steps.
        model = df.train(wanted, run, resume=run.exists(), console=Console(quiet=True))
        parameters = sum(p.numel() for p in model.parameters())
        return itemised(measure(model), unit) | {"parameters": parameters, "config": wanted.to_dict(), "error": error}

    record = kept(run / "evaluation.json", made)
    if record["config"] != wanted.to_dict() or record["error"] != error:
        raise SystemExit(f"{run} holds another config or error; give other --runs")
    # Of training, earlier sessions included.
    timing = (run / "timing.jsonl").read_text(encoding="utf-8").splitlines()
    return record | {"train_seconds": json.loads(timing[-1])["seconds"]}


def each(
    one: Callable[[str, int], Record], pairs: Iterable[tuple[str, int]], jobs: int
) -> dict[str, dict[int, Record]]:
    """`one(name, seed)` of every pair, `jobs` at a time, a thread each, by name and seed; each is printed when it is there."""
    found: dict[str, dict[int, Record]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        todo = {pool.submit(one, *pair): pair for pair in pairs}
        for future in as_completed(todo):
            name, seed = todo[future]
            found.setdefault(name, {})[seed] = future.result()
            nelbo = future.result()["nelbo"]
            print(f"{name}, seed {seed}: {pm(nelbo['value'], nelbo['error'])} {nelbo['unit']}", flush=True)
    return {name: dict(sorted(runs.items())) for name, runs in found.items()}


def spread(values: Iterable[float], errors: Iterable[float] = ()) -> tuple[float, float | None]:
    """Mean, and its standard error by the spread of seeds, or by their own Monte Carlo `errors` where these say more; None for one seed."""
    values = list(values)
    n = len(values)
    if n == 1:
        return values[0], None
    drawn = math.hypot(*errors) / n
    return statistics.fmean(values), max(statistics.stdev(values) / n**0.5, drawn)


def over_seeds(estimates: Iterable[Record]) -> tuple[float, float | None]:
    """The same of estimates with a value and an error."""
    estimates = list(estimates)
    return spread((e["value"] for e in estimates), (e["error"] for e in estimates))


def pm(value: float, error: float | None, digits: int = 4) -> str:
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
