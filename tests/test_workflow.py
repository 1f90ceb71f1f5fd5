"""The GitHub workflow runs commands that exist, on the versions of pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest

from scripts import tool

ROOT = Path(__file__).parents[1]
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")


def test_the_workflow_runs_commands_of_the_makefile() -> None:
    targets = re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    run = set(re.findall(r"run: make ([a-z-]+)", WORKFLOW))
    assert {"lint", "fast", "test", "mutants-changed", "mutants"} <= run <= set(targets)
    for script in re.findall(r"python (tools/\S+)", WORKFLOW):
        assert (ROOT / script).exists()


def test_the_workflow_begins_with_the_lowest_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pythons = re.findall(r'python: "([\d.]+)"', WORKFLOW)
    assert f">={pythons[0]}" == project["requires-python"]
    assert {"3.11", "3.12", "3.13"} <= set(pythons)


def test_lowest_versions_are_the_bounds() -> None:
    lowest = tool("lowest").lowest
    assert lowest(["torch>=2.6", "jaxtyping>=0.2.36", "pillow>=10"]) == [
        "torch~=2.6.0",
        "jaxtyping~=0.2.36",
        "pillow~=10.0",
    ]
    with pytest.raises(ValueError, match="NAME>=VERSION"):
        lowest(["torch"])
