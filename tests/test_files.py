"""What is on disk: written whole or not at all, and no pickle is ever opened."""

import dataclasses
import io
import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from diffusional import files
from diffusional.errors import DiffusionalError
from diffusional.training import checkpoint, loop
from diffusional.training.config import Config, DataConfig, ModelConfig
from diffusional.training.run import load, read_run

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    np.save(folder / "tiny.npy", np.random.default_rng(0).integers(0, 5, (40, 3)))
    config = Config(
        data=DataConfig(name=str(folder / "tiny.npy"), levels=5),
        model=ModelConfig(hidden=8, blocks=1),
        steps=2,
        batch=8,
        validate_every=2,
        checkpoint_every=2,
    )
    loop.train(config, folder / "run", console=QUIET)
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(trained, tmp_path / "run")


def weights(run: Path) -> Path:
    return run / "model.safetensors"


def newest(run: Path) -> Path:
    return run / "checkpoints" / "step-00000002" / "state.safetensors"


def vouch(path: Path) -> None:
    """Have the checkpoint's manifest agree with a file of it, as one that was made elsewhere would."""
    manifest = files.load_json(path.parent / "manifest.json")
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
    manifest.pop("sha256")
    files.save_json(path.parent / "manifest.json", manifest | {"sha256": checkpoint._seal(manifest)})


def resume(run: Path) -> None:
    loop.train(read_run(run).config, run, resume=True, console=QUIET)


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, bytes]]:
        return _write, (str(self.marker), b"owned")


def _write(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)


def _zip(what: Any, path: Path) -> None:
    torch.save({"a": torch.zeros(2), "b": what}, path)


def _legacy(what: Any, path: Path) -> None:
    torch.save({"a": torch.zeros(2), "b": what}, path, _use_new_zipfile_serialization=False)


PICKLES: dict[str, Callable[[Any, Path], None]] = {
    "torch.save": _zip,
    "torch.save, legacy": _legacy,
    **{f"protocol {n}": lambda what, path, n=n: path.write_bytes(pickle.dumps(what, n)) or None for n in range(6)},
}


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("place", [weights, newest], ids=["model.safetensors", "checkpoint"])
def test_a_pickle_is_refused_and_never_opened(kind: str, place: Callable, run: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = place(run)
    PICKLES[kind](Malicious(marker), path)
    expected = "is corrupt or no safetensors" if kind in ("protocol 0", "protocol 1") else "is a pickle, which can run"
    if place is newest:
        vouch(path)
    with pytest.raises(DiffusionalError, match=expected) as raised:
        load(run) if place is weights else resume(run)
    assert str(path) in str(raised.value)
    assert not marker.exists()
    # The trap works where a pickle is opened.
    if kind.startswith("protocol"):
        pickle.loads(path.read_bytes())
    else:
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pkl"])
def test_names_of_pickles_are_refused_whatever_they_hold(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(DiffusionalError, match=r"is a pickle.*safetensors\.torch\.save_file"):
        files.load_tensors(path)


def test_nothing_in_a_run_is_a_pickle(trained: Path) -> None:
    kinds = {p.suffix for p in trained.rglob("*") if p.is_file()}
    assert kinds == {".json", ".jsonl", ".safetensors"}
    for path in trained.rglob("*.safetensors"):
        head = path.read_bytes()
        length = int.from_bytes(head[:8], "little")
        json.loads(head[8 : 8 + length])


@pytest.mark.parametrize("place", [weights, newest], ids=["model.safetensors", "checkpoint"])
@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(kept: int, place: Callable, run: Path) -> None:
    path = place(run)
    path.write_bytes(path.read_bytes()[:kept])
    expected = "is corrupt or no safetensors file" if place is weights else r"is damaged .* SHA-256 .* no checkpoint"
    with pytest.raises(DiffusionalError, match=expected) as raised:
        load(run) if place is weights else resume(run)
    assert str(path) in str(raised.value)


def test_missing_files_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match=r"nowhere is not a folder; give the run folder"):
        load(tmp_path / "nowhere")
    weights(run).unlink()
    with pytest.raises(DiffusionalError, match=r"model\.safetensors does not exist; expected a safetensors file"):
        load(run)
    (run / "data.json").unlink()
    with pytest.raises(DiffusionalError, match=r"data\.json does not exist"):
        load(run)


def test_foreign_weights_are_listed(run: Path) -> None:
    own = files.load_tensors(weights(run))
    first, second, *_ = own
    foreign = {name: t for name, t in own.items() if name not in (first, second)}
    foreign |= {"unet.conv.weight": torch.zeros(3), second: torch.zeros(7, 7)}
    save_file(foreign, weights(run))
    shape = tuple(own[second].shape)
    with pytest.raises(DiffusionalError) as raised:
        load(run)
    assert str(raised.value).endswith(
        f"does not fit the model of this config: {first} is missing; unet.conv.weight is unknown; "
        f"{second} has shape (7, 7) there, {shape} here"
    )


def test_a_long_list_of_foreign_weights_is_cut(run: Path) -> None:
    n = len(files.load_tensors(weights(run)))
    save_file({"a": torch.zeros(1)}, weights(run))
    with pytest.raises(DiffusionalError, match=f"; and {n - 2} more$"):
        load(run)


def test_a_foreign_checkpoint_is_refused(run: Path) -> None:
    save_file({"a": torch.zeros(1)}, newest(run))
    vouch(newest(run))
    with pytest.raises(DiffusionalError, match="does not fit this run"):
        resume(run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.json", "{", r"data\.json is not JSON"),
        ("data.json", "[]", r"data\.json holds a list; expected a JSON object"),
        ("data.json", "{}", r"data\.json has no 'space'; was it edited by hand\?"),
        ("data.json", '{"space": {"kind": "fuzzy"}, "sha256": {}}', "kind of a space .* got 'fuzzy'"),
        ("config.json", '{"stepz": 1}', "unknown config key 'stepz'; did you mean 'steps'"),
        ("config.json", "", r"config\.json is not JSON"),
        ("checkpoints/step-00000002/progress.json", '{"stepp": 1}', r"progress\.json does not fit"),
    ],
)
def test_broken_records_are_refused(name: str, content: str, message: str, run: Path) -> None:
    config = read_run(run).config
    (run / name).write_text(content)
    if "/" in name:
        vouch(run / name)
    with pytest.raises(DiffusionalError, match=message):
        load(run) if "/" not in name else loop.train(config, run, resume=True, console=QUIET)


# Regular files.


def test_a_regular_file_and_a_link_to_one_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    files.check_regular(tmp_path / "a")
    files.check_regular(tmp_path / "b")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (_fifo, "named pipe"),
        (_socket, "socket"),
        (Path.mkdir, "folder"),
        (lambda path: path.symlink_to("/dev/zero"), "character device"),
        (lambda path: path.symlink_to(path.with_name("gone")), "gone, which does not exist"),
        (lambda path: path.symlink_to(path), "could not be read"),
        (lambda path: None, "does not exist"),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(
    make: Callable, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    make(Path("x.npy"))
    with pytest.raises(DiffusionalError, match=rf"x\.npy .*{kind}"):
        files.check_regular(Path("x.npy"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("place", [weights, newest], ids=["model.safetensors", "checkpoint"])
def test_weights_of_another_type_are_refused(dtype: torch.dtype, place: Callable, run: Path) -> None:
    own = files.load_tensors(place(run))
    name = next(name for name, t in own.items() if name.endswith("weight") and t.dtype == torch.float32)
    save_file(own | {name: own[name].to(dtype)}, place(run))
    if place is newest:
        vouch(place(run))
    with pytest.raises(DiffusionalError, match=rf"weight is .*{str(dtype).removeprefix('torch.')}\b.*float32"):
        load(run) if place is weights else resume(run)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, run: Path) -> None:
    own = files.load_tensors(weights(run))
    name = next(name for name, t in own.items() if name.endswith("weight") and t.is_floating_point())
    own[name].view(-1)[0] = value
    save_file(own, weights(run))
    with pytest.raises(DiffusionalError, match=rf"model\.safetensors has .*not finite: {name}"):
        load(run)


@pytest.mark.parametrize("name", ["config.json", "data.json", "model.safetensors"])
def test_named_pipes_in_a_run_are_refused(name: str, run: Path) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(DiffusionalError, match=rf"{name} is a named pipe"):
        load(run)
    # A run is not resumed over one, and it stays.
    with pytest.raises(DiffusionalError, match=rf"{name} is a named pipe"):
        resume(run) if name != "model.safetensors" else checkpoint.put_back_best(newest(run).parent)
    assert (run / name).is_fifo()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("space", []),
        ("space", 3),
        ("shape", 3),
        ("shape", "3"),
        ("shape", [3.5]),
        ("levels", "5"),
        ("levels", 5.5),
        ("levels", None),
        ("low", float("-inf")),
        ("high", [1.0]),
        ("sha256", ["a"]),
        ("sha256", {"train": 1}),
    ],
)
def test_data_json_is_checked(key: str, value: object, run: Path) -> None:
    record = json.loads((run / "data.json").read_text())
    (record if key in record else record["space"])[key] = value
    (run / "data.json").write_text(json.dumps(record))
    with pytest.raises(DiffusionalError, match=r"data\.json|levels|shape"):
        load(run)


@pytest.mark.parametrize(
    ("key", "value"), [("step", "2"), ("step", -1), ("best", [1]), ("losses", [None]), ("stale", 0.5)]
)
def test_the_progress_of_a_checkpoint_is_checked(key: str, value: object, run: Path) -> None:
    path = newest(run).with_name("progress.json")
    files.save_json(path, files.load_json(path) | {key: value})
    with pytest.raises(DiffusionalError, match=rf"(?s)progress\.json does not fit.*{key}"):
        checkpoint.progress_of(path.parent)


# Writing.


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tensors = {
        "whole": shared,
        "slice of the same": shared[1:3],
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "scalar": torch.tensor(1.5, dtype=torch.float64),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "empty": torch.zeros(0, 3),
        "trained": torch.ones(2, requires_grad=True),
    }
    files.save_tensors(tmp_path / "a.safetensors", tensors)
    read = files.load_tensors(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor.detach())
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def _half(tensors: Any, path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError("disk full")


def test_an_interrupted_write_of_tensors_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    files.save_tensors(path, {"a": torch.ones(2)})
    monkeypatch.setattr("safetensors.torch.save_file", _half)
    with pytest.raises(
        DiffusionalError, match=r"a\.safetensors could not be written \(disk full\); an existing file is unchanged"
    ):
        files.save_tensors(path, {"a": torch.zeros(2)})
    assert torch.equal(files.load_tensors(path)["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_interrupted_write_of_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.save_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.save_json(path, {"a": object()})
    assert files.load_json(path) == {"a": 1}


def test_every_writer_of_a_record_has_a_temporary_name_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with files.writing(path) as (part,):
        part.write_text("half of ")
        files.save_json(path, {"who": "the other"})
        # The slower writer is still at it: it was neither disturbed nor tidied away, and readers find a whole record.
        assert files.load_json(path) == {"who": "the other"}
        part.write_text(files.json_text({"who": "the slower"}))
    assert files.load_json(path) == {"who": "the slower"}
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = tmp_path / ".diffusional-0123456789abcdef.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    others = [tmp_path / ".data.partial", tmp_path / "diffusional-0123456789abcdef.partial"]
    for other in others:
        other.mkdir()
    files.save_json(tmp_path / "a.json", {})
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "a.json"])


def _save(path: Path, what: float) -> None:
    files.save_tensors(path, {"a": torch.tensor(what)}) if path.suffix == ".safetensors" else files.save_json(
        path, {"a": what}
    )


NAMES = ["a.json", "a.safetensors"]


@pytest.mark.parametrize("name", NAMES)
def test_permissions_follow_the_umask_and_those_of_a_replaced_file_stay(name: str, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        _save(tmp_path / name, 1.0)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o640
        (tmp_path / name).chmod(0o664)
        _save(tmp_path / name, 2.0)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "dangling"])
@pytest.mark.parametrize("name", NAMES)
def test_what_a_link_points_to_is_written(name: str, there: bool, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / name, tmp_path / name
    if there:
        target.write_text("old")
    link.symlink_to(target)
    _save(link, 1.0)
    assert link.is_symlink()
    assert target.is_file()
    assert target.read_bytes() != b"old"
    assert [p.name for p in target.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_special_files_and_folders_are_not_replaced(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DiffusionalError, match="named pipe"):
        _save(tmp_path / name, 1.0)
    assert (tmp_path / name).is_fifo()
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(DiffusionalError, match="folder"):
        _save(tmp_path / name, 1.0)
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match=r"nowhere does not exist"):
        files.save_json(tmp_path / "nowhere" / "a.json", {})


@pytest.mark.parametrize("fault", [OSError("disk full"), ValueError("a bug"), KeyboardInterrupt()], ids=repr)
def test_files_that_belong_together_change_together(fault: BaseException, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    with files.writing(a, b) as (one, two):
        one.write_text("1")
        two.write_text("1")

    def broken() -> None:
        with files.writing(a, b) as (one, _):
            one.write_text("2")
            raise fault

    with pytest.raises(DiffusionalError if isinstance(fault, OSError) else type(fault)):
        broken()
    assert (a.read_text(), b.read_text()) == ("1", "1")
    assert sorted(tmp_path.iterdir()) == [a, b]


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_a_new_file_replaces_none(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    path = tmp_path / "a"
    for text in ("first", "second"):
        try:
            with files.writing(path, overwrite=False) as (part,):
                part.write_text(text)
        except FileExistsError:
            assert text == "second"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["save_tensors", "save_json", "settle"])
def test_an_interrupted_checkpoint_leaves_the_one_before(
    failing: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.read_bytes() for p in (run / "checkpoints").rglob("*") if p.is_file() and p.name != "manifest.json"}

    def broken(path: Path, *_: Any) -> None:
        (path / "half" if path.is_dir() else path.with_name("half")).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, failing, broken)
        with pytest.raises(KeyboardInterrupt):
            further(run)
    left = {p: p.read_bytes() for p in (run / "checkpoints").glob("step-*/*") if p.name != "manifest.json"}
    assert left == before
    assert checkpoint.restore_progress(run / "checkpoints").step == 2
    further(run)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]


def further(run: Path) -> None:
    """A step more than the run's config has."""
    config = read_run(run).config
    (run / "config.json").write_text((run / "config.json").read_text().replace('"steps": 2', '"steps": 3'))
    for path in run.glob("checkpoints/*/manifest.json"):
        manifest = json.loads(path.read_text().replace('"steps": 2', '"steps": 3'))
        manifest.pop("sha256")
        files.save_json(path, manifest | {"sha256": checkpoint._seal(manifest)})
    loop.train(dataclasses.replace(config, steps=3), run, resume=True, console=QUIET)


def test_the_newest_checkpoints_stay(run: Path) -> None:
    further(run)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
    assert checkpoint.restore_progress(run / "checkpoints").step == 3
