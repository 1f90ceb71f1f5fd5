"""`diffusional export`: a run as a pipeline of diffusers."""

from diffusional.cli.commands import Export
from diffusional.cli.console import Result


def run(command: Export) -> Result:
    """Write the folder of a pipeline."""
    from diffusional.files import load_json
    from diffusional.training.export import export

    folder = export(command.run, command.folder, to=command.to)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    steps = load_json(folder / "scheduler" / "scheduler_config.json")["num_train_timesteps"]
    record = {"run": str(command.run), "folder": str(folder), "to": command.to, "files": files}
    lines = [
        f"{folder} is a pipeline of diffusers: DiffusionPipeline.from_pretrained({str(folder)!r})(num_inference_steps={steps})",
        f"its model card is {folder / 'README.md'}. Next: diffusional evaluate {folder} --data …",
    ]
    return Result(record, lines)
