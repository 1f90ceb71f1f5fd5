"""docs/recipes.md: its blocks are applied to a copy of the tree, as a contributor would, and its commands are run there."""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from battery import HANGS, environment

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "recipes.md"
_BLOCK = re.compile(r"```(python|diff|sh)\n(.*?)```", re.DOTALL)
_ROW = re.compile(r"(?P<file>\S+), a row of (?P<table>\w+)$")


def _replaced(text: str, old: str, new: str, where: str) -> str:
    assert text.count(old) == 1, f"{where}: expected these lines once, found {text.count(old)} times:\n{old}"
    return text.replace(old, new)


def apply(kind: str, block: str, root: Path) -> None:
    """Apply one block of the page to the tree at `root`: a diff, a row of a table, or code for the end of a file or a new file."""
    header, _, body = block.partition("\n")
    assert header.startswith("# "), f"expected the file of the block in its first line, got {header!r}"
    where = header.removeprefix("# ")
    if kind == "diff":
        path, lines = root / where, body.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        path.write_text(_replaced(path.read_text(encoding="utf-8"), old, new, where), encoding="utf-8")
    elif row := _ROW.match(where):
        path = root / row["file"]
        text = path.read_text(encoding="utf-8")
        (opening,) = re.findall(rf"^{row['table']}\b.* = {{\n", text, flags=re.MULTILINE)
        path.write_text(_replaced(text, opening, opening + body, where), encoding="utf-8")
    else:
        name, place = where.split(", ")
        path = root / name
        assert place == ("at the end" if path.exists() else "a new file"), header
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n\n{body}" if place == "at the end" else body)


def recipes() -> dict[str, list[tuple[str, str]]]:
    """The blocks of every recipe by its title, each with its language."""
    _, *sections = PAGE.read_text(encoding="utf-8").split("\n## ")
    return {section.partition("\n")[0]: _BLOCK.findall(section) for section in sections}


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with all recipes applied."""
    root = tmp_path_factory.mktemp("recipes") / "tree"
    ignored = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for folder in ("src", "tests", "docs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / file, root / file)
    for blocks in recipes().values():
        for kind, block in blocks:
            if kind != "sh":
                apply(kind, block, root)
    return root


# The layers and the doctests of the new code, beside the tests that the recipes name.
ALSO = {
    "tests/test_layers.py": "floors or circle",
    "src/diffusional/schedule.py": "tangent",
    "src/diffusional/models/likelihood.py": "LaplaceLikelihood",
    "src/diffusional/random_walk.py": "RandomWalk",
    "src/diffusional/models/walk.py": "models.walk",
}
# What shows that a recipe's tests have run: words of their ids, with the least number of tests.
RUN = {
    "tangent": 10,
    "Laplace": 9,
    "random walk": 12,
    "test_walk": 1,
    "test_tensors": 2,
    "C18": 2,
    "Tangent": 1,
    "models.walk": 1,
}


@pytest.fixture(scope="module")
def passed(changed: Path) -> list[str]:
    """The ids of the tests that pass in the changed tree: those of all commands of the page, in one process."""
    files, words = list(ALSO), list(ALSO.values())
    for kind, block in itertools.chain(*recipes().values()):
        for line in block.splitlines() if kind == "sh" else []:
            python, *options, file = shlex.split(line)[:5]
            assert [python, *options] == ["python", "-m", "pytest", "-q"]
            files.append(file)
            words.append(shlex.split(line)[6] if " -k " in line else Path(file).stem)
    chosen = " or ".join(f"({word})" for word in words)
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *dict.fromkeys(files), "-k", chosen]
    env = environment() | {"PYTHONPATH": str(changed / "src")}
    done = subprocess.run(command, cwd=changed, env=env, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stdout[-6000:]
    return re.findall(r"^(\S+::.*?) PASSED", done.stdout, flags=re.MULTILINE)


def test_every_recipe_has_code_and_a_test_to_run() -> None:
    found = recipes()
    parts = ("schedule", "likelihood", "forward process", "model", "data format", "claim")
    assert list(found) == [f"Add a {part}" for part in parts]
    for title, blocks in found.items():
        assert {"python", "sh"} <= {kind for kind, _ in blocks}, title


def test_the_tests_of_all_recipes_pass(passed: list[str]) -> None:
    assert {word: least for word, least in RUN.items() if sum(word in name for name in passed) < least} == {}


def test_a_recipe_that_no_longer_fits_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("ROWS: dict = {\n}\nx = 1\n", encoding="utf-8")
    apply("diff", "# a.py\n-x = 1\n+x = 2\n", tmp_path)
    apply("python", "# a.py, a row of ROWS\n    1: 2,\n", tmp_path)
    assert (tmp_path / "a.py").read_text(encoding="utf-8") == "ROWS: dict = {\n    1: 2,\n}\nx = 2\n"
    with pytest.raises(AssertionError, match=r"a\.py.*once"):
        apply("diff", "# a.py\n-x = 1\n+x = 2\n", tmp_path)
    with pytest.raises(AssertionError, match="new file"):
        apply("python", "# a.py, a new file\ny = 1\n", tmp_path)
