"""`diffusional train`."""

from typing import Any

from diffusional.cli.commands import Train
from diffusional.cli.console import Result, console


def run(command: Train) -> Result:
    from diffusional.files import load_json
    from diffusional.ledger import per_unit
    from diffusional.report.tables import profile_table
    from diffusional.training.checkpoint import restore_progress
    from diffusional.training.loop import train
    from diffusional.training.run import CHECKPOINTS, PROFILE, read_run

    model = train(
        command.config, command.run, resume=command.resume, console=console(stderr=True), profile=command.profile
    )
    progress = restore_progress(command.run / CHECKPOINTS)
    best = progress.best / per_unit("bits/dim", model.space.dimensions)
    shown: list[Any] = [
        f"{command.run}: best validation bound {best:.4f} bits/dim at step {progress.best_step} of {progress.step}"
    ]
    if command.profile:
        shown.append(profile_table(load_json(command.run / PROFILE)))
    record = read_run(command.run)
    out = {
        "run": str(command.run),
        "steps": progress.step,
        "seconds": progress.seconds,
        "validation": {"value": best, "unit": "bits/dim", "step": progress.best_step},
        "data_sha256": record.fingerprints,
    }
    return Result(out, shown)
