"""Runs on the Hugging Face Hub: `push` uploads a run folder, `pull` downloads one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.files import is_temporary, load_json, writing_folder
from diffusional.interop.card import run_card
from diffusional.interop.imported import is_imported
from diffusional.training.export import own_evaluation
from diffusional.training.folder import load_run
from diffusional.training.run import CHECKPOINTS, CONFIG, DATA, read_run

CARD = "README.md"
# Kinds of files that are downloaded: none of them can run code when it is read.
_PULLED = ("json", "jsonl", "safetensors", "md", "npz", "npy", "csv", "png", "html", "txt")


def push(
    run: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    checkpoints: bool = False,
    replace: bool = False,
) -> dict[str, Any]:
    """Upload a run folder to the Hub as one commit: its config, weights, metrics, plans and evaluations, and a model card.

    The model card, README.md, has the bound of the run's own evaluation, if there is one of these weights; a README.md in the folder is used
    as it is. Hidden and temporary files are left out.

    Args:
        run: the folder.
        repo_id: owner/name. The repository is created if it does not exist.
        private: whether a new repository is private.
        checkpoints: whether checkpoints/, with the state of the optimiser, is uploaded too; a pulled run can be resumed only with it.
        replace: whether files of a repository that is not empty may be replaced, by a new commit.

    Returns a record with the URL of the commit and the names of the files.
    Raises DiffusionalError for a folder that is not a run, an imported run, which only refers to its checkpoint, an invalid name, a repository
    that is not empty, a missing login, a missing permission, and a Hub that cannot be reached.
    """
    folder = Path(run)
    opened = load_run(folder)
    if is_imported(folder):
        raise DiffusionalError(
            f"{folder} was imported and only refers to its checkpoint; push the checkpoint itself, by `hf upload`, or give a run that was "
            "trained here"
        )
    model = opened.model  # of damaged weights, nothing is uploaded
    files = files_of(folder, checkpoints)
    with needed_for("diffusers"):
        import huggingface_hub

    with _reported(repo_id, "pushed"):
        api = huggingface_hub.HfApi()
        api.whoami()
        there = []
        if api.repo_exists(repo_id):
            there = sorted(set(api.list_repo_files(repo_id)) - {".gitattributes"})
    if there and not replace:
        raise DiffusionalError(
            f"{repo_id} exists and has {len(there)} files ({', '.join(there[:3])}{', …' if len(there) > 3 else ''}); nothing was uploaded. "
            "Name another repository, or replace them by a new commit with --replace (replace=True), which keeps the old one in its history"
        )
    card: str | None = None
    if CARD not in files:
        card = run_card(
            repo_id, model, opened.config.to_dict(), own_evaluation(folder, model), load_json(folder / DATA)
        )
    operations = [huggingface_hub.CommitOperationAdd(name, str(folder / name)) for name in files]
    if card is not None:
        operations.append(huggingface_hub.CommitOperationAdd(CARD, card.encode()))
    with _reported(repo_id, "pushed"):
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.create_commit(repo_id, operations, commit_message=f"Push the run {folder.name}")
    return {
        "run": str(folder),
        "repo_id": repo_id,
        "url": str(getattr(commit, "commit_url", "") or f"https://huggingface.co/{repo_id}"),
        "commit": getattr(commit, "oid", None),
        "files": sorted({*files, CARD}),
        "bytes": sum((folder / name).stat().st_size for name in files),
    }


def files_of(folder: Path, checkpoints: bool = False) -> list[str]:
    """Return the files of a run to upload, relative to its folder: neither hidden ones nor, unless asked for, checkpoints.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in (".lock", "config.json"):
    ...     _ = (folder / name).write_text("{}")
    >>> files_of(folder)
    ['config.json']
    """
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts) or any(is_temporary(Path(part)) for part in parts)
        if path.is_file() and not hidden and (checkpoints or parts[0] != CHECKPOINTS):
            found.append("/".join(parts))
    return found


def pull(repo_id: str, run: str | Path, *, revision: str | None = None) -> Path:
    """Download a run from the Hub into a new folder, completely or not at all.

    Args:
        repo_id: owner/name, as it was pushed.
        run: the new folder.
        revision: a branch, tag or commit.

    Returns the folder.
    Raises DiffusionalError for a folder that exists, a repository that does not exist or has no run, a missing login, and a Hub that cannot be
    reached. Nothing is written then.
    """
    target = Path(run)
    with needed_for("diffusers"):
        import huggingface_hub

    with writing_folder(target) as partial:
        with _reported(repo_id, "pulled"):
            api = huggingface_hub.HfApi()
            files = set(api.list_repo_files(repo_id, revision=revision))
        if not {CONFIG, DATA} <= files:
            what = (
                f"it is a pipeline of diffusers; use it as it is: diffusional evaluate {repo_id} --data …, or diffusional import {repo_id} RUN"
                if "model_index.json" in files
                else "give a repository that `diffusional push` wrote"
            )
            raise DiffusionalError(f"{repo_id} has no {CONFIG} and {DATA} of a run: {what}")
        with _reported(repo_id, "pulled"):
            api.snapshot_download(
                repo_id,
                revision=revision,
                local_dir=partial,
                allow_patterns=[f"*.{kind}" for kind in _PULLED],
            )
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        (partial / ".gitattributes").unlink(missing_ok=True)
        read_run(partial)
    return target


@contextmanager
def _reported(repo_id: str, done: str) -> Iterator[None]:
    """Turn errors of huggingface_hub, of many kinds, into one line with what to do."""
    try:
        yield
    except DiffusionalError:
        raise
    except Exception as error:
        raise DiffusionalError(f"{repo_id} could not be {done}: {_why(error)}") from error


def _why(error: Exception) -> str:
    names = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    lines = str(error).strip().splitlines()
    said = lines[0][:200] if lines else type(error).__name__
    if "LocalTokenNotFoundError" in names or status == 401:
        return "you are not logged in, or the token is not valid: run `hf auth login`, or set HF_TOKEN"
    if status == 403 or "GatedRepoError" in names:
        return f"the token has no permission for it ({said}): use a token with write access, or a name of your own"
    if "HFValidationError" in names:
        return f"expected owner/name ({said})"
    if "RepositoryNotFoundError" in names or "RevisionNotFoundError" in names or status == 404:
        return "no such repository or revision, or it is private: check the name, and `hf auth login`"
    if names & {
        "OfflineModeIsEnabled",
        "ConnectError",
        "ConnectTimeout",
        "ConnectionError",
        "TransportError",
        "Timeout",
    }:
        return f"the Hub could not be reached ({said}): check the network, and that HF_HUB_OFFLINE is not set"
    return f"{type(error).__name__}: {said}"
