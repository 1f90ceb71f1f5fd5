"""`diffusional train`."""

from typing import TYPE_CHECKING, Any

from diffusional.cli.commands import Train
from diffusional.cli.console import Result, console

if TYPE_CHECKING:
    from diffusional.training.checkpoint import Progress


def run(command: Train) -> Result:
    from diffusional.files import load_json
    from diffusional.ledger import per_unit
    from diffusional.report.tables import profile_table
    from diffusional.training.checkpoint import restore_progress
    from diffusional.training.loop import ended_early, train
    from diffusional.training.run import CHECKPOINTS, PROFILE, read_run

    model = train(
        command.config, command.run, resume=command.resume, console=console(stderr=True), profile=command.profile
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
