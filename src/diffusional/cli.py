"""The command line: demo, train, evaluate, sample, information, claims. Importing it imports no torch, so that `--help` is instant.

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
from diffusional.training.config import Config, DataConfig, ScheduleConfig

if TYPE_CHECKING:
    from torch import Tensor

    from diffusional.evaluation import Evaluation, Plan
    from diffusional.evaluation.evaluation import Watch
    from diffusional.models.base import LatentVariableModel
    from diffusional.models.diffusion import DiffusionModel
    from diffusional.models.vae import Autoencoder
    from diffusional.training.run import RunRecord

# Steps of `demo --quick`.
QUICK = 160
# Where a command leaves its result as JSON.
Json = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help="Write the result as JSON.")]
Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="The run folder.")]


@dataclass(frozen=True)
class Demo:
    """Train a diffusion model, a VAE and a hierarchical VAE on real digits and itemise their bounds: under five minutes on two
    cores, --quick under two."""

    out: Path = Path("runs/demo")
    """Folder for the run and its pictures; an existing one is left alone and a number is added."""
    steps: int | None = None
    """Optimiser steps of the diffusion model, in place of the recipe's; the others train for as long."""
    quick: bool = False
    """A shorter training, for bounds that are a little worse."""
    seed: int = 0
    max_seconds: float | None = None
    """May stop the training early."""
    json: Json = None


@dataclass(frozen=True)
class Train:
    """Train a model by its ELBO: a diffusion model, or a VAE (--model.kind). A run is a folder; --resume continues it."""

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
    importance_weighted: int | None = None
    """Of a VAE: the importance-weighted bound over so many draws beside the NELBO."""
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


@dataclass(frozen=True)
class Information:
    """What the latents of a schedule know of a data set, I(x; z_t), before any training. Of a run: where its nats go,
    beside another's; of a VAE's run, what its latents know."""

    data: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="DATA|RUN", help='"digits", or a path, as for train; or a diffusion model\'s run folder.'
        ),
    ]
    reference: Path | None = None
    """For a run: a second run, whose costs its own are compared with, level by level, under the same noise."""
    schedule: Literal["linear", "cosine", "log_snr_linear"] = "linear"
    steps: int | None = None
    """T latents; 1000 unless given, and continuous time for log_snr_linear."""
    gamma_min: float | None = None
    """γ_1 = −log SNR of the cleanest latent (log_snr_linear)."""
    gamma_max: float | None = None
    """γ_T (log_snr_linear)."""
    beta_start: float | None = None
    """β_1 (linear)."""
    beta_end: float | None = None
    """β_T (linear)."""
    levels: int | None = None
    """How many integer levels the data have (256 for 8-bit images)."""
    split: Literal["train", "validation", "test", "all"] | None = None
    """train unless given; test for a run."""
    levels_shown: int = 50
    """How many t, evenly spread from 1 to T; of two runs, cells of levels."""
    samples: int = 2000
    """Draws of an item and its noise; each is looked at on every level."""
    seed: int = 0
    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help="Draw the curve, as .png.")] = None
    json: Json = None


@dataclass(frozen=True)
class Claims:
    """Measure the claims C1 to C9 about the bound, each beside a control that must fail; exit status 1 where one is not so."""

    only: tuple[str, ...] | None = None
    """Some of them, such as C1 C5."""
    seed: int = 0
    """Draws the worlds, networks and noise."""
    json: Json = None


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Information, tyro.conf.subcommand("information")]
    | Annotated[Claims, tyro.conf.subcommand("claims")]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; exits with 1 where a claim does not hold, 2 on bad input, 3 where an evaluation can't vouch for its target, 130 when interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        command = _parsed(args)
        run = {
            Demo: _demo,
            Train: _train,
            Evaluate: _evaluate,
            Sample: _sample,
            Information: _information,
            Claims: _claims,
        }[type(command)]
        if command.json is not None:
            _check_target("--json", command.json)
        record = run(command)
        if command.json is not None:
            from diffusional.files import save_json

            save_json(command.json, record)
        if record.get("reached") is False:
            print(f"diffusional: not reached: {_why(record)}", file=sys.stderr)
            raise SystemExit(3)
        if not all(claim["holds"] and claim["control_fails"] for claim in record.get("claims", ())):
            raise SystemExit(1)
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


def _parsed(args: list[str]) -> "Demo | Train | Evaluate | Sample | Information | Claims":
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
    if command.quick:
        config = dataclasses.replace(config, steps=QUICK, validate_every=QUICK // 4, checkpoint_every=QUICK)
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
    from diffusional.evaluation import evaluate, importance_weighted
    from diffusional.evaluation.evaluation import check_targets, regridded
    from diffusional.files import save_json
    from diffusional.models.diffusion import DiffusionModel
    from diffusional.models.vae import Autoencoder
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
    if isinstance(model, Autoencoder):
        _check_autoencoder(command, sweep)
    elif command.importance_weighted is not None:
        raise DiffusionalError(f"--importance-weighted came for {command.run}, a diffusion model; it is for VAEs")
    if command.steps is not None or command.continuous:
        with _plainly():
            model = regridded(model, "continuous" if command.steps is None else command.steps)
    name, split, x = _items(record, command)
    if command.other is not None:
        return _compare(command, record, model, name, split, x)
    plan = reference = None
    if isinstance(model, DiffusionModel) and not sweep:
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
            records=command.run if isinstance(model, DiffusionModel) and not sweep else None,
            progress=watch,
        )
    out = result.to_json()
    if isinstance(model, DiffusionModel):
        latents = "T = ∞" if model.steps is None else f"T = {model.steps}"
    else:
        assert isinstance(model, Autoencoder)
        latents = f"latents {', '.join(map(str, model.latents))}"
    _console().print(
        ledger_table(
            out,
            f"{name}, {split}: {out['items']} items, {latents}, levels {out['levels'] or '∞'}, "
            f"{out['network_evaluations']:,} network evaluations ({out['network_evaluations'] / out['items']:.1f} per item)",
        )
    )
    if command.importance_weighted is not None:
        assert isinstance(model, Autoencoder)
        tighter = importance_weighted(model, x, command.importance_weighted, command.seed)
        said = tighter.to("bits/dim", model.space.dimensions)
        _console().print(f"importance-weighted bound, K = {command.importance_weighted}: {said}", soft_wrap=True)
        out["importance_weighted"] = said.to_dict() | {"draws": command.importance_weighted}
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


def _check_autoencoder(command: Evaluate, sweep: bool) -> None:
    if sweep or command.continuous or command.plan is not None:
        raise DiffusionalError(
            f"--sweep, --draws, --cells, --continuous or --plan came for {command.run}, whose model has no levels to visit: give "
            "--error, --visits or --item-error"
        )
    if command.importance_weighted is not None and (command.importance_weighted < 2 or command.other is not None):
        raise DiffusionalError(
            f"--importance-weighted {command.importance_weighted} came; give at least 2 draws, and one run"
        )


def _compare(
    command: Evaluate, record: "RunRecord", model: "LatentVariableModel", name: str, split: str, x: "Tensor"
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

    from diffusional.models.diffusion import DiffusionModel
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
    model, generator = model.to(device), torch.Generator(device).manual_seed(command.seed)
    if isinstance(model, DiffusionModel):
        x = model.sample(command.n, generator, method=command.method, steps=command.steps, eta=command.eta).cpu()
    elif command.method != "ancestral" or command.steps is not None or command.eta:
        raise DiffusionalError(
            f"--method, --steps or --eta came for {command.run}, which is no diffusion model; leave them out"
        )
    else:
        x = model.sample(command.n, generator).cpu()
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


def _claims(command: Claims) -> dict[str, Any]:
    import platform

    import torch
    from rich.markup import escape

    import diffusional
    from diffusional import claims
    from diffusional.report.tables import claims_table

    with _console().status("") as status:
        found = claims.run(command.only, command.seed, progress=lambda said: status.update(escape(said)))
    versions = {
        "diffusional": diffusional.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    out = {"claims": [result.to_dict() for result in found], "seed": command.seed, "versions": versions}
    _console().print(claims_table(out, f"Claims and controls, seed {command.seed}"))
    return out


def _schedule(command: Information) -> ScheduleConfig:
    """The schedule that the options name; an option of another kind of schedule is refused."""
    belongs = {
        "log_snr_linear": {"gamma_min": command.gamma_min, "gamma_max": command.gamma_max},
        "linear": {"beta_start": command.beta_start, "beta_end": command.beta_end},
        "cosine": {},
    }
    strange = [
        f"--{name.replace('_', '-')}"
        for kind, options in belongs.items()
        for name, value in options.items()
        if kind != command.schedule and value is not None
    ]
    if strange:
        raise DiffusionalError(
            f"{', '.join(strange)} came with --schedule {command.schedule}, which has no such number"
        )
    given = {name: value for name, value in belongs[command.schedule].items() if value is not None}
    steps = 1000 if command.steps is None and command.schedule != "log_snr_linear" else command.steps
    return ScheduleConfig(command.schedule, steps, **given)


def _information(command: Information) -> dict[str, Any]:
    import torch
    from rich.progress import Progress

    from diffusional.data import load
    from diffusional.information import curve, points_of
    from diffusional.models.backward import prior_kl
    from diffusional.report.figures import information_curve
    from diffusional.report.tables import information_table
    from diffusional.training.build import build_schedule

    if (Path(command.data) / "config.json").is_file():
        return _budget(command)
    if command.reference is not None:
        raise DiffusionalError(
            f"--reference came with {command.data}, which is no run folder; it is for comparing two runs"
        )
    split = command.split or "train"
    if command.figure is not None:
        if command.figure.suffix != ".png":
            raise DiffusionalError(f"--figure {command.figure} came; figures are drawn as .png")
        _check_target("--figure", command.figure)
    config = _schedule(command)
    schedule = build_schedule(config)
    dataset = load(command.data, levels=command.levels)
    splits = ("train", "validation", "test") if split == "all" else (split,)
    x = torch.cat([dataset.encode(split) for split in splits])
    with Progress(console=_console(), transient=True) as bar:
        task = bar.add_task("drawing", total=command.samples)
        found = curve(
            x,
            schedule,
            command.levels_shown,
            command.samples,
            torch.Generator().manual_seed(command.seed),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    prior = float(prior_kl(x, schedule.ends()[1]).mean())
    marks, wasted = (0.1, 0.5, 0.9), found.wasted()
    lost = {str(share): found.lost(share) for share in marks}
    out = found.to_json() | {
        "data": command.data,
        "split": split,
        "items": len(x),
        "distinct_items": len(points_of(x).weights),
        "data_sha256": {split: dataset.fingerprint(split) for split in splits},
        "schedule": dataclasses.asdict(config),
        "seed": command.seed,
        "prior": {
            "value": prior,
            "information": float(found.information[-1]),
            "error": float(found.error[-1]),
            "unit": "nats",
        },
        "lost": lost,
        "wasted": {"share": 0.01, "clean": wasted[0], "noisy": wasted[1]},
    }
    latents = "T = ∞" if schedule.steps is None else f"T = {schedule.steps}"
    title = f"{command.data}, {split}: {len(x)} items, {command.schedule}, {latents}, {found.samples} draws"
    console = _console()
    console.print(information_table(out, title))
    for line in _said(out, "u" if schedule.steps is None else "t"):
        console.print(line, soft_wrap=True, highlight=False)
    if command.figure is not None:
        information_curve(
            command.figure,
            found.level.numpy(),
            found.gamma.numpy(),
            found.information.numpy(),
            found.error.numpy(),
            found.entropy.value,
            wasted,
            title,
        )
    return out


def _budget(command: Information) -> dict[str, Any]:
    """The nat budget of a run relative to another."""
    import torch

    from diffusional.information import budget
    from diffusional.models.diffusion import DiffusionModel
    from diffusional.models.vae import Autoencoder
    from diffusional.report.tables import budget_table
    from diffusional.training.run import load, read_run

    kept = ("data", "reference", "split", "seed", "json", "samples", "levels_shown")
    if Information(**{name: getattr(command, name) for name in kept}) != command:
        raise DiffusionalError(
            f"options of a schedule, --levels or --figure came with {command.data}, a run, which has its own: leave them out"
        )
    record, model = read_run(command.data), load(command.data)
    if isinstance(model, Autoencoder):
        return _latents(command, record, model)
    if command.reference is None:
        raise DiffusionalError(
            f"{command.data} came, a run: the information in real data isn't known, and gaps are relative to another "
            "model's. Give --reference RUN"
        )
    theirs, other = read_run(command.reference), load(command.reference)
    if not (isinstance(model, DiffusionModel) and isinstance(other, DiffusionModel)):
        raise DiffusionalError(f"{command.reference} holds no diffusion model, and has no levels to compare")
    name, split, x = _items(record, Evaluate(Path(command.data), split=command.split))
    if theirs.fingerprints.get(split) != record.fingerprints.get(split):
        raise DiffusionalError(f"the {split} split of {command.reference} is not that of {command.data}")
    generator = torch.Generator().manual_seed(command.seed)
    with torch.no_grad():
        found = budget(model, x, other, command.levels_shown, command.samples, generator)
    out = found.to_json() | {"runs": [command.data, str(command.reference)], "data": name, "split": split}
    title = f"{name}, {split}: {found.samples} draws of {len(x)} items, {command.data} relative to {command.reference}"
    _console().print(budget_table(out, title))
    return out


def _latents(command: Information, record: "RunRecord", model: "Autoencoder") -> dict[str, Any]:
    """What a VAE's latents know of a split: I(x; z), KL[q(z) ‖ p(z)], active units, and layers that carry nothing."""
    import torch

    from diffusional.information import aggregated
    from diffusional.ledger import with_error

    if command.reference is not None:
        raise DiffusionalError(f"--reference came with {command.data}, which is no diffusion model; leave it out")
    name, split, x = _items(record, Evaluate(Path(command.data), split=command.split or "train"))
    found = aggregated(model, x, command.samples, torch.Generator().manual_seed(command.seed))
    out = found.to_json() | {
        "run": command.data,
        "data": name,
        "split": split,
        "items": len(x),
        "samples": command.samples,
    }
    console = _console()

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False)

    def pm(estimate: Any) -> str:
        return " ± ".join(with_error(estimate.value, estimate.error)) + " nats"

    say(f"{name}, {split}: {len(x)} items, H(x) = {found.entropy:.4f} nats, {command.samples} draws")
    say(f"I(x; z)            {pm(found.information)}")
    say(f"KL[q(z) ‖ p(z)]    {pm(found.marginal_kl)}{', an upper bound' if found.bounded else ''}")
    say(f"E KL[q(z|x) ‖ p(z)] {pm(found.kl)}: their sum, MATH (21)")
    for i, (layer, active, units) in enumerate(zip(found.layers, found.active, found.units, strict=True)):
        say(f"layer {i + 1}: {pm(layer)}, {active} of {units} units active")
    if found.chain is not None:
        say(f"of the fixed chain: I(z; z₁) {pm(found.chain[0])}, I(x; z₁) {pm(found.chain[1])}")
    for warning in found.warnings:
        say(f"warning: {warning}")
    return out


def _said(out: dict[str, Any], name: str) -> Iterator[str]:
    """What a schedule does to a data set, in four lines."""
    from diffusional.ledger import with_error

    first, error = with_error(out["information"][0], out["information_error"][0])
    repeats = "" if out["distinct_items"] == out["items"] else f" ({out['distinct_items']} distinct items)"
    left, left_error = with_error(out["remaining"]["value"], out["remaining"]["error"])
    yield (
        f"H(x) = {out['entropy']['value']:.4f} nats{repeats}; z₁ knows {first} ± {error} of them, "
        f"and leaves {left} ± {left_error} to the decoder"
    )
    last, error = with_error(out["prior"]["information"], out["prior"]["error"])
    yield f"at the last latent {last} ± {error} nats are left: the information in KL_T = {out['prior']['value']:.3g}"
    places = ", ".join(f"{float(s):.0%} by {name} = {at:.4g}" for s, at in out["lost"].items())
    yield f"lost: {places}"
    wasted = out["wasted"]
    yield (
        f"{wasted['clean']:.1%} of the levels, at the clean end, change less than 1 % of it, and {wasted['noisy']:.1%} at the "
        "noisy end"
    )


def _numbered(path: Path) -> Path:
    """`path`, or the first of name-2, name-3 … that does not exist: nothing is overwritten."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return candidate
