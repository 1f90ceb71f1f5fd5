"""The command line: demo, train, evaluate, sample. Importing it imports no torch, so that `--help` is instant.

Bad input ends with a message that says what came, what was expected and what to do, and exit status 2.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from diffusional.errors import DiffusionalError
from diffusional.training.config import Config, DataConfig

if TYPE_CHECKING:
    from torch import Tensor

    from diffusional.evaluation import Evaluation, Plan
    from diffusional.evaluation.evaluation import Watch
    from diffusional.models.diffusion import DiffusionModel
    from diffusional.training.run import RunRecord

# Where a command leaves its result as JSON.
Json = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help="Write the result as JSON.")]
Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="The run folder.")]


@dataclass(frozen=True)
class Demo:
    """Train a diffusion model on real digits and itemise its bound: about two minutes on two cores."""

    out: Path = Path("runs/demo")
    """Folder for the run and its pictures; an existing one is left alone and a number is added."""
    steps: int | None = None
    """Optimiser steps, in place of the recipe's."""
    seed: int = 0
    max_seconds: float | None = None
    """May stop the training early."""
    json: Json = None


@dataclass(frozen=True)
class Train:
    """Train a diffusion model by its ELBO. A run is a folder; --resume continues it."""

    run: Run
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    resume: bool = False
    """Continue the run in the folder, with its own config."""
    json: Json = None


@dataclass(frozen=True)
class Evaluate:
    """The NELBO of a data set under a trained model, itemised, to a stated error. Two runs: their difference, paired."""

    run: Run
    other: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN B]")] = None
    """A second run: the difference RUN − RUN B is evaluated, with common noise."""
    data: str | None = None
    """A data set, as for train; that of the run unless given."""
    levels: int | None = None
    """How many integer levels the data have; those of the run unless given."""
    split: Literal["train", "validation", "test", "all"] | None = None
    """test for the run's own data, all for other data, unless given."""
    error: float | None = None
    """Monte Carlo error of the data set's mean to reach; 0.01 unless another target is given."""
    unit: Literal["bits/dim", "nats"] = "bits/dim"
    """Of --error and --item-error."""
    item_error: float | None = None
    """Draw until every item's own score has this error."""
    visits: int | None = None
    """So many network evaluations for every item, whatever the error."""
    max_evaluations: int | None = None
    """Network evaluations in all, pilot and audit included; exit status 3 where they don't suffice."""
    per_item: Path | None = None
    """A .csv or .npz file for the score of every item, with its error."""
    plan: Path | None = None
    """A plan.json; RUN/plan.json unless given, learned on the run's training data where there is none."""
    sweep: bool = False
    """The reference: every level for every item."""
    draws: int | None = None
    """With --sweep: sweeps over the levels; 1 for T ≥ 50, else 8."""
    cells: int | None = None
    """With --sweep: cells of [0, 1] in continuous time; 1000 unless given."""
    steps: int | None = None
    """Another T than the run's own."""
    continuous: bool = False
    """Continuous time (T = ∞), whatever T the run has."""
    no_audit: bool = False
    """Don't look at every level once for costs that the plan doesn't expect."""
    seed: int = 0
    json: Json = None


@dataclass(frozen=True)
class Sample:
    """Draw from a trained model, by its own chain or by DDIM."""

    run: Run
    n: int = 16
    method: Literal["ancestral", "ddim"] = "ancestral"
    steps: int | None = None
    """Another T than the run's own (250 for runs in continuous time)."""
    eta: float = 0.0
    """Noise of DDIM, 0 to 1."""
    seed: int = 0
    out: Path | None = None
    """An .npz file for the samples, as raw data; RUN/samples.npz unless given. Images also become a .png beside it."""
    json: Json = None


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; exits with 2 on bad input, 3 where an evaluation can't vouch for its target, 130 when interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        command = _parsed(args)
        run = {Demo: _demo, Train: _train, Evaluate: _evaluate, Sample: _sample}[type(command)]
        if command.json is not None:
            _check_target("--json", command.json)
        record = run(command)
        if command.json is not None:
            from diffusional.files import save_json

            save_json(command.json, record)
        if record.get("reached") is False:
            print(f"diffusional: not reached: {_why(record)}", file=sys.stderr)
            raise SystemExit(3)
    except (DiffusionalError, OSError) as error:
        print(f"diffusional: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("diffusional: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _check_target(option: str, path: Path) -> None:
    """Before the work, not after it: can the result be written there?"""
    if path.is_dir():
        raise DiffusionalError(f"{option} {path}: this is a folder; give a file")
    if not path.resolve().parent.is_dir():
        raise DiffusionalError(f"{option} {path}: the folder {path.resolve().parent} does not exist")


def _parsed(args: list[str]) -> "Demo | Train | Evaluate | Sample":
    command = _parse(args, Command)
    if isinstance(command, Train) and command.resume and (command.run / "config.json").is_file():
        # The resumed run's own config is the default, so that only what one types can differ from it.
        saved = Train(run=command.run, config=Config.load(command.run / "config.json"))
        resumed = Annotated[Train, tyro.conf.subcommand("train", default=saved)]
        return _parse(args, resumed | Annotated[Demo, tyro.conf.subcommand("demo")])
    return command


def _parse(args: list[str], commands: Any) -> Any:
    return tyro.cli(
        commands,
        prog="diffusional",
        args=args,
        description="The honest likelihood of diffusion models: the ELBO, itemised to the last nat, with error bars.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _console() -> Any:
    from rich.console import Console

    return Console()


def _demo(command: Demo) -> dict[str, Any]:
    from diffusional.demo import demo
    from diffusional.training.recipes import digits

    config = dataclasses.replace(digits(), seed=command.seed, max_seconds=command.max_seconds)
    if command.steps is not None:
        config = dataclasses.replace(config, steps=command.steps)
    return demo(config, _numbered(command.out), _console())


def _train(command: Train) -> dict[str, Any]:
    from diffusional.training.checkpoint import restore_progress
    from diffusional.training.loop import train
    from diffusional.training.run import CHECKPOINTS, read_run

    model = train(command.config, command.run, resume=command.resume)
    progress = restore_progress(command.run / CHECKPOINTS)
    best = progress.best / _bit(model.space.dimensions)
    _console().print(
        f"{command.run}: best validation bound {best:.4f} bits/dim at step {progress.best_step} of {progress.step}"
    )
    record = read_run(command.run)
    return {
        "run": str(command.run),
        "steps": progress.step,
        "seconds": progress.seconds,
        "validation": {"value": best, "unit": "bits/dim", "step": progress.best_step},
        "data_sha256": record.fingerprints,
    }


def _bit(dimensions: int) -> float:
    from diffusional.ledger import per_unit

    return per_unit("bits/dim", dimensions)


def _items(record: "RunRecord", command: Evaluate) -> "tuple[str, str, Tensor]":
    """Name, split and items to evaluate, encoded by the run's own space."""
    import torch

    from diffusional.data import load
    from diffusional.space import Discrete
    from diffusional.training.build import build_dataset

    own: DataConfig = record.config.data
    name, split = command.data or own.name, command.split or ("test" if command.data is None else "all")
    splits = ("train", "validation", "test") if split == "all" else (split,)
    if command.data is None and command.levels is None:
        dataset = build_dataset(own)
    else:
        levels = record.space.levels if command.levels is None else command.levels
        dataset = load(name, levels=levels, seed=own.split_seed)
    if command.data is None and (
        changed := [part for part in splits if dataset.fingerprint(part) != record.fingerprints.get(part)]
    ):
        raise DiffusionalError(
            f"{', '.join(changed)} of {name} is not what {record.path} was trained with: the file has changed, or the run "
            "was given its data in Python. Name the data to evaluate with --data"
        )
    if dataset.space.shape != record.space.shape:
        raise DiffusionalError(
            f"{name} has items of shape {dataset.space.shape}; the run was trained on {record.space.shape}"
        )
    if isinstance(record.space, Discrete) != isinstance(dataset.space, Discrete) or (
        isinstance(record.space, Discrete) and dataset.space != record.space
    ):
        raise DiffusionalError(
            f"{name} is {dataset.space}; the run was trained on {record.space}: their bounds do not compare"
        )
    # A run standardises new data as it did its own.
    return name, split, record.space.encode(torch.cat([getattr(dataset, part) for part in splits]))


def _reference(record: "RunRecord") -> "Tensor | None":
    """The run's training items, encoded; None where they can't be had again, or are not the same."""
    from diffusional.training.build import build_dataset

    try:
        dataset = build_dataset(record.config.data)
    except (DiffusionalError, OSError):
        return None
    if dataset.fingerprint("train") != record.fingerprints.get("train"):
        return None
    return record.space.encode(dataset.train)


def _plan(record: "RunRecord", model: "DiffusionModel", command: Evaluate) -> "tuple[Plan | None, Tensor | None]":
    """The plan of a run, learned on its training data the first time; without these, nothing, and a pilot on the data."""
    from diffusional.evaluation import Plan
    from diffusional.evaluation.provenance import tensor_hash

    if command.plan is not None:
        return Plan.load(command.plan, model), None
    own = model.steps == record.config.schedule.steps
    name = "plan.json" if own else f"plan-{'continuous' if model.steps is None else model.steps}.json"
    path = record.path / name
    if path.exists():
        plan = Plan.load(path, model)
        if plan.provenance.get("weights_sha256") == tensor_hash(model.state_dict()):
            return plan, None
    reference = _reference(record)
    if reference is None:
        return None, None
    plan = Plan.fit(model, reference, seed=command.seed)
    plan.save(path)
    _console().print(
        f"learned {path} from {plan.provenance['evaluations']:,} evaluations on the run's training data", soft_wrap=True
    )
    return plan, reference


def _why(record: dict[str, Any]) -> str:
    nelbo = record.get("nelbo") or record["difference"]
    said = [
        f"the error is {nelbo['error']:.4g} {nelbo['unit']} after {record['network_evaluations']:,} network evaluations"
    ]
    return "; ".join([*said, *record["caveats"]])


def _evaluate(command: Evaluate) -> dict[str, Any]:
    from diffusional.evaluation import evaluate
    from diffusional.evaluation.evaluation import check_targets, regridded
    from diffusional.files import save_json
    from diffusional.report.tables import ledger_table
    from diffusional.training.run import load, read_run

    _check_evaluate(command)
    sweep = command.sweep or command.draws is not None or command.cells is not None
    target = 0.01 if command.error is None and command.visits is None and command.item_error is None else command.error
    if not sweep:
        # Before anything is learned or written.
        check_targets(target, command.visits, command.item_error, command.max_evaluations, None)
    record = read_run(command.run)
    model = load(command.run).to(_device())
    if command.steps is not None or command.continuous:
        with _plainly():
            model = regridded(model, "continuous" if command.steps is None else command.steps)
    name, split, x = _items(record, command)
    if command.other is not None:
        return _compare(command, record, model, name, split, x)
    plan = reference = None
    if not sweep:
        plan, reference = _plan(record, model, command)
    with _watching(command.unit, model.space.dimensions) as watch:
        result = evaluate(
            model,
            x,
            None if sweep else target,
            command.unit,
            seed=command.seed,
            plan=plan,
            reference=reference,
            visits=command.visits,
            item_error=command.item_error,
            every_item=command.per_item is not None,
            max_evaluations=command.max_evaluations,
            audit=not command.no_audit,
            draws=command.draws,
            cells=1000 if command.cells is None else command.cells,
            records=None if sweep else command.run,
            progress=watch,
        )
    out = result.to_json()
    latents = "T = ∞" if model.steps is None else f"T = {model.steps}"
    _console().print(
        ledger_table(
            out,
            f"{name}, {split}: {out['items']} items, {latents}, levels {out['levels'] or '∞'}, "
            f"{out['network_evaluations']:,} network evaluations ({out['network_evaluations'] / out['items']:.1f} per item)",
        )
    )
    if command.per_item is not None:
        _write_scores(command.per_item, result)
    # The run keeps the evaluation of its own splits as it is by default, to whatever error; any other goes where --json says.
    plain = Evaluate(command.run, split=command.split, error=command.error, unit=command.unit)
    if dataclasses.replace(command, per_item=None, json=None) == plain:
        save_json(command.run / f"evaluation-{split}.json", out)
    return out


def _check_evaluate(command: Evaluate) -> None:
    sweep = command.sweep or command.draws is not None or command.cells is not None
    fast = ("error", "item_error", "visits", "max_evaluations", "plan")
    given = [f"--{name.replace('_', '-')}" for name in fast if getattr(command, name) is not None]
    if sweep and given:
        raise DiffusionalError(f"{', '.join(given)} came with a full sweep (--sweep, --draws, --cells); leave one out")
    if command.steps is not None and command.continuous:
        raise DiffusionalError(f"--steps {command.steps} came with --continuous; give one of them")
    if command.per_item is not None:
        if command.per_item.suffix not in (".csv", ".npz"):
            raise DiffusionalError(f"--per-item {command.per_item} came; scores are written as .csv or .npz")
        _check_target("--per-item", command.per_item)
    if command.other is not None and (
        sweep or any(getattr(command, name) is not None for name in ("per_item", "item_error", "visits", "plan"))
    ):
        raise DiffusionalError(
            "two runs came with --sweep, --draws, --cells, --per-item, --item-error, --visits or --plan; a comparison takes "
            "--error and --max-evaluations"
        )


def _compare(
    command: Evaluate, record: "RunRecord", model: "DiffusionModel", name: str, split: str, x: "Tensor"
) -> dict[str, Any]:
    from diffusional.evaluation import compare
    from diffusional.evaluation.evaluation import regridded
    from diffusional.report.tables import comparison_table
    from diffusional.training.run import load, read_run

    assert command.other is not None
    theirs = read_run(command.other)
    if command.data is None and theirs.fingerprints.get(split) != record.fingerprints.get(split):
        raise DiffusionalError(
            f"the {split} split of {command.other} is not that of {command.run}; name the data to compare on with --data"
        )
    other = load(command.other).to(_device())
    if command.steps is not None or command.continuous:
        with _plainly():
            other = regridded(other, "continuous" if command.steps is None else command.steps)
    with _watching(command.unit, model.space.dimensions) as watch:
        result = compare(
            model,
            other,
            x,
            command.error or 0.01,
            command.unit,
            seed=command.seed,
            reference=_reference(record),
            max_evaluations=command.max_evaluations,
            audit=not command.no_audit,
            progress=watch,
        )
    out = {"runs": [str(command.run), str(command.other)]} | result.to_json()
    title = f"{name}, {split}: {out['items']} items, {out['network_evaluations']:,} network evaluations of both"
    _console().print(comparison_table(out, title))
    return out


@contextmanager
def _plainly() -> Iterator[None]:
    """Warnings as one line each, without a place in the code."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for one in caught:
        print(f"diffusional: warning: {one.message}", file=sys.stderr)


@contextmanager
def _watching(unit: str, dimensions: int) -> "Iterator[Watch]":
    """A progress bar with the estimate so far."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("evaluations"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console()) as bar:
        task = bar.add_task("evaluating", total=None)

        def watch(now: Any) -> None:
            said = "evaluating" if now.estimate is None else str(now.estimate.to(unit, dimensions)).split(" (")[0]
            bar.update(task, description=said, completed=now.evaluations, total=now.expected)

        yield watch


def _write_scores(path: Path, result: "Evaluation") -> None:
    """Every item's score and costs in nats, its error, and how many draws it had, as .csv or .npz."""
    import csv
    import os

    import numpy as np

    columns = {name: values.numpy() for name, values in result.per_item.items()}
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    if path.suffix == ".npz":
        np.savez_compressed(partial, allow_pickle=False, **columns)
    else:
        with partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    os.replace(partial, path)


def _sample(command: Sample) -> dict[str, Any]:
    import numpy as np
    import torch

    from diffusional.report.figures import grid
    from diffusional.space import Discrete
    from diffusional.training.run import load

    out = command.out or _numbered(command.run / "samples.npz")
    if out.suffix != ".npz":
        raise DiffusionalError(f"--out {out} came; samples are written as .npz")
    if out.exists():
        raise DiffusionalError(f"--out {out} exists; it was left alone, name another file")
    model = load(command.run)
    if not out.resolve().parent.is_dir():
        raise DiffusionalError(f"--out {out}: the folder {out.resolve().parent} does not exist")
    device = _device()
    x = (
        model.to(device)
        .sample(
            command.n,
            torch.Generator(device).manual_seed(command.seed),
            method=command.method,
            steps=command.steps,
            eta=command.eta,
        )
        .cpu()
    )
    raw = model.space.decode(x).numpy()
    np.savez_compressed(out, samples=raw)
    written = [str(out)]
    if len(model.space.shape) == 3 and isinstance(model.space, Discrete):
        picture = out.with_suffix(".png")
        grid(picture, x.numpy(), f"{command.n} samples, {command.method}", low=model.space.low, high=model.space.high)
        written.append(str(picture))
    _console().print(f"{command.n} samples in {' and '.join(written)}")
    return {
        "samples": written,
        "n": command.n,
        "method": command.method,
        "seed": command.seed,
        "shape": list(raw.shape),
    }


def _numbered(path: Path) -> Path:
    """`path`, or the first of name-2, name-3 … that does not exist: nothing is overwritten."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return candidate
