"""The report in headless Chromium: no errors or requests, nothing overflows, both colour schemes, print, axe-core, and the keyboard."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from battery import CHROMIUM, HANGS
from diffusional.report.page import page
from diffusional.report.subject import Subject
from report.pages import comparison, composite, full, listed, table

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra dev)")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three pages: of several runs with long names, of a table, and of a run with a wide picture and several items."""
    folder = tmp_path_factory.mktemp("pages")
    long = "runs/" + "a-name-without-any-space-" * 6
    pages = {
        "several": page([full(), full("runs/b", 84.0), Subject(long, composite())], [comparison()]),
        "table": page([table()]),
        "wide": page([wide()]),
    }
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in pages}


def wide() -> Subject:
    rng = np.random.default_rng(0)
    one = full()
    assert one.samples is not None
    assert one.items is not None
    samples = replace(one.samples, images=rng.random((8, 1, 60, 60)))
    return replace(
        one, samples=samples, items=replace(one.items, hardest=[listed(f"{i}.png", 120.0) for i in range(4)])
    )


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """A function that opens a page at a width in a scheme, and the faults and requests that it met."""
    contexts = []

    def visit(path: Path, width: int, scheme: str) -> tuple[Any, list[str], list[str]]:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        context.set_default_timeout(1000 * HANGS)
        contexts.append(context)
        opened, faults, requests = context.new_page(), [], []
        opened.on("console", lambda message: faults.append(message.text))
        opened.on("pageerror", lambda error: faults.append(str(error)))
        opened.on("request", lambda request: requests.append(request.url))
        opened.goto(path.as_uri())
        return opened, faults, [url for url in requests if not url.startswith("data:")]

    yield visit
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", ["several", "table"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_no_faults_no_requests_no_overflow(
    files: dict[str, Path], visit: Any, name: str, width: int, scheme: str
) -> None:
    opened, faults, requests = visit(files[name], width, scheme)
    opened.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert faults == []
    assert requests == [files[name].as_uri()]
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    # Texts of charts stay inside of them.
    outside = opened.evaluate(
        """() => [...document.querySelectorAll('svg.chart text')].filter(one => {
            const own = one.getBoundingClientRect(), box = one.ownerSVGElement.getBoundingClientRect();
            return own.left < box.left - 1 || own.right > box.right + 1;
        }).map(one => one.textContent)"""
    )
    assert outside == []
    light = opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")


def test_tables_are_not_cut_off_on_a_desktop_and_show_that_they_scroll_on_a_phone(
    files: dict[str, Path], visit: Any
) -> None:
    cut = """() => [...document.querySelectorAll('.scroll:has(table)')].filter(one => one.checkVisibility())
        .filter(one => one.scrollWidth > one.clientWidth + 1)"""
    opened, _, _ = visit(files["several"], 1440, "light")
    opened.evaluate("document.querySelectorAll('details.fold').forEach(one => one.open = true)")
    assert opened.evaluate(f"({cut})().map(one => one.getAttribute('aria-label'))") == []
    opened, _, _ = visit(files["several"], 375, "dark")
    opened.evaluate("document.querySelectorAll('details.fold').forEach(one => one.open = true)")
    shown = opened.evaluate(f"({cut})().map(one => getComputedStyle(one).backgroundImage)")
    assert len(shown) > 1
    assert all(one.count("linear-gradient") == 4 for one in shown)


def test_commands_and_wide_pictures_show_that_they_scroll_on_a_phone(files: dict[str, Path], visit: Any) -> None:
    opened, _, _ = visit(files["wide"], 375, "light")
    opened.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    commands = opened.evaluate(
        """() => [...document.querySelectorAll('.scroll:has(pre)')].map(one => [
            getComputedStyle(one).backgroundImage.split('linear-gradient').length - 1,
            getComputedStyle(one.firstElementChild).backgroundColor])"""
    )
    # The shadows of the region are not covered by the text's own background.
    assert commands
    assert all(one == [4, "rgba(0, 0, 0, 0)"] for one in commands)
    shadows = """() => Object.fromEntries([...document.querySelectorAll('.picture')].map(one => [
        one.getAttribute('aria-label'),
        [one.scrollWidth > one.clientWidth + 1, parseFloat(getComputedStyle(one, '::after').width) > 10]]))"""
    assert opened.evaluate(shadows) == {"Samples of runs/a": [True, True], "Paths of runs/a": [False, False]}
    opened, _, _ = visit(files["wide"], 1440, "light")
    assert opened.evaluate(shadows) == {"Samples of runs/a": [False, False], "Paths of runs/a": [False, False]}


def test_items_stand_in_pairs_on_a_phone(files: dict[str, Path], visit: Any) -> None:
    opened, _, _ = visit(files["wide"], 375, "dark")
    tops = opened.evaluate(
        "[...document.querySelector('.cards').children].map(one => Math.round(one.getBoundingClientRect().top))"
    )
    assert len(tops) == 4
    assert tops[0] == tops[1] < tops[2] == tops[3]


def test_the_chart_of_noise_levels_is_as_wide_as_the_page_with_texts_of_the_same_size(
    files: dict[str, Path], visit: Any
) -> None:
    sizes = """() => [...document.querySelectorAll('.broad svg.chart')].filter(one => one.checkVisibility()).map(one => [
        one.getBoundingClientRect().width / document.querySelector('main h2').getBoundingClientRect().width,
        one.querySelector('text').getBoundingClientRect().height])"""
    for width, size in ((375, 10), (1440, 12)):
        opened, _, _ = visit(files["wide"], width, "light")
        ((share, height),) = opened.evaluate(sizes)
        assert share > 0.99
        assert height > size


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(files: dict[str, Path], visit: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed (the extra dev)")
    opened, _, _ = visit(files["several"], 375, scheme)
    opened.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    opened.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    found = opened.evaluate("axe.run()")
    assert len(found["passes"]) > 20
    serious = [
        (one["id"], one["nodes"][0]["html"]) for one in found["violations"] if one["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_texts_of_charts_contrast_with_the_page(files: dict[str, Path], visit: Any) -> None:
    def luminance(colour: str) -> float:
        parts = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for scheme in ("light", "dark"):
        opened, _, _ = visit(files["several"], 1440, scheme)
        paper = luminance(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
        for style in ("label", "tick"):
            ink = luminance(opened.evaluate(f"getComputedStyle(document.querySelector('svg .{style}')).fill"))
            low, high = sorted((paper, ink))
            assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_keyboard_reaches_everything_in_order(files: dict[str, Path], visit: Any) -> None:
    opened, _, _ = visit(files["table"], 1440, "light")
    expected = opened.evaluate(
        "[...document.querySelectorAll('a[href], summary, [tabindex=\"0\"]')].filter(one => one.checkVisibility()).length"
    )
    order = []
    for _ in range(expected):
        opened.keyboard.press("Tab")
        order.append(opened.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
    assert order == sorted(order)
    assert len(set(order)) == expected
    opened.keyboard.press("Tab")
    opened.evaluate("document.activeElement.blur()")
    opened.keyboard.press("Tab")
    skip = opened.evaluate("document.activeElement.className")
    assert skip in ("skip", "")


def test_the_skip_link_is_shown_on_focus_and_leads_to_the_content(files: dict[str, Path], visit: Any) -> None:
    opened, _, _ = visit(files["table"], 375, "light")
    assert opened.evaluate("document.querySelector('.skip').getBoundingClientRect().right") < 0
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    opened.keyboard.press("Enter")
    assert opened.evaluate("document.activeElement.id") == "main"


def test_the_print_is_light_and_leaves_nothing_out(files: dict[str, Path], visit: Any) -> None:
    opened, _, _ = visit(files["several"], 1000, "dark")
    opened.emulate_media(media="print", color_scheme="dark")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    # On A4, 18.6 cm wide at 96 dpi.
    opened.set_viewport_size({"width": 703, "height": 1000})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 703
    assert opened.pdf(format="A4").startswith(b"%PDF")


def test_parts_that_are_folded_away_are_printed(files: dict[str, Path], visit: Any) -> None:
    heights = """() => [...document.querySelectorAll('details.fold')].map(one =>
        [one.open, one.lastElementChild.checkVisibility({contentVisibilityAuto: true}),
         one.lastElementChild.getBoundingClientRect().height > 0])"""
    opened, _, _ = visit(files["several"], 703, "light")
    shown = opened.evaluate(heights)
    # Settings, ledgers, ends of the items, fingerprints and terms.
    assert len(shown) >= 8
    assert all(not is_open and not visible for is_open, visible, _ in shown)
    opened.emulate_media(media="print")
    # A new medium is laid out with the next frame.
    opened.wait_for_function(f"({heights})().every(([is_open, visible, tall]) => !is_open && visible && tall)")
    assert opened.evaluate(heights) == [[False, True, True]] * len(shown)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 703


def test_a_link_to_the_terms_unfolds_them(files: dict[str, Path], visit: Any) -> None:
    opened, _, _ = visit(files["several"], 375, "light")
    assert not opened.evaluate("document.getElementById('terms').checkVisibility()")
    opened.click("main a[href='#terms']")
    assert opened.evaluate("document.getElementById('terms').closest('details').open")
    # Below its heading, which is on the screen too.
    top = "document.getElementById('{}').getBoundingClientRect().top"
    assert 0 <= opened.evaluate(top.format("words")) < opened.evaluate(top.format("terms")) < 800


def test_folds_shorten_the_page_on_a_phone(files: dict[str, Path], visit: Any) -> None:
    opened, _, _ = visit(files["several"], 375, "light")
    height = "document.documentElement.scrollHeight"
    folded = opened.evaluate(height)
    opened.evaluate("document.querySelectorAll('details.fold').forEach(one => one.open = true)")
    assert folded < 0.8 * opened.evaluate(height)
    # All contents are on the first screen, and each of them leads to a heading or to the terms.
    assert opened.evaluate("document.getElementById('contents').getBoundingClientRect().bottom") < 800
    ends = opened.evaluate(
        "[...document.querySelectorAll('#contents a')].map(one => document.querySelector(one.getAttribute('href')).tagName)"
    )
    assert ends == ["H2"] * (len(ends) - 1) + ["DL"]


def test_a_single_run_has_its_ledger_and_items_open(files: dict[str, Path], visit: Any) -> None:
    opened, _, _ = visit(files["wide"], 1440, "light")
    found = opened.evaluate("[...document.querySelectorAll('details.fold > summary')].map(one => one.innerText)")
    assert found == ["Seed, versions and fingerprints of runs/a", "The terms of this page"]
    assert opened.evaluate("document.querySelector('.cards').checkVisibility()")
