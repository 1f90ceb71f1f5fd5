"""Runs on the Hub, which is a folder here: what is uploaded, and refusals that change nothing."""

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

import diffusional as df
from battery import command
from diffusional.errors import DiffusionalError
from diffusional.training.config import DataConfig, ModelConfig, ScheduleConfig


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with an evaluation."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    config = df.Config(
        steps=2,
        data=DataConfig("digits"),
        model=ModelConfig(network="mlp", hidden=8, blocks=1),
        schedule=ScheduleConfig(steps=5),
    )
    df.train(config, folder)
    run = df.load_run(folder)
    result = df.evaluate(run.model, run.dataset.encode("test")[:20], draws=1) if run.dataset else None
    if result is None:
        result = df.evaluate(run.model, df.data.load("digits").encode("test")[:20], draws=1)
    record = result.to_json() | {"data": "digits", "split": "test"}
    (folder / "evaluation-test.json").write_text(json.dumps(record))
    (folder / ".lock").write_text("")
    return folder


class Hub:
    """The parts of HfApi that are used, over a folder with one folder for each repository."""

    def __init__(self, root: Path) -> None:
        self.root, self.user, self.fault = root, "me", None
        self.private: dict[str, bool] = {}
        self.commits = 0

    def __call__(self) -> "Hub":
        return self

    def whoami(self) -> dict[str, str]:
        if self.fault is not None:
            raise self.fault
        return {"name": self.user}

    def repo_exists(self, repo_id: str) -> bool:
        return (self.root / repo_id).is_dir()

    def list_repo_files(self, repo_id: str, revision: str | None = None) -> list[str]:
        if not self.repo_exists(repo_id):
            raise RepositoryNotFoundError("404", response=_response(404))
        folder = self.root / repo_id
        return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        if not repo_id.startswith(self.user + "/"):
            raise HfHubHTTPError("403 Forbidden: no write access", response=_response(403))
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        self.private.setdefault(repo_id, private)

    def create_commit(self, repo_id: str, operations: list[Any], *, commit_message: str) -> SimpleNamespace:
        for one in operations:
            path = self.root / repo_id / one.path_in_repo
            path.parent.mkdir(parents=True, exist_ok=True)
            content = one.path_or_fileobj
            path.write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())
        self.commits += 1
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1", oid="1")

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, local_dir: Path, allow_patterns: list[str]
    ) -> str:
        for name in self.list_repo_files(repo_id, revision):
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                path = Path(local_dir) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.root / repo_id / name, path)
        (Path(local_dir) / ".cache" / "huggingface").mkdir(parents=True)
        return str(local_dir)


def _response(status: int) -> Any:
    """A response of the HTTP client of huggingface_hub, which depends on its version."""
    return SimpleNamespace(status_code=status, headers={}, request=None)


class ConnectError(Exception):
    """Has the name of the exception of HTTP clients for a network that is down."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", made)
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_goes_out_and_comes_back(
    trained: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(trained)
    status, out, err = command(capsys, "push", trained, "me/digits", "--private", "--json", "-")
    assert status == 0, err
    record = json.loads(out)
    there = files(hub.root / "me" / "digits")
    own = {name for name in before if not name.startswith(("checkpoints/", "."))}
    assert set(there) == set(record["files"]) == own | {"README.md"}
    assert all(there[name] == before[name] for name in own)
    assert hub.commits == 1
    assert hub.private == {"me/digits": True}
    assert files(trained) == before
    card = ModelCard.load(hub.root / "me" / "digits" / "README.md")
    (result,) = card.data.eval_results or []
    evaluation = json.loads(before["evaluation-test.json"])
    assert result.metric_value == pytest.approx(evaluation["nelbo"]["value"])
    assert "diffusional pull me/digits" in card.text
    assert str(trained.parent) not in card.content

    status, out, err = command(capsys, "pull", "me/digits", tmp_path / "again", "--json", "-")
    assert status == 0, err
    assert set(files(tmp_path / "again")) == set(there) == set(json.loads(out)["files"])
    first, second = df.load(trained), df.load(tmp_path / "again")
    x = df.data.load("digits").encode("test")[:4]
    assert torch.equal(
        first.elbo(x, torch.Generator().manual_seed(0)).nelbo, second.elbo(x, torch.Generator().manual_seed(0)).nelbo
    )


def test_checkpoints_are_uploaded_on_request(trained: Path, hub: Hub, tmp_path: Path) -> None:
    df.push(trained, "me/all", checkpoints=True)
    names = set(files(hub.root / "me" / "all"))
    assert {name for name in files(trained) if name.startswith("checkpoints/")} <= names
    df.pull("me/all", tmp_path / "all")
    assert any(name.endswith("state.safetensors") for name in files(tmp_path / "all"))


def test_an_own_readme_is_kept(trained: Path, hub: Hub, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "README.md").write_text("mine")
    df.push(tmp_path / "run", "me/mine")
    assert (hub.root / "me" / "mine" / "README.md").read_text() == "mine"


def test_nothing_on_the_hub_is_replaced_unless_asked(trained: Path, hub: Hub) -> None:
    df.push(trained, "me/digits")
    before = files(hub.root / "me" / "digits")
    with pytest.raises(DiffusionalError, match="--replace"):
        df.push(trained, "me/digits")
    assert files(hub.root / "me" / "digits") == before
    assert hub.commits == 1
    df.push(trained, "me/digits", replace=True)
    assert hub.commits == 2
    # An empty repository is not "something that exists".
    (hub.root / "me" / "empty").mkdir()
    (hub.root / "me" / "empty" / ".gitattributes").write_text("")
    df.push(trained, "me/empty")


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        (lambda: LocalTokenNotFoundError("no token"), "hf auth login"),
        (lambda: HfHubHTTPError("401", response=_response(401)), "hf auth login"),
        (lambda: OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (lambda: ConnectError("refused"), "could not be reached"),
        (lambda: RuntimeError("of another kind"), "RuntimeError: of another kind"),
    ],
)
def test_a_hub_that_cannot_be_used(
    fault: Callable[[], Exception], match: str, trained: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fault = fault()  # type: ignore[assignment]
    status, _, err = command(capsys, "push", trained, "me/digits")
    assert status == 2
    assert match in err
    assert err.count("\n") == 1
    assert not hub.root.exists()


def test_a_name_of_somebody_else(trained: Path, hub: Hub) -> None:
    with pytest.raises(DiffusionalError, match="permission"):
        df.push(trained, "they/digits")
    assert hub.commits == 0


def test_what_cannot_be_pushed(trained: Path, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError):
        df.push(tmp_path, "me/nothing")
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DiffusionalError, match=r"model\.safetensors"):
        df.push(tmp_path / "run", "me/nothing")
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "checkpoint.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(DiffusionalError, match="imported"):
        df.push(tmp_path / "run", "me/nothing")
    assert not hub.root.exists()


def test_what_cannot_be_pulled(trained: Path, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match="no such repository"):
        df.pull("me/digits", tmp_path / "run")
    for name, match in (("model_index.json", "pipeline of diffusers"), ("model.txt", "diffusional push")):
        other = hub.root / "me" / Path(name).stem
        other.mkdir(parents=True)
        (other / name).write_text("{}")
        with pytest.raises(DiffusionalError, match=match):
            df.pull(f"me/{other.name}", tmp_path / "run")
    df.push(trained, "me/digits")
    # Files that could run code are not downloaded, and a damaged record leaves nothing behind.
    (hub.root / "me" / "digits" / "code.py").write_text("raise SystemExit")
    (hub.root / "me" / "digits" / "weights.pkl").write_bytes(b"")
    df.pull("me/digits", tmp_path / "run")
    assert not {"code.py", "weights.pkl"} & set(files(tmp_path / "run"))
    with pytest.raises(DiffusionalError, match="exists"):
        df.pull("me/digits", tmp_path / "run")
    (hub.root / "me" / "digits" / "data.json").write_text("{")
    with pytest.raises(DiffusionalError, match=r"data\.json"):
        df.pull("me/digits", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "run"]
