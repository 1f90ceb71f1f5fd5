"""The README and the pages with Python for new users: their code runs as it stands (training cut short), and shows what it prints."""

import os
import re
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from scripts import tool

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    """tools/readme.py."""
    return tool("readme")


def _shorter(code: str, *changes: tuple[str, str]) -> str:
    """The code with less work: every change must be found in it."""
    for old, new in changes:
        assert old in code, old
        code = code.replace(old, new)
    return code


def test_the_readme_is_short_and_begins_with_code() -> None:
    assert len(README.splitlines()) < 150
    assert README.index("```python") < README.index("make demo")


def test_the_readme_shows_what_its_code_prints(readme: ModuleType) -> None:
    code, output = readme.blocks(README)
    assert len(code.splitlines()) <= 10
    quick = _shorter(code, ("steps=300", "steps=2, batch=8"), ("target_error=0.02", "target_error=0.5"))
    assert readme.form(output) == readme.form(readme.printed(quick)), "run `make readme`"


def test_another_form_is_noticed(readme: ModuleType) -> None:
    _, output = readme.blocks(README)
    assert readme.form(output) == readme.form(output.replace("1", "7"))
    assert readme.form(output) != readme.form(output.replace("prior", "top"))
    assert readme.form(output) != readme.form(output.replace(" network evaluations", ""))


def _run(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *changes: tuple[str, str], first: int = 0) -> None:
    """Run the Python blocks of a page from the `first` on, one after the other, in an empty folder."""
    monkeypatch.chdir(folder)
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    code = _shorter("".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[first:]), *changes)
    exec(compile(code, page, "exec"), {"__name__": "page"})


def test_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run("networks.md", tmp_path, monkeypatch, ("range(2000)", "range(2)"), ("target_error=0.05", "target_error=20.0"))


def test_data_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).integers(0, 17, (500, 1, 8, 8), dtype=np.uint8))
    short = (("Config(steps=200)", "Config(steps=2, batch=8)"), ("target_error=0.05", "target_error=2.0"))
    _run("data.md", tmp_path, monkeypatch, *short)


def test_make_help_lists_every_command() -> None:
    targets = re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    # `make test` hands its own flags down, among them one that prints the directory.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    told = subprocess.run(
        ["make", "help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[1] for line in told.splitlines()] == targets


def test_every_public_name_loads() -> None:
    import diffusional as df

    for name in dir(df):
        assert getattr(df, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = df.nothing  # type: ignore[attr-defined]
