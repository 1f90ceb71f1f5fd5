"""The documentation: links lead somewhere, lines fit, and every page of results is listed with its command and data."""

import doctest
import importlib
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from diffusional.cli.parse import parse
from scripts import TOOLS, tool

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")])
PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]
WIDTH = 130
_CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def _anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _CODE.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def _broken(page: Path, text: str) -> list[str]:
    """The links of a page to files or headings that do not exist."""
    broken = []
    for link in _LINK.findall(_CODE.sub("", text)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in _anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


def _long(text: str) -> list[str]:
    """Lines longer than WIDTH, except rows of tables and lines with a link or an image."""
    lines = text.splitlines()
    return [line for line in lines if len(line) > WIDTH and not line.lstrip().startswith("|") and "](" not in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert _broken(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_fit(page: Path) -> None:
    assert _long(page.read_text(encoding="utf-8")) == []


def test_a_long_line_is_found() -> None:
    long = "word " * 30
    assert _long(f"{long}\n| {long} |\n[link](math.md) {long}\nshort") == [long.rstrip() + " "]


def test_a_broken_link_is_found() -> None:
    page = ROOT / "docs" / "new.md"
    text = "# A new page\n[a](math.md#2-the-bound) [b](#a-new-page) [c](nowhere.md) [d](math.md#nothing) [e](https://example.org)"
    assert _broken(page, text.replace("(#a-new-page)", "(math.md)")) == ["nowhere.md", "math.md#nothing"]
    assert _anchors("# β_t, in *one* line: x(2)\n```\n# no heading\n```") == {"β_t-in-one-line-x2"}


def test_every_page_of_results_is_listed_and_says_how_it_was_measured() -> None:
    folder = ROOT / "docs" / "results"
    index = (folder / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in folder.glob("*.md")} - {"index.md"}
    assert set(re.findall(r"\]\(([\w-]+\.md)\) \|$", index, flags=re.MULTILINE)) == pages
    for name in pages:
        text = (folder / name).read_text(encoding="utf-8")
        assert re.match(r"# .*\?\n\n\*\*Answer\.\*\* ", text), f"{name}: expected a question as title, then **Answer.**"
        assert "\n## How it was measured\n" in text, f"{name}: expected a section 'How it was measured'"
        assert "benchmarks/results/" in text, f"{name}: expected a link to its JSON in benchmarks/results"


def test_numbers_of_the_index_are_those_of_its_pages() -> None:
    """Every number that docs/results/index.md claims is on the page that it links to."""
    folder, number = ROOT / "docs" / "results", r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?!\w)"
    row = re.compile(r"^\| [^|]* \| ([^|]*) \| `[^|]*` \| \[[^]]*\]\(([\w-]+\.md)\) \|$", flags=re.MULTILINE)
    claims = row.findall((folder / "index.md").read_text(encoding="utf-8"))
    assert len(claims) == len(list(folder.glob("*.md"))) - 1
    for claim, page in claims:
        found = set(re.findall(number, (folder / page).read_text(encoding="utf-8")))
        assert set(re.findall(number, claim)) <= found, f"{page} does not have every number of: {claim}"


def test_every_record_of_results_has_a_page() -> None:
    """Every JSON file of benchmarks/results is linked from a page."""
    pages = [*ROOT.glob("docs/results/*.md"), *ROOT.glob("docs/audit/*.md")]
    linked = " ".join(page.read_text(encoding="utf-8") for page in pages)
    names = {path.name for path in ROOT.glob("benchmarks/results/*.json")}
    assert {name for name in names if f"benchmarks/results/{name})" not in linked} == set()


def test_the_layers_of_the_architecture_are_those_that_are_tested() -> None:
    """docs/architecture.md lists the modules in the order that tests/test_layers.py enforces."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = re.findall(
        r"^\| `([\w.]+)` \|", text.partition("## The layers")[2].partition("\n## ")[0], flags=re.MULTILINE
    )
    floors = re.search(
        r"^FLOORS = \((.*?)^\)",
        (ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    assert floors is not None
    source = ROOT / "src" / "diffusional"
    paths = {name: source.joinpath(*name.split(".")) for name in re.findall(r'"([\w.]+)"', floors[1])}
    there = [name for name, path in paths.items() if path.with_suffix(".py").exists() or path.is_dir()]
    assert table == there, (
        "change the table in docs/architecture.md, section 'The layers', to these modules in this order"
    )


def _commands() -> list[str]:
    """The `diffusional` commands of all pages, without comments, redirections and lines that leave something out."""
    found: dict[str, None] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = re.findall(r"^ *(diffusional .*)$", text, flags=re.MULTILINE)
        lines += re.findall(r"^\| [^|]* \| `(diffusional .*?)` \|", text, flags=re.MULTILINE)
        for line in lines:
            command = re.split(r" +#| > ", line)[0].strip()
            if not re.search(r"…|\||\b[A-Z]{3,}\b|`", command):
                found[command] = None
    return list(found)


@pytest.mark.parametrize("line", _commands())
def test_commands_parse(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("steps = 7\n", encoding="utf-8")
    program, *args = shlex.split(line)
    assert program == "diffusional"
    for run in (arg for arg in args if arg.startswith("runs/")):
        (tmp_path / run).mkdir(parents=True, exist_ok=True)
        (tmp_path / run / "config.json").write_text("{}", encoding="utf-8")
    assert type(parse(args)).__name__.lower() == args[0]


def test_there_are_commands_to_check() -> None:
    assert len(_commands()) > 60


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return tool("results")


def test_tables_of_results_are_those_of_the_data(results: ModuleType) -> None:
    found = set()
    for page in results.pages():
        text = page.read_text(encoding="utf-8")
        found |= set(re.findall(r"<!-- table: (\w+) -->", text))
        assert text == results.written(text), f"{page.name} differs from its data: run `make results`"
    assert found == set(results.TABLES)


# The tables of docs/results that no benchmark writes: page and first column of the header.
_BY_HAND = [
    ("digits.md", "recipe"),  # single runs on the validation split, which were not recorded
    ("essay-chain.md", "schedule, T = 5"),  # likewise
    *[("index.md", "claim")] * 5,
    ("systems.md", "system"),  # what the systems are
]


def test_other_tables_of_results_are_not_measurements_with_data() -> None:
    """A new table is written by a function of tools/result_tables, or is listed here."""
    without = re.compile(r"(?<!-->\n)\n\| *([^|\n]*?) *\|[^\n]*\n\|---")
    pages = sorted(ROOT.glob("docs/results/*.md"))
    assert [
        (page.name, name) for page in pages for name in without.findall(page.read_text(encoding="utf-8"))
    ] == _BY_HAND


def test_a_table_that_differs_from_its_data_is_noticed(results: ModuleType) -> None:
    text = (ROOT / "docs" / "results" / "systems.md").read_text(encoding="utf-8")
    assert results.written(text.replace("1.966 ± 0.013", "1.965 ± 0.013")) == text


@pytest.mark.parametrize("name", ["result_tables.common", "result_tables.models", "result_figures.common"])
def test_examples_of_the_tables_and_figures(results: ModuleType, name: str) -> None:
    module = importlib.import_module(name)
    assert (result := doctest.testmod(module)).attempted > 0
    assert result.failed == 0
