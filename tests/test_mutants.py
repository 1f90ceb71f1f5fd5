"""The tables of planted faults, and the choice of those that a change concerns."""

import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from scripts import TOOLS, tool

ROOT = TOOLS.parent


@pytest.fixture
def mutants(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return tool("mutants")


def test_every_table_has_the_faults_of_its_module_or_package(mutants: ModuleType) -> None:
    from faults import tables

    for table, faults in tables().items():
        assert {fault.file.partition("/")[0].removesuffix(".py") for fault in faults} == {table}
    assert len({(fault.file, fault.what) for fault in mutants.FAULTS}) == len(mutants.FAULTS)


def test_every_fault_fits_the_source_and_its_tests_have_a_file(mutants: ModuleType) -> None:
    texts = {fault.file: (ROOT / mutants.PACKAGE / fault.file).read_text(encoding="utf-8") for fault in mutants.FAULTS}
    assert [fault for fault in mutants.FAULTS if texts[fault.file].count(fault.old) != 1] == []
    files = {test.partition("::")[0] for fault in mutants.FAULTS for test in fault.tests}
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_faults_that_a_change_concerns_come_first(mutants: ModuleType) -> None:
    faults = [
        mutants.Fault(f"{name}.py", name, "old", "new", (f"tests/test_{name}.py::test_a",)) for name in "abcdefghij"
    ]
    files = {"src/diffusional/c.py", "tests/test_d.py", "src/diffusional/none.py"}
    placed, concerned = mutants.order(faults, files, '        "a fault that was new",\n        "j",', "draw")
    assert {fault.what for fault in placed[:2]} == {"c", "j"}
    assert [fault.what for fault in placed[2:concerned]] == ["d"]
    assert sorted(fault.what for fault in placed) == list("abcdefghij")
    assert (placed, concerned) == mutants.order(faults[::-1], files, '"j"', "draw")
    first = {mutants.order(faults, set(), "", str(draw))[0][0].what for draw in range(100)}
    assert first == set("abcdefghij")  # over many commits, every fault has its turn


def git(root: Path, *arguments: str) -> str:
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(root), *author, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit(root: Path, file: str, text: str) -> str:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text, encoding="utf-8")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", file)
    return git(root, "rev-parse", "HEAD")


def test_changes_are_those_since_the_branch_left_main(
    mutants: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    git(tmp_path, "init", "-q", "-b", "main", str(one))
    base = commit(one, "a.py", "1\n")
    git(tmp_path, "clone", "-q", str(one), str(two))
    monkeypatch.setattr(mutants, "ROOT", two)
    assert mutants.base_commit() is None  # main itself
    with pytest.raises(ValueError, match="--number"):
        mutants.chosen(mutants.FAULTS, "", None)
    assert len(mutants.chosen(mutants.FAULTS, "", 7)) == 7

    git(two, "checkout", "-q", "-b", "mine")
    commit(two, "src/diffusional/ledger.py", "1\n")
    assert mutants.base_commit() == base
    commit(two, "tools/faults/ledger.py", 'new = "a new fault"\n')
    (two / "tests").mkdir()
    (two / "tests" / "test_new.py").write_text("", encoding="utf-8")  # neither committed nor added
    files, added = mutants.changed_since(base)
    assert files == {"src/diffusional/ledger.py", "tools/faults/ledger.py", "tests/test_new.py"}
    assert '"a new fault"' in added
    assert {fault.file for fault in mutants.chosen(mutants.FAULTS, "", None)} == {"ledger.py"}
    assert mutants.chosen(mutants.FAULTS, "HEAD", None) == []
    with pytest.raises(ValueError, match="--changed nowhere"):
        mutants.chosen(mutants.FAULTS, "nowhere", None)
