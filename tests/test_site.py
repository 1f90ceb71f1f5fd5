"""The manual that `make docs` built, in headless Chromium: axe-core finds nothing serious, and no page is wider than the screen.

Skipped where the site was not built, or where there is no browser.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from battery import HANGS

SITE = Path(__file__).parents[1] / "build" / "docs"
CHROMIUM = Path("/usr/bin/chromium")
# One page of each form: a list of links, code, long tables, a notebook with outputs, search.
PAGES = [("index.html", "light"), ("cli.html", "light"), ("leaderboard.html", "light"), ("search.html", "light")]
PAGES += [("essay.html", scheme) for scheme in ("light", "dark")]
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra dev)")
axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed (the extra dev)")
pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed: apt-get install chromium"),
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason=f"{SITE} was not built: make docs"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
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
