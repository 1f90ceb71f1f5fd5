"""Write the pictures of docs/report.md from a report: at the widths of a phone and a desktop, in both colour schemes.

    diffusional report runs/digits runs/narrow -o pair.html
    python tools/report_pictures.py pair.html

Needs Chromium at /usr/bin/chromium. Look at the pictures, and at their texts in docs/report.md, afterwards.
"""

import io
import sys
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import sync_playwright

FIGURES = Path(__file__).parents[1] / "docs" / "figures" / "report"
# Width, scheme, the id of the heading at the top of the picture, and its height.
PICTURES: tuple[tuple[int, Literal["light", "dark"], str | None, int], ...] = (
    (1440, "light", None, 1570),
    (1440, "dark", "costs", 2130),
    (375, "light", None, 1500),
    (375, "dark", "costs", 2100),
)


def main(report: Path) -> None:
    """Take the four pictures of a report, and write them with 64 colours."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for width, scheme, heading, height in PICTURES:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(report.resolve().as_uri())
            shown = page.evaluate("document.querySelector('main').getBoundingClientRect().toJSON()")
            top = 0 if heading is None else page.evaluate(f"document.getElementById('{heading}').offsetTop")
            taken = page.screenshot(
                full_page=True, clip={"x": shown["x"], "y": top, "width": shown["width"], "height": height}
            )
            picture = Image.open(io.BytesIO(taken)).convert("RGB")
            picture.quantize(64, dither=Image.Dither.NONE).save(FIGURES / f"{width}-{scheme}.png", optimize=True)
            page.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
