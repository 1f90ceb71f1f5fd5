"""The manual: every page is listed, every public name is in the reference, notebooks are Markdown that GitHub shows, published numbers."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import diffusional as df
from scripts import TOOLS, tool

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = [page for page in DOCS.rglob("*.md") if page.read_text(encoding="utf-8").startswith("---\n")]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """tools/reference.py."""
    return tool("reference")


@pytest.fixture
def conf() -> Iterator[ModuleType]:
    """docs/conf.py."""
    before = list(sys.path)
    sys.path[:0] = [str(DOCS), str(TOOLS)]
    import conf

    yield conf
    sys.path[:] = before
    sys.modules.pop("conf")


def _listed() -> set[Path]:
    """The pages in the tables of contents of docs/index.md."""
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    found: set[Path] = set()
    for block in re.findall(r"^```\{toctree\}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for line in block.split("\n"):
            if line and not line.startswith(":"):
                found |= set(DOCS.glob(f"{line}.md"))
    return found


def test_every_page_is_in_a_table_of_contents() -> None:
    assert set(DOCS.rglob("*.md")) - _listed() == {DOCS / "index.md"} - _listed()


def test_every_public_name_is_in_the_reference(reference: ModuleType) -> None:
    names = reference.names((DOCS / "reference.md").read_text(encoding="utf-8"))
    assert len(names) == len(set(names)) > 60
    text = reference.expanded("- `df.evaluate`: the bound\n")
    assert [name for name in reference.public() if f"### `df.{name}`\n" not in text] == []


def test_every_entry_of_the_reference_has_text(reference: ModuleType) -> None:
    names = reference.names((DOCS / "reference.md").read_text(encoding="utf-8"))
    assert [name for name in names if len(reference.entry(name).split()) < 8] == []


def test_an_entry_has_signature_arguments_and_example(reference: ModuleType) -> None:
    text = reference.entry("evaluate")
    assert text.startswith("### `df.evaluate`\n")
    for part in (
        "df.evaluate(model, data, target_error=None,",
        "- `target_error`: the Monte Carlo",
        "\n>>> import torch\n",
    ):
        assert part in text
    ledger = reference.entry("Ledger")
    assert "- `bits_per_dim()`: Return NELBO / (D ln 2) (B,)" in ledger
    assert "- `df.information.budget(model, data," in reference.entry("information")


def test_stars_of_docstrings_are_not_emphasis(reference: ModuleType) -> None:
    assert reference.markdown("x (B, *dims), z (B, *dims).") == r"x (B, \*dims), z (B, \*dims)."
    assert reference.markdown("Rates:\n\n    a  1\n\nand `*`.") == "Rates:\n\n```text\na  1\n```\n\nand `*`."


def test_links_to_files_outside_of_the_manual_become_text(conf: ModuleType) -> None:
    source = [
        "[a](../CONTRIBUTING.md) [b](math.md#1-the-model) [c](../benchmarks/results) [d](../benchmarks/published.json)"
    ]
    conf.without_outside_links(None, "index", source)
    assert source == [
        "a (`CONTRIBUTING.md`) [b](math.md#1-the-model) c (`benchmarks/results`) [d](../benchmarks/published.json)"
    ]


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_notebooks_have_a_title_and_short_cells(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    head = text.split("---\n")[1]
    assert "file_format: mystnb" in head
    assert "language: python" in head
    cells = re.findall(r"^```\{code-cell\} python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert cells
    for cell in cells:
        compile(cell, str(page), "exec")
    assert re.search(r"^# \w", text, flags=re.MULTILINE)


def test_there_are_notebooks() -> None:
    assert {page.stem for page in NOTEBOOKS} >= {"essay", "variational-inference", "checkpoint", "own-data"}


def test_published_numbers_have_a_source_a_version_and_a_kind() -> None:
    numbers = json.loads((ROOT / "benchmarks" / "published.json").read_text(encoding="utf-8"))["numbers"]
    for one in numbers:
        assert set(one) == {"data", "model", "value", "kind", "version", "source", "checked"}
        assert all(value for key, value in one.items() if key != "checked")
        # Where the number was read, with its digits or a commit; null if nowhere.
        assert one["checked"] is None or len(one["checked"]) > 10
    text = (DOCS / "leaderboard.md").read_text(encoding="utf-8")
    assert text.count("; **not checked**") == sum(one["checked"] is None for one in numbers)
    assert {one["data"] for one in numbers} == {"CIFAR-10", "MNIST", "binary MNIST"}


def test_shards_have_the_scores_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of docs/scaling.md, for two shards; the second one twice, as after a kill."""
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (DOCS / "scaling.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert code is not None
    quick = code[1].replace("evaluations=3000", "evaluations=200").replace("visits=16", "visits=3")
    assert quick.count("=200") == quick.count("visits=3") == 1
    torch.manual_seed(0)
    world = df.exact.Gaussian(torch.zeros(2), torch.eye(2))
    process = df.GaussianDiffusion(df.schedule.log_snr_linear(-5.0, 5.0, steps=20))
    model = df.DiffusionModel(process, world.denoiser(), df.likelihood.GaussianLikelihood(df.Continuous((2,))))
    items = world.sample(9).float()
    names = {"model": model, "items": items, "reference": world.sample(200).float(), "shards": 2}
    scores = torch.zeros(9, dtype=torch.float64)
    for k in (0, 1, 1):
        exec(compile(quick, "scaling.md", "exec"), names := names | {"k": k})
        scores[k::2] = torch.as_tensor(names["result"].per_item["nelbo"])
    whole = df.evaluate(model, items, visits=3, plan=names["plan"], deterministic=True)
    assert torch.equal(scores, torch.as_tensor(whole.per_item["nelbo"]))


def test_an_unknown_name_of_the_reference_fails(reference: ModuleType) -> None:
    assert hasattr(df, "evaluate")
    with pytest.raises(AttributeError):
        reference.entry("evaluates")
