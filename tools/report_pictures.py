"""Write the pictures of docs/report.md from a report, or those of docs/testing.md from the manual: at two widths, in both colour schemes.

    diffusional report runs/digits runs/narrow -o pair.html
    python tools/report_pictures.py pair.html
    make docs && python tools/report_pictures.py build/docs/audit/index.html

Needs Chromium. Look at the pictures, and at their texts in the pages, afterwards.
"""

import io
import shutil
import sys
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import sync_playwright

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
# The id of the heading at the top of a picture of a report, and its height, by width and scheme.
REPORT = {
    (1440, "light"): (None, 1485),
    (1440, "dark"): ("costs", 1645),
    (375, "light"): (None, 1500),
    (375, "dark"): ("costs", 2070),
}


def main(file: Path) -> None:
    """Take the four pictures of a report or of a page of the manual, and write them with 64 colours."""
    browsers = ("chromium", "chromium-browser", "google-chrome")
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, browsers)), None)
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        for width in (1440, 375):
            for scheme in SCHEMES:
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                page.goto(file.resolve().as_uri())
                is_report = page.evaluate("document.querySelector('main#main') !== null")
                heading, height = REPORT[width, scheme] if is_report else (None, 900)
                top, left, across = 0, 0, width
                if is_report:
                    shown = page.evaluate("document.querySelector('main').getBoundingClientRect().toJSON()")
                    left, across = shown["x"], shown["width"]
                if heading is not None:
                    top = page.evaluate(f"document.getElementById('{heading}').offsetTop")
                taken = page.screenshot(full_page=True, clip={"x": left, "y": top, "width": across, "height": height})
                target = FIGURES / ("report" if is_report else "manual") / f"{width}-{scheme}.png"
                target.parent.mkdir(exist_ok=True)
                picture = Image.open(io.BytesIO(taken)).convert("RGB")
                picture.quantize(64, dither=Image.Dither.NONE).save(target, optimize=True)
                page.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
