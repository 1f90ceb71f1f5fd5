"""`make fast` runs the tests of tests/fast.txt."""

from pathlib import Path

import diffusional

ROOT = Path(__file__).parents[1]
LISTED = [
    line for line in (ROOT / "tests" / "fast.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
]


def test_make_fast_has_tests_of_every_package() -> None:
    package = Path(diffusional.__file__).parent
    names = [path.name for path in package.iterdir() if (path / "__init__.py").exists()]
    names += [
        path.stem.removeprefix("test_") for path in package.glob("*.py") if (ROOT / f"tests/test_{path.name}").exists()
    ]
    assert len(names) > 20
    missing = [
        name
        for name in names
        if not any(line.startswith((f"tests/{name}/", f"tests/test_{name}.py")) for line in LISTED)
    ]
    assert missing == []


def test_what_make_fast_runs_exists() -> None:
    for line in LISTED:
        file, _, test = line.partition("::")
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8") if test else (ROOT / file).exists(), line
    assert sorted(set(LISTED)) == LISTED
