"""`diffusional export`: a run as a pipeline of diffusers."""

from diffusional.cli.commands import Export
from diffusional.cli.console import Result


def run(command: Export) -> Result:
    """Write the folder of a pipeline."""
    from diffusional.files import load_json
    from diffusional.training.export import export

    folder = export(command.run, command.folder, to=command.to, steps=command.steps)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    record = {"run": str(command.run), "folder": str(folder), "to": command.to, "files": files}
    name, card = repr(str(folder)), f"its model card is {folder / 'README.md'}"
    if command.to == "custom":
        lines = [
            f"{folder} has a pipeline of its own: DiffusionPipeline.from_pretrained({name}, custom_pipeline={name}, trust_remote_code=True)",
            card,
        ]
        return Result(record, lines)
    steps = load_json(folder / "scheduler" / "scheduler_config.json")["num_train_timesteps"]
    lines = [
        f"{folder} is a pipeline of diffusers: DiffusionPipeline.from_pretrained({name})(num_inference_steps={steps})",
        f"{card}. Next: diffusional evaluate {folder} --data …",
    ]
    return Result(record, lines)
