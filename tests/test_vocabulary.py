"""The vocabulary check of `make lint`: it finds planted sentences in every kind of text, and leaves plain English and quotations."""

from pathlib import Path
from types import ModuleType

import pytest

from scripts import TOOLS, tool

TOOL = TOOLS / "vocabulary.py"


@pytest.fixture(scope="module")
def vocabulary() -> ModuleType:
    return tool("vocabulary")


PLANTED = {
    "an error": ('raise ValueError("n=0 came; give at least 1")', "came", 1),
    "an f-string": ('n = 0\nraise ValueError(f"n={n} came; give at least 1")', "came", 2),
    "a part of a string": ('raise ValueError(\n    "expected one item, "\n    "and none came"\n)', "came", 2),
    "a docstring": ('def f():\n    """Return the mean.\n\n    The spread tells the error.\n    """', "tells", 4),
    "the docstring of a field": (
        'class A:\n    """A record."""\n\n    seed: int = 0\n    """Of the noise."""',
        "Of the",
        5,
    ),
    "a comment": ("n = 0  # a network knows this alone", "knows", 1),
    "the end of a sentence": ("n = 0  # it is for images alone", "alone", 1),
    "a reference in an error": ('raise ValueError("the bound of MATH (9)")', "MATH (9", 1),
}


@pytest.mark.parametrize("case", PLANTED)
def test_planted_sentences_are_found(vocabulary: ModuleType, case: str) -> None:
    source, found, line = PLANTED[case]
    first, *_ = vocabulary.findings(source, Path("a.py"))
    assert (first.found, first.line) == (found, line)
    assert first.reason


@pytest.mark.parametrize(
    "source",
    [
        'raise ValueError("expected n to be at least 1, got 0")',
        "x = 'the manual writes \"no value came\" here'",
        '"""Names such as `came` are quoted."""',
        'x = "nothing came"  # vocabulary: allow',
        "came = 1",
        'x = {"came": 1, "said": 2}',
        'def f():\n    """Return φ, MATH (10)."""',
    ],
)
def test_plain_english_names_and_quotations_pass(vocabulary: ModuleType, source: str) -> None:
    assert list(vocabulary.findings(source, Path("a.py"))) == []


def test_help_texts_have_no_references_to_formulas(vocabulary: ModuleType) -> None:
    source = 'class Command:\n    """Show the bound, MATH (9)."""'
    assert not list(vocabulary.findings(source, Path("report/a.py")))
    assert [found.found for found in vocabulary.findings(source, Path("cli/a.py"))] == ["MATH (9"]


def test_the_exit_status_reports_findings(
    vocabulary: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain.py").write_text('"""Return the mean of all items."""\n')
    assert vocabulary.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
    (tmp_path / "dialect.py").write_text('raise ValueError("no items came; give at least one")\n')
    assert vocabulary.main([str(tmp_path)]) == 1
    assert "dialect.py:1: 'came'" in capsys.readouterr().out
