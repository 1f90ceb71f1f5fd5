"""`diffusional export`: a run as a pipeline of diffusers."""

from diffusional.cli.commands import Export
from diffusional.cli.console import Result


def run(command: Export) -> Result:
    """Write the folder of a pipeline."""
    from diffusional.training.export import export

    folder = export(command.run, command.folder, to=command.to)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    record = {"run": str(command.run), "folder": str(folder), "to": command.to, "files": files}
    lines = [
        f"{folder} is a pipeline of diffusers: DiffusionPipeline.from_pretrained({str(folder)!r}) samples it",
        f"its model card is {folder / 'README.md'}. Next: diffusional evaluate {folder} --data …",
    ]
    return Result(record, lines)
