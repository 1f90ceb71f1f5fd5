"""`diffusional train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusional.cli.commands import Train
from diffusional.cli.console import Result, console
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from diffusional.training.checkpoint import Progress
    from diffusional.training.config import DataConfig


def run(command: Train) -> Result:
    from diffusional.training.run import COMPOSITE

    if command.composite is not None or (command.resume and (command.run / COMPOSITE).exists()):
        return _composite(command)
    from diffusional.files import load_json
    from diffusional.ledger import per_unit
    from diffusional.report.tables import profile_table
    from diffusional.training.checkpoint import restore_progress
    from diffusional.training.loop import ended_early, train
    from diffusional.training.run import CHECKPOINTS, PROFILE, read_run

    model = train(
        command.config,
        command.run,
        resume=command.resume,
        console=console(stderr=True),
        profile=command.profile,
        tensorboard=command.tensorboard,
    )
    progress = restore_progress(command.run / CHECKPOINTS)
    best = progress.best / per_unit("bits/dim", model.space.dimensions)
    ended = ended_early(command.config, progress)
    shown: list[Any] = [
        f"{command.run}: best validation bound {best:.4f} bits/dim at step {progress.best_step} of {command.config.steps}"
        + _early(command, progress)
    ]
    if command.profile:
        shown.append(profile_table(load_json(command.run / PROFILE)))
    record = read_run(command.run)
    out = {
        "run": str(command.run),
        "steps": progress.step,
        "steps_planned": command.config.steps,
        "ended_by": ended,
        "seconds": progress.seconds,
        "validation": {"value": best, "unit": "bits/dim", "step": progress.best_step},
        "data_sha256": record.fingerprints,
    }
    return Result(out, shown)


def _composite(command: Train) -> Result:
    """Train a system of several stages."""
    from dataclasses import replace

    from diffusional.ledger import per_unit
    from diffusional.training.checkpoint import restore_progress
    from diffusional.training.composite_config import CompositeConfig
    from diffusional.training.composites import train_composite
    from diffusional.training.config import Config, DataConfig
    from diffusional.training.run import CHECKPOINTS, COMPOSITE, STAGES, composite_of
    from diffusional.training.systems import SYSTEMS

    name = command.composite
    if (
        replace(command.config, data=DataConfig()) != Config()
        or command.preset
        or command.config_file
        or command.profile
    ):
        raise DiffusionalError(
            "of the options of a config only --data.* apply to a system of several stages, whose stages have configs of their own; leave the others "
            f"out, or change them in a copy of {COMPOSITE} and give that file as --composite"
        )
    if name is None:
        config = composite_of(command.run)[0]
    elif name in SYSTEMS:
        config = SYSTEMS[name]()
    elif Path(name).suffix == ".json":
        config = CompositeConfig.load(Path(name).expanduser())
    else:
        raise DiffusionalError(
            f"--composite {name}: expected one of {', '.join(SYSTEMS)}, or a .json file such as the {COMPOSITE} of a run"
        )
    if name is not None and command.config.data != DataConfig():
        config = replace(config, data=_merged(config.data, command.config.data))
    model: Any = train_composite(
        config, command.run, resume=command.resume, console=console(stderr=True), tensorboard=command.tensorboard
    )
    bit, stages, shown = per_unit("bits/dim", model.space.dimensions), {}, list[Any]()
    for stage in config.stages:
        progress = restore_progress(command.run / STAGES / stage / CHECKPOINTS)
        if config.stages[stage].model.kind == "contrastive":
            # A loss of pairs, which is not a part of the bound of x.
            stages[stage] = {"contrastive_loss_nats": progress.best, "steps": progress.step}
            shown.append(f"{stage}: best contrastive loss in validation {progress.best:.4f} nats")
            continue
        stages[stage] = {"nats": progress.best, "bits/dim of x": progress.best / bit, "steps": progress.step}
        shown.append(
            f"{stage}: best validation bound {progress.best:.2f} nats, {progress.best / bit:.4f} bits/dim of x"
        )
    shown.append(
        f"{command.run}: a system of {len(stages)} stages; evaluate it with `diffusional evaluate {command.run}`"
    )
    return Result({"run": str(command.run), "kind": config.kind, "stages": stages}, shown)


def _merged(own: "DataConfig", given: "DataConfig") -> "DataConfig":
    """Return the data of a system with those options that were given."""
    import dataclasses

    plain = type(given)()
    changed = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}
    changed = {name: value for name, value in changed.items() if value != getattr(plain, name)}
    if "name" in changed and changed["name"] != "digits":
        changed.setdefault("warps", 0)
    return dataclasses.replace(own, **changed)


def _early(command: Train, progress: "Progress") -> str:
    """Return why a run ended before its last step or without its last validation; "" if it did neither."""
    from diffusional.training.loop import ended_early

    config, ended = command.config, ended_early(command.config, progress)
    said = ""
    if ended == "max_seconds":
        said = f"; stopped after step {progress.step} by max_seconds={config.max_seconds:g}"
    elif ended == "patience":
        said = f"; stopped after step {progress.step} by patience={config.patience}: no better bound in {progress.stale} validations"
    if progress.validated < progress.step:
        said += f"; no time was left to validate step {progress.step}"
    return said
