"""The HTML report: structure, order and numbers, without a browser."""

import itertools
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from diffusional.errors import DiffusionalError
from diffusional.evaluation import Comparison, Evaluation
from diffusional.evaluation.result import LevelCosts
from diffusional.report import bands
from diffusional.report import page as pages
from diffusional.report.page import page
from diffusional.report.subject import Samples, Subject
from diffusional.report.texts import mask_bars
from report.pages import (
    DATA,
    comparison,
    composite,
    continuations,
    density,
    full,
    images,
    masked,
    nats,
    prompted,
    table,
    texts,
)

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Tree(HTMLParser):
    """All elements of a page in order, with their attributes, their parents' names and their text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[dict] = []
        self.open: list[dict] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        element = {
            "tag": tag,
            "attrs": dict(attrs),
            "parents": [one["tag"] for one in self.open],
            "text": "",
            "in": list(self.open),
        }
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def all(self, *tags: str) -> list[dict]:
        return [one for one in self.elements if one["tag"] in tags]

    def rows(self, caption: str) -> list[list[str]]:
        """The cells of the table with this caption."""
        found = next(
            one
            for one in self.all("table")
            if any(c["text"] == caption and one in c["in"] for c in self.all("caption"))
        )
        rows = [one for one in self.all("tr") if found in one["in"]]
        return [[c["text"] for c in self.all("th", "td") if row in c["in"]] for row in rows]


PAGES = {
    "full": lambda: page([full()]),
    "several": lambda: page([full(), full("runs/b", 84.0)], [comparison()]),
    "composite": lambda: page([Subject("runs/c", composite())]),
    "table": lambda: page([table()]),
    "texts": lambda: page([texts()]),
    "prompts": lambda: page([prompted()]),
    "not evaluated": lambda: page([Subject("runs/new")]),
}


@pytest.fixture(scope="module", params=list(PAGES))
def text(request: pytest.FixtureRequest) -> str:
    return PAGES[request.param]()


def test_structure(text: str) -> None:
    tree = Tree(text)
    assert text.startswith("<!doctype html>")
    for tag in ("h1", "main", "nav", "header", "footer", "title"):
        assert len(tree.all(tag)) == 1 or tag == "title", tag
    levels = [int(one["tag"][1]) for one in tree.all("h1", "h2", "h3", "h4")]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels)), levels
    first = tree.all("a")[0]
    assert (first["attrs"]["class"], first["attrs"]["href"]) == ("skip", "#main")
    ids = [one["attrs"]["id"] for one in tree.elements if "id" in one["attrs"]]
    assert len(ids) == len(set(ids))
    for link in tree.all("a"):
        assert link["attrs"]["href"][1:] in ids
    for element in tree.elements:
        for name in element["attrs"].get("aria-labelledby", "").split():
            assert name in ids


def test_tables_pictures_and_regions_are_accessible(text: str) -> None:
    tree = Tree(text)
    for found in tree.all("table"):
        assert sum(found in one["in"] for one in tree.all("caption")) == 1
    assert all("scope" in one["attrs"] for one in tree.all("th"))
    assert all(one["attrs"].get("alt") for one in tree.all("img"))
    for found in tree.all("svg"):
        inside = {one["tag"] for one in tree.elements if found in one["in"]}
        assert found["attrs"].get("aria-hidden") == "true" or {"title", "desc"} <= inside
    regions = [one for one in tree.elements if "scroll" in one["attrs"].get("class", "").split()]
    assert all(one["attrs"]["tabindex"] == "0" and one["attrs"]["aria-label"] for one in regions)
    assert all(any(region in one["in"] for region in regions) for one in tree.all("table", "pre"))


def test_nothing_is_requested_or_run(text: str) -> None:
    tree = Tree(text)
    assert tree.all("script", "iframe", "object", "base") == []
    assert not [name for one in tree.elements for name in one["attrs"] if name.startswith("on")]
    for one in tree.elements:
        for name in ("src", "href", "srcset", "action"):
            value = one["attrs"].get(name, "#")
            assert value.startswith(("#", "data:")), value
    assert "url(" not in text
    assert "@import" not in text


def test_the_order_of_the_sections() -> None:
    names = [one["text"] for one in Tree(PAGES["several"]()).all("h2")]
    assert names == [
        *("Caveats", "The numbers", "Differences", "Where the bits go", "Cost by noise level"),
        *("Training", "Samples", "Items", "How to reproduce", "Words"),
    ]


def test_the_number_is_that_of_the_record_beside_baselines() -> None:
    tree = Tree(page([full()]))
    bits = 64 * math.log(2)
    big = next(one for one in tree.elements if one["attrs"].get("class") == "big")["text"]
    assert big.split() == [f"{80 / bits:.4f}", "±", f"{0.2 / bits:.4f}", "bits/dim", "estimated", "upper", "bound"]
    rows = tree.rows("Models and baselines on the same items, the best first")
    assert [row[0] for row in rows[1:]] == ["runs/a", "independent positions", "equally likely levels"]
    assert rows[1][1:] == [f"{80 / bits:.4f}", f"{0.2 / bits:.4f}", "0.011", "estimated upper bound"]
    assert rows[2][1] == f"{102 / bits:.4f}"
    assert rows[3][1:] == ["4.0875", "0", "0", "exact"]
    ledger = tree.rows("The ledger of runs/a")
    assert [row[0] for row in ledger[1:]] == ["reconstruction", "kl", "prior", "NELBO"]
    assert ledger[2][4:6] == ["93.8 %", "75.00"]


def test_a_density_is_reported_in_nats() -> None:
    text = page([table()])
    tree = Tree(text)
    big = next(one for one in tree.elements if one["attrs"].get("class") == "big")["text"]
    assert big.split()[:4] == ["−2.500", "±", "0.010", "nats"]
    assert "Where the nats go" in [one["text"] for one in tree.all("h2")]
    assert "equally likely levels" not in text
    assert "95 % Monte Carlo interval −2.520 to −2.480 nats" in text
    assert [one["text"] for one in tree.all("h3")] == ["height", "width", "a<b"]


def test_the_waterfall_adds_up_with_the_levels_in_bands() -> None:
    rows = Tree(page([full()])).rows("Where the bits of runs/a go")
    assert [row[0] for row in rows[1:]] == [
        "reconstruction",
        *(f"kl, log-SNR {band}" for band in ("8 to 4", "4 to 0", "0 to −4", "−4 to −8")),
        "prior",
        "NELBO",
    ]
    values = [float(row[1].replace("−", "-")) for row in rows[1:]]
    assert sum(values[:-1]) == pytest.approx(values[-1], abs=3e-3)
    assert sum(values[:-1]) == pytest.approx(80 / (64 * math.log(2)), abs=3e-3)


@pytest.mark.parametrize(("difference", "tagged"), [(-4.0, True), (0.1, False), (0.0, False)])
def test_a_run_is_tagged_as_the_lowest_only_if_the_difference_is_sure(difference: float, tagged: bool) -> None:
    text = page([full("runs/a", 80.0), full("runs/b", 80.0 - difference)], [comparison(difference)])
    assert ('<span class="tag">lowest</span>' in text) == tagged
    assert ("Neither has the lower bound" in text) != tagged


@pytest.mark.parametrize(("total", "named"), [(80.0, False), (102.0, True), (103.0, True)])
def test_a_bound_that_is_not_better_than_a_baseline_is_a_caveat(total: float, named: bool) -> None:
    """That of the baseline is 102 nats, of 64 dimensions."""
    text = page([full(total=total)])
    assert ("The bound is not better than a simple baseline, independent positions (" in text) == named
    if total == 103.0:
        assert "(2.3218 and 2.2993 bits/dim)." in text


def test_the_stages_of_a_composite() -> None:
    tree = Tree(page([Subject("runs/c", composite())]))
    stages = [one["text"] for one in tree.all("th") if one["attrs"]["scope"] == "rowgroup"]
    assert stages == ["stage base", "stage upsampler"]
    names = [row[0] for row in tree.rows("Where the bits of runs/c go")[1:]]
    assert names == [
        "base.reconstruction",
        *("base.kl, log-SNR 6 to 0", "base.kl, log-SNR 0 to −6", "base.prior"),
        *("upsampler.kl, log-SNR 6 to 0", "upsampler.kl, log-SNR 0 to −6", "upsampler.prior", "NELBO"),
    ]
    titles = [one["text"] for one in tree.all("title")]
    assert {"Cost of the noise levels, base.kl", "Cost of the noise levels, upsampler.kl"} <= set(titles)


def test_information_and_gap() -> None:
    def row(name: str, cost: float, information: float) -> dict:
        values = {"cost": cost, "information": information, "gap": cost - information}
        return {"name": name} | {key: {"value": value, "error": 0.0} for key, value in values.items()}

    budget = {
        "rows": [row("KL_1", 70.0, 60.0), row("prior", 10.0, 10.0)],
        "total": row("NELBO", 80.0, 70.0),
        "relative_to": "",
    }
    tree = Tree(page([replace(full(), budget=budget)]))
    assert tree.rows("Information and gap of runs/a")[1] == ["KL_1", "70.0000", "60.0000", "10.0000"]
    bits = 64 * math.log(2)
    assert tree.rows("Where the bits of runs/a go")[1][4:] == [f"{60 / bits:.4f}", f"{10 / bits:.4f}"]


def test_caveats_come_first() -> None:
    result = replace(
        images(300.0, warnings=["3 items are also training items"], split="train"),
        caveats=("the error rests on few draws",),
        kind="estimate",
        reached=False,
    )
    text = page([Subject("runs/bad", result, notes=["Samples are missing: none."])])
    shown = text[text.index('id="caveats"') : text.index('id="number"')]
    for part in (
        "The error rests on few draws.",
        "estimate, and not a bound",
        "those that the model was trained on",
        "3 items are also training items.",
        "equally likely levels",
        "Samples are missing: none.",
    ):
        assert part in shown
    shown = page([full()])
    shown = shown[shown.index('id="caveats"') : shown.index('id="number"')]
    assert "<p>No warnings.</p>" in shown
    # What no error covers is stated with and without warnings.
    assert "how much other trainings (seeds) of the same model differ" in shown
    assert "how much other trainings (seeds)" in text
    assert "errors do not cover" not in page([Subject("runs/new")])
    assert "<code>diffusional evaluate runs/new</code>" in page([Subject("runs/new")])


def test_which_model_is_better() -> None:
    text = page([full(), full("runs/b", 84.0)], [comparison(-4.0)])
    assert "runs/a has the lower bound, by 0.0902 ± 0.0023 bits/dim on these 9 items" in text
    # 4 nats ± 0.1, and ± 0.3 over items.
    assert "The difference is 40.0 standard errors from 0 on these items, and 12.6 with the error over items." in text
    rows = Tree(text).rows("Differences in bits/dim, with the 95 % Monte Carlo interval")
    assert rows[1] == ["runs/a − runs/b", "−0.0902", "0.0023", "0.0068", "−0.0946 to −0.0858", "−4.00 ± 0.10", "yes"]
    assert "In nats, runs/a − runs/b is −4.00 ± 0.10." in text
    other = page([full(), full("runs/b", 76.0)], [comparison(4.0)])
    assert "runs/b has the lower bound, by 0.0902" in other
    assert "is better than" not in text
    assert "from which no higher probability of the items follows" in text
    assert "estimated anew" in text
    same = page([full(), full("runs/b", 80.1)], [comparison(-0.1)])
    assert "Neither has the lower bound as far as this evaluation shows" in same


def test_only_exact_numbers_and_estimates_speak_of_probabilities() -> None:
    def of(first: str, second: str) -> str:
        one = comparison(-4.0)
        one = replace(one, a=replace(one.a, kind=first), b=replace(one.b, kind=second))
        return page([replace(full(), evaluation=one.a), replace(full("runs/b"), evaluation=one.b)], [one])

    text = of("exact", "exact")
    assert "runs/a has the lower cost, by 0.0902" in text
    assert "the lower cost: it gives the items a higher probability." in text
    assert "a higher probability, as far as the estimates are right." in of("estimate", "estimate")
    text = of("bound", "exact")
    assert "runs/a has the lower number, by 0.0902" in text
    assert "it gives the items" not in text


def test_settings_that_differ_weights_and_steps_are_near_the_top() -> None:
    def run(name: str, **settings: object) -> Subject:
        config = {"model": {"widths": [8, 16], "kind": "diffusion"}, "seed": 7} | settings
        return replace(full(name), config=config, weights=1234)

    a, b = run("runs/a"), run("runs/b", model={"widths": [8, 48], "kind": "diffusion"}, init=None)
    text = page([a, b])
    assert Tree(text).rows("Settings in which the runs differ") == [
        ["setting", "runs/a", "runs/b"],
        ["weights", "1,234", "1,234"],
        ["trained for, steps", "90", "90"],
        ["model.widths", "8, 16", "8, 48"],
        ["init", "", "none"],
    ]
    assert text.index("Settings in which") < text.index('id="costs"')
    assert "are the same" in page([a, replace(a, name="runs/b")])
    assert "Settings in which" not in page([a])
    assert "Settings in which" not in page([a, Subject("b.json", images(84.0))])


def test_a_reconstruction_of_zero_is_explained() -> None:
    terms = images().terms
    none = replace(images(), terms={**terms, "reconstruction": replace(terms["reconstruction"], value=1e-5, error=0.0)})
    assert "reconstruction: below 1e−4 bits/dim, as the decoder finds the levels" in page([Subject("a", none)])
    assert "below 1e−4" not in page([full()])


def test_a_single_validation_is_no_curve() -> None:
    lines = [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.5}, {"step": 20, "validation": 1.4}]
    found = replace(full(), metrics=lines)
    assert "Training loss" in page([found])
    assert "Validation bound" not in page([found])
    assert "Validation bound" in page([replace(found, metrics=[*lines, {"step": 30, "validation": 1.3}])])


def test_separate_evaluations_have_a_larger_error_and_a_caveat() -> None:
    text = page([full(), full("runs/b", 84.0)])
    rows = Tree(text).rows("Differences in bits/dim, with the 95 % Monte Carlo interval")
    error = math.hypot(0.2, 0.2) / (64 * math.log(2))
    assert rows[1][2:3] + rows[1][6:] == [f"{error:.4f}", "no"]
    assert "estimated anew" not in text
    assert "diffusional evaluate runs/a runs/b" in text[: text.index('id="number"')]


def test_different_data_are_not_compared() -> None:
    other = replace(images(), provenance={"data_sha256": "x" * 64, "levels": 17})
    text = page([full(), Subject("runs/b", other)])
    assert "cannot be compared with one another" in text[: text.index('id="number"')]
    assert 'id="differences"' not in text
    assert "has the lower" not in text


def test_names_are_escaped() -> None:
    name = '<script>alert("x")</script>&'
    result = images(warnings=["<b>warning</b>"])
    text = page([replace(full(name), evaluation=result, config={"name": "</pre><i>"})])
    assert "<script" not in text
    assert "<b>" not in text
    assert "<i>" not in text
    assert Tree(text).all("h1")[0]["text"] == f"Report: {name}"


def test_items_are_listed_by_name_with_their_costs_and_maps() -> None:
    text = page([full()])
    tree = Tree(text)
    cards = [one["text"] for one in tree.all("li") if one["parents"][-1] == "ol"]
    assert "hard.png" in cards[0]
    assert f"{120 / (64 * math.log(2)):.3f} ± 0.011 bits/dim" in cards[0]
    assert "easy.png" in cards[1]
    assert [one["attrs"]["alt"] for one in tree.all("img")][-4:] == [
        *("Item hard.png", "Cost map of hard.png", "Item easy.png", "Cost map of easy.png")
    ]
    assert "40 of 60 items" in text
    assert "Beside an image is its cost map" in text
    assert "Negative values are noise of the estimate." in text
    assert "42.0 % of reference items cost less" in cards[0]
    items = full().items
    assert items is not None
    text = page([replace(full(), items=replace(items, reference="the first 40 of the run's 50 validation items"))])
    assert "42.0 % of the validation items cost less" in text
    assert "Percentages are of the first 40 of the run&#39;s 50 validation items." in text


def test_the_words_and_the_errors_are_explained_where_the_numbers_are() -> None:
    text = page([full()])
    words = [one["text"] for one in Tree(text).all("dt") if any(p["attrs"].get("class") == "words" for p in one["in"])]
    assert {"NELBO", "Reconstruction", "Kl", "Prior", "Latent z_t, T", "Log-SNR", "Degrees of freedom", "Plan"} <= set(
        words
    )
    assert "Nat, bits/dim, D" in words
    shown = text[text.index('id="number"') : text.index('id="costs"')]
    assert "√(MC² + items²). Intervals are 95 %." in shown
    assert 'href="#terms"' in shown


def test_how_to_reproduce() -> None:
    text = page([full()])
    shown = text[text.index('id="reproduce"') :]
    for part in (
        "diffusional evaluate runs/a --seed 3",
        "w" * 64,
        "d" * 64,
        "t" * 64,
        "torch 2.6",
        "&#34;seed&#34;: 7",
        "diffusional train runs/a",
    ):
        assert part in shown
    assert "/usr/bin" not in shown
    text = page([replace(full(), drawn="This report drew 3 samples.", more="diffusional report runs/a --samples 64")])
    assert "<pre>diffusional report runs/a --samples 64</pre>" in text


def test_the_same_records_give_the_same_bytes() -> None:
    assert page([full()]) == page([full()])


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DiffusionalError, match=r"at least one run.*runs/a, runs/a"):
        page([full(), full()])
    with pytest.raises(DiffusionalError, match="at least one run"):
        page([])
    monkeypatch.setattr(pages, "MOST", 10_000)
    with pytest.raises(DiffusionalError, match=r"at most 10,000 bytes"):
        page([full()])


def test_large_pictures_stay_small() -> None:
    rng = np.random.default_rng(0)
    samples = Samples("Large.", rng.random((4, 3, 512, 512)))
    assert len(page([Subject("a", density(), samples=samples)]).encode()) < 300_000


def test_errors_that_are_not_known() -> None:
    one = replace(images(), nelbo=replace(images().nelbo, item_error=math.nan))
    text = page(
        [Subject("a", one), Subject("b", replace(one, levels_error=torch.full((4,), math.nan, dtype=torch.float64)))]
    )
    assert ">nan<" not in text
    assert "± nan" not in text


def test_a_text_has_its_units_and_its_costs_by_masked_positions() -> None:
    tree = Tree(page([texts()]))
    assert tree.rows("The bound of hf:a/b in the units of a text") == [
        ["unit", "value", "± MC", "of"],
        ["bits per token", "3.000", "0.010", "43 tokens"],
        ["bits per character", "1.500", "0.010", "86 characters"],
        ["bits per byte", "1.250", "0.010", "100 bytes"],
        ["perplexity per token", "8.000", "0.055", ""],
    ]
    # 9 blocks of five.
    assert "2 positions of padding count as cost" in tree.all("main")[0]["text"]
    rows = tree.rows("Where the bits of hf:a/b go")[1:]
    assert [row[0] for row in rows] == ["1 to 2 masked", "3 to 4 masked", "5 masked", "NELBO"]
    values = [float(row[1]) * 5 * math.log(2) for row in rows]
    assert values == pytest.approx([3.0, 7.0, 5.0, 15.0], abs=0.05)
    # Nats of one token, with an error of ±: (3, 4] has 7 nats for two numbers of masks.
    curve = tree.rows("Cost of a token by the number of masked positions")[1:]
    assert [row[1] for row in curve] == ["0 to 1", "1 to 2", "2 to 4", "4 to 5"]
    heights = [float(row[2]) * math.log(2) for row in curve]
    assert heights == pytest.approx([1.0, 2.0, 3.5, 5.0], abs=0.05)
    bound = float(rows[-1][1])
    assert float(np.average(heights, weights=[1, 1, 2, 1])) / math.log(2) == pytest.approx(bound, abs=0.02)


def test_blocks_of_text_are_shown_and_escaped() -> None:
    text = page([texts()])
    assert "<b>" not in text
    assert '<span class="text">&lt;b&gt;&amp;x</span>' in text
    shown = [one["text"] for one in Tree(text).all("span") if one["attrs"].get("class") == "text"]
    assert shown == ["to <i>be</i>", "or not", "<b>&x", "the\n the"]


def test_bands_of_masked_positions_add_up() -> None:
    result = masked()
    for most in (1, 2, 3, 10):
        bars = mask_bars(result, 1.0, most)
        assert sum(bar.value for bar in bars) == pytest.approx(15.0)
        assert math.sqrt(sum(bar.error**2 for bar in bars)) == pytest.approx(math.sqrt(0.1**2 + 0.3**2 + 0.4**2))


def continuous(total: float, high: float = 8.0, cells: int = 40) -> Evaluation:
    """Of 9 images 1×8×8: KLs that are the same for every unit of log-SNR from −8 to `high`, and a prior of 1 nat."""
    kl = torch.full((cells,), (total - 1.0) / cells, dtype=torch.float64)
    terms = {"reconstruction": nats(0.0), "kl": nats(total - 1.0, 0.2), "prior": nats(1.0)}
    edges = torch.linspace(0, 1, cells + 1, dtype=torch.float64)
    gamma = -high + (high + 8.0) * edges
    return Evaluation(nats(total, 0.2), terms, {}, kl, torch.full_like(kl, 0.05), edges, 64, DATA, gamma_edges=gamma)


def test_compared_runs_have_the_same_scale_and_rows() -> None:
    """Also where their levels differ, and where one has no levels."""
    none = torch.zeros(0, dtype=torch.float64)
    vae = Evaluation(
        nats(160.0, 0.1),
        {"reconstruction": nats(150.0, 0.1), "kl": nats(0.0), "prior": nats(10.0)},
        {},
        none,
        none,
        none,
        64,
        DATA,
    )
    subjects = [Subject("a", continuous(80.0)), Subject("b", continuous(99.0, 9.0, 33)), Subject("vae", vae)]
    text = page(subjects)
    tree = Tree(text)
    labels, widths = [], []
    for name, total in (("a", 80.0), ("b", 99.0), ("vae", 160.0)):
        rows = tree.rows(f"Where the bits of {name} go")[1:]
        labels.append([row[0] for row in rows])
        values = [float(row[1].replace("−", "-")) for row in rows]
        assert sum(values[:-1]) == pytest.approx(values[-1], abs=3e-3)
        assert values[-1] == pytest.approx(total / (64 * math.log(2)), abs=3e-3)
        svg = text[text.index(f'<title id="waterfall-{len(widths) + 1}-title">') :]
        widths.append(float(re.findall(r'class="bar total" x="[^"]*" y="[^"]*" width="([^"]*)"', svg)[0]))
    assert labels[0] == labels[1] == labels[2]
    assert labels[0] == [
        "reconstruction",
        *(f"kl, log-SNR {band}" for band in ("9 to 5", "5 to 0", "0 to −5", "−5 to −8")),
        "prior",
        "NELBO",
    ]
    # The longest bar is as wide as the chart, and the others in proportion.
    assert widths == pytest.approx([396 * 80 / 160, 396 * 99 / 160, 396.0], abs=0.1)


def test_differences_by_cost_add_up_and_have_paired_errors() -> None:
    a, b = continuous(80.0), continuous(99.0)
    difference = {"reconstruction": nats(0.0), "kl": nats(-19.0, 0.03), "prior": nats(0.0)}
    kl, error = a.levels_kl - b.levels_kl, torch.full_like(a.levels_kl, 0.004)
    both = Comparison(
        nats(-19.0, 0.05),
        a,
        b,
        math.inf,
        True,
        (),
        about={"runs": ["a", "b"]},
        terms=difference,
        levels_kl=kl,
        levels_error=error,
    )
    bit = 64 * math.log(2)
    header, *rows = Tree(page([Subject("a", a), Subject("b", b)], [both])).rows(
        "a − b by cost, bits/dim, with paired errors of common noise"
    )
    assert header == ["cost", "difference", "± MC", "a", "b", "difference, nats"]
    values = {row[0]: [float(cell.replace("−", "-")) for cell in row[1:5]] for row in rows}
    # 5 of 16 units of log-SNR, in 12.5 of 40 cells.
    assert values["kl, log-SNR 5 to 0"] == pytest.approx(
        [-19.0 * 5 / 16 / bit, 0.004 * math.sqrt(12.25) / bit, 79 * 5 / 16 / bit, 98 * 5 / 16 / bit], abs=6e-5
    )
    assert values["NELBO"][:2] == pytest.approx([-19.0 / bit, 0.05 / bit], abs=6e-5)
    assert sum(row[0] for row in list(values.values())[:-1]) == pytest.approx(values["NELBO"][0], abs=3e-4)
    # Without a comparison the errors are those of both evaluations.
    header, *rows = Tree(page([Subject("a", a), Subject("b", b)])).rows(
        "a − b by cost, bits/dim, with the errors of separate draws"
    )
    assert float(rows[2][2]) == pytest.approx(math.sqrt(2 * 12.25) * 0.05 / bit, abs=6e-5)


def test_bands_of_few_levels_divide_none() -> None:
    kl, edges = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.arange(1, 6)
    block = LevelCosts(kl, torch.zeros(4), edges, torch.tensor([-9.0, -8.0, 1.0, 3.0, 9.0]))
    found = [(bar.name, bar.value) for bar in bands.bands("kl", block, 1.0)]
    labels = [f"kl, log-SNR {label}" for label in ("9 to 8", "8 to −1", "−1 to −3", "−3 to −9")]
    assert found == list(zip(labels, kl.tolist(), strict=True))


def test_continuations_are_reported_by_scored_token() -> None:
    """Not by dimension, which are positions of the longest row, filling included."""
    text = page([prompted()])
    tree, bits = Tree(text), math.log(2)
    big = next(one for one in tree.elements if one["attrs"].get("class") == "big")["text"]
    # 5 nats a row of 2.5 tokens; its error 0.05 likewise.
    assert big.split()[:4] == [f"{2 / bits:.3f}", "±", f"{0.02 / bits:.3f}", "bits/token"]
    assert "10 scored tokens of 4 rows, given prompts of 7 tokens together; 100 kinds of tokens" in text
    assert "about ± 0.25 bits/token" in text  # of a ratio, from the record, and not 3/(2.5 ln 2)
    assert "bits/dim</" not in text
    assert "T = 20" not in text
    rows = tree.rows("The ledger of hf:a/b")
    assert [row[:4] for row in rows[1:]] == [
        ["1 token", "1", "1", "1.0000"],
        ["2 tokens", "1", "2", "2.0000"],
        ["3 to 4 tokens", "2", "7", "17.00"],
        ["all", "4", "10", "20.00"],
    ]
    # √((3 · 0.03)² + (4 · 0.05)²), and the same per bit of 7 tokens.
    assert rows[3][4:] == ["0.22", f"{17 / 7 / bits:.3f}", f"{0.2193 / 7 / bits:.3f}", "85.0 %"]
    assert rows[4][-1] == "100.0 %"
    chart = tree.rows("Where the bits of hf:a/b go")
    assert [row[1] for row in chart[1:]] == [
        f"{0.1 / bits:.4f}", f"{0.2 / bits:.4f}", f"{1.7 / bits:.3f}", f"{2 / bits:.3f}",
    ]  # fmt: skip
    # The hardest by token is row 2 (3 nats), although row 3 is longer; texts are escaped.
    assert text.index("qa.jsonl, row 2") < text.index("Easiest</h3>") < text.index("qa.jsonl, row 0")
    assert "What &amp; why?<mark>&lt;b&gt;</mark>" in text
    assert "equally likely tokens" in text


def test_a_difference_of_continuations_is_by_scored_token() -> None:
    a, b = (replace(continuations(weights), about={}) for weights in "wv")
    about = dict(continuations().about) | {"runs": ["hf:a/b", "hf:c"], "warnings": ["A prompt is empty."]}
    about["text"] = {side: continuations().about["text"] for side in ("a", "b", "difference")}
    about["prompts"] = {"tokens": 7, "longest": 3, "item_error": {"a": 0.25, "b": 0.25, "difference": 0.125}}
    difference = replace(a.nelbo, value=-1.0, error=0.025)
    text = page([prompted(), prompted("hf:c", "v")], [Comparison(difference, a, b, math.inf, True, (), about=about)])
    bits = 2.5 * math.log(2)
    row = Tree(text).rows("Differences in bits/token, with the 95 % Monte Carlo interval")[1]
    assert row[1:4] == [f"−{1 / bits:.3f}", f"{0.025 / bits:.3f}", "0.12"]
    assert row[5:] == ["−0.400 ± 0.010", "yes"]


def test_prompts_and_other_data_have_reports_of_their_own() -> None:
    with pytest.raises(DiffusionalError, match=r"got both: hf:a/b \(given prompts\), runs/a; write a report of each"):
        page([prompted(), full()])
    about = {"prompts": {"tokens": 7}}
    with pytest.raises(DiffusionalError, match=r"text.tokens, got None"):
        page([Subject("a", replace(continuations(), about=about))])


def test_what_a_newcomer_asks_about_a_text_is_said_at_its_number() -> None:
    text = page([texts()])
    shown = text[text.index('id="number"') : text.index('id="costs"')]
    for said in (
        "bits that the model needs for each token of a block",
        "9 blocks of 5 tokens, of 27 kinds",
        "equally likely tokens",
    ):
        assert said in shown
    assert "dimensions of" not in shown
    latents = replace(masked(), provenance=dict(masked().provenance) | {"latents": 5})
    assert "T = 5: a latent for each number of masked positions" in page([Subject("a", latents)])
    assert "T = 5 latents" in page([Subject("a", replace(images(), provenance=DATA | {"latents": 5}))])


def test_identical_weights_and_common_caveats_are_said_once() -> None:
    noted = {"warnings": ["The data are few."]}
    a, b, c = (Subject(name, images(80.0, **noted)) for name in "abc")
    assert a.evaluation is not None
    other = replace(a.evaluation, provenance=dict(a.evaluation.provenance) | {"weights_sha256": "v" * 64})
    text = page([a, b, replace(c, evaluation=other)])
    assert text.count("a and b have identical weights (SHA-256 wwwwwwwwwwww…)") == 1
    assert text.count("The data are few.") == 1
    assert text.index("<h3>All models</h3>") < text.index("The data are few.")
    assert "identical weights" not in page([a, replace(b, evaluation=other)])
    # The same model given two conditions is no copy.
    given = replace(a.evaluation, provenance=dict(a.evaluation.provenance) | {"condition_sha256": "c" * 64})
    assert "identical weights" not in page([a, replace(b, evaluation=given)])
