"""Print the lower bounds of the dependencies in pyproject.toml as constraints for pip: `torch>=2.6` becomes `torch~=2.6.0`.

    python tools/lowest.py > lowest.txt && pip install -c lowest.txt -e ".[dev]"

Bug fixes of the lowest version are allowed. Tools of development (the extra `dev`) stay at their newest versions.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def lowest(requirements: list[str]) -> list[str]:
    """Return a constraint for every requirement with a lower bound.

    >>> lowest(["torch>=2.6", "jaxtyping>=0.2.36", "pillow>=10"])
    ['torch~=2.6.0', 'jaxtyping~=0.2.36', 'pillow~=10.0']
    """
    found = []
    for requirement in requirements:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", requirement)
        if match is None:
            raise ValueError(f"expected NAME>=VERSION, got {requirement!r}")
        name, version = match.groups()
        parts = version.split(".")
        found.append(f"{name}~={'.'.join([*parts, '0'] if len(parts) < 3 else parts)}")
    return found


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    print("\n".join(lowest(project["dependencies"] + project["optional-dependencies"]["hub"])))
