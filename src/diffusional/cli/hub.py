"""`diffusional push` and `diffusional pull`: runs on the Hugging Face Hub."""

from diffusional.cli.commands import Pull, Push
from diffusional.cli.console import Result, working


def push(command: Push) -> Result:
    """Upload a run."""
    from diffusional.training import hub

    with working(f"uploading {command.run}"):
        record = hub.push(
            command.run,
            command.repo_id,
            private=command.private,
            checkpoints=command.checkpoints,
            replace=command.replace,
        )
    names = record["files"]
    lines = [
        f"{command.run} is at {record['url']}: {len(names)} files, {record['bytes'] / 1e6:.1f} MB ({', '.join(names)})",
        f"Next, elsewhere: diffusional pull {command.repo_id} {command.run}",
    ]
    return Result(record, lines)


def pull(command: Pull) -> Result:
    """Download a run."""
    from diffusional.training import hub
    from diffusional.training.run import read_run

    with working(f"downloading {command.repo_id}"):
        folder = hub.pull(command.repo_id, command.run, revision=command.revision)
    files = hub.files_of(folder, checkpoints=True)
    record = {"repo_id": command.repo_id, "revision": command.revision, "run": str(folder), "files": files}
    data = read_run(folder).config.data.name
    lines = [
        f"{folder} is the run of {command.repo_id}, trained on {data}. Next: diffusional evaluate {folder} (with --data FILE, if these data are "
        "elsewhere here)"
    ]
    return Result(record, lines)
