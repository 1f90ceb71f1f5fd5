"""`diffusional doctor`: on a sound machine, with packages missing or broken, in folders that can't be written."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffusional import cli
from diffusional.cli import doctor


def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> tuple[int, dict[str, dict[str, str]], str]:
    """Exit status, findings by name, and what was printed."""
    record = tmp_path / "doctor.json"
    try:
        cli.main(["doctor", "--json", str(record)])
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    found = json.loads(record.read_text())
    assert found["works"] is (status == 0)
    return status, {one["name"]: one for one in found["findings"]}, " ".join(said.out.split())


def test_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import torch

    status, found, said = run(capsys, tmp_path)
    assert status == 0
    assert found["torch"]["said"] == torch.__version__
    assert found["python"]["said"] == ".".join(map(str, sys.version_info[:3]))
    assert set(doctor._CORE) < set(found)
    assert re.search(r"\d+ of \d+ cores, [\d.]+ of [\d.]+ GiB", found["cpu"]["said"])
    assert found["a gradient"]["state"] == "ok"
    assert str(Path.cwd()) in found["this folder"]["said"]
    assert found["processes"]["said"].startswith("one")
    assert "all essential components work" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["doctor.json"]


def test_what_is_missing_and_what_is_broken(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor.importlib.import_module

    def importing(name: str) -> Any:
        if name == "datasets":
            raise ModuleNotFoundError("No module named 'datasets'", name="datasets")
        if name == "pyarrow":
            raise OSError("libarrow.so: [bold] cannot open shared object file")
        if name == "safetensors":
            raise ImportError("undefined symbol: _ZN2at4_ops")
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", importing)
    status, found, said = run(capsys, tmp_path)
    assert status == 1
    assert found["datasets"]["state"] == found["pyarrow"]["state"] == "missing"
    assert found["datasets"]["said"].endswith('not installed. To install it: pip install "diffusional[hub]"')
    assert "OSError: libarrow.so: [bold] cannot open" in found["pyarrow"]["said"]
    assert found["safetensors"]["state"] == "broken"
    assert "ImportError: undefined symbol: _ZN2at4_ops" in found["safetensors"]["said"]
    assert "an essential component is broken" in said


def test_only_something_essential_makes_the_status(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_OPTIONAL", (("no_such_module", "nothing", "pip install nothing"),))
    status, found, _ = run(capsys, tmp_path)
    assert (status, found["no_such_module"]["state"]) == (0, "missing")


@pytest.mark.parametrize(("essential", "state"), [(True, "broken"), (False, "missing")])
def test_a_folder_that_can_not_be_written(
    essential: bool, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(**_: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refusing)
    found = doctor._folder("a folder", tmp_path / "not" / "yet", essential)
    assert (found.state, "not writable" in found.said) == (state, True)


def test_devices_are_named_and_a_driver_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda index: doctor.tempfile.TemporaryDirectory())
    properties = SimpleNamespace(name="a GPU", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert [(f.name, f.state, f.said) for f in doctor._cuda()] == [
        (f"cuda:{i}", "ok", "a GPU, 24.0 GiB, bf16") for i in range(2)
    ]

    def failing() -> list[doctor.Finding]:
        raise RuntimeError("CUDA driver\nversion is insufficient")

    (found,) = doctor._guarded("device", "cuda", failing)
    assert (found.state, found.said) == ("broken", "RuntimeError: CUDA driver version is insufficient")


def test_a_launcher_s_words(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    _, found, _ = run(capsys, tmp_path)
    assert found["processes"]["said"] == "RANK=0, WORLD_SIZE=4"
