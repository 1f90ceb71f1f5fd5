"""The manual that `make docs` built, in headless Chromium: axe-core finds nothing serious, no page is wider than the screen, and the search
works without a server.

Skipped where the site was not built, or where there is no browser.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from battery import CHROMIUM, HANGS

SITE = Path(__file__).parents[1] / "build" / "docs"
# One page of each form: a list of links, code, long tables, a notebook with outputs, search.
PAGES = [("index.html", "light"), ("cli.html", "light"), ("leaderboard.html", "light"), ("search.html", "light")]
PAGES += [("essay.html", scheme) for scheme in ("light", "dark")]
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra dev)")
axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed (the extra dev)")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium"),
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason=f"{SITE} was not built: make docs"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize(("name", "scheme"), PAGES)
def test_pages_of_the_site_are_accessible(browser: Any, name: str, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 375, "height": 800}, color_scheme=scheme)
    page.set_default_timeout(1000 * HANGS)
    page.goto((SITE / name).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 10
    serious = [
        (one["id"], one["nodes"][0]["target"], one["nodes"][0]["html"][:200])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    page.close()
    assert serious == []


@pytest.mark.parametrize("name", ["leaderboard.html", "results/index.html"])
def test_wide_tables_scroll_on_a_phone_and_show_it(browser: Any, name: str) -> None:
    page = browser.new_page(viewport={"width": 375, "height": 800})
    page.set_default_timeout(1000 * HANGS)
    page.goto((SITE / name).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    boxes = page.evaluate(
        """[...document.querySelectorAll("table.docutils")].map(table => {
          const box = table.closest(".table-wrapper"), style = getComputedStyle(box);
          const wide = box.scrollWidth > box.clientWidth;
          box.scrollLeft = 40;
          return {wide, moved: box.scrollLeft > 0, focus: box.tabIndex === 0, right: box.getBoundingClientRect().right,
                  shadows: (style.backgroundImage.match(/gradient/g) || []).length, fixed: style.backgroundAttachment,
                  header: getComputedStyle(table.querySelector("th")).backgroundColor};
        })"""
    )
    page.close()
    assert any(box["wide"] for box in boxes)
    for box in boxes:
        assert box["moved"] == box["focus"] == box["wide"]
        assert box["right"] <= 375
        # Two covers that move with the table over two shadows that stay.
        assert box["shadows"] == 4
        assert box["fixed"] == "local, local, scroll, scroll"
        assert box["header"] == "rgba(0, 0, 0, 0)"


def test_the_search_works_without_a_server(browser: Any) -> None:
    page = browser.new_page(viewport={"width": 375, "height": 800})
    page.set_default_timeout(1000 * HANGS)
    requests: list[str] = []
    messages: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text) if message.type == "error" else None)
    page.goto((SITE / "search.html").as_uri() + "?q=perplexity")
    page.wait_for_selector("ul.search li")
    found = page.locator("ul.search li a").evaluate_all("links => links.map(one => one.textContent)")
    page.close()
    assert "Language models" in found
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
