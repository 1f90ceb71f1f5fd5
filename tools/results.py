"""Write the tables and figures of docs/results, docs/audit and docs/leaderboard.md from the JSON of the benchmarks: `make results`.

    python tools/results.py            # write what differs
    python tools/results.py --check    # exit status 1 if a table or a figure differs from its JSON
    python tools/results.py --redraw   # draw all figures anew, after a change of their style

A table stands below a line `<!-- table: NAME -->`, where NAME is a function of tools/result_tables, and ends at an
empty line. Tables without such a line are written by hand. A figure stands below a line `<!-- figure: NAME -->`, where
NAME is a function of tools/result_figures, which also writes its alternative text; it is drawn to docs/figures/NAME.svg.
The file has a hash of what is drawn, and is drawn again only if that has changed, so that other versions of matplotlib
do not change it. A page without a figure gives the reason in a line `<!-- no figure: REASON -->`.
"""

import argparse
import re
import sys
from pathlib import Path

from result_figures import FIGURES
from result_figures.common import Drawn
from result_tables import TABLES

from diffusional.report import style

ROOT = Path(__file__).parents[1]
FOLDERS = ("results", "audit")
DRAWINGS = ROOT / "docs" / "figures"
_TABLE = re.compile(r"(<!-- table: (?P<name>\w+) -->\n)\n?(?:\|.*\n)*")
_FIGURE = re.compile(r"(<!-- figure: (?P<name>\w+) -->\n)(?:!\[.*\n)?")
_FINGERPRINT = re.compile(r"<dc:identifier>(.*)</dc:identifier>")


def written(text: str, drawn: dict[str, Drawn] | None = None) -> str:
    """Return a page with its tables and the links to its figures written anew; add its figures to `drawn`."""

    def linked(match: re.Match[str]) -> str:
        name = match["name"]
        figure = FIGURES[name]()
        if drawn is not None:
            drawn[name] = figure
        return f"{match[1]}![{figure.alt}](../figures/{name}.svg)\n"

    text = _TABLE.sub(lambda match: f"{match[1]}\n{TABLES[match['name']]()}", text)
    return _FIGURE.sub(linked, text)


def pages() -> list[Path]:
    """Return the pages with tables and figures that are written here."""
    found = sorted(page for folder in FOLDERS for page in (ROOT / "docs" / folder).glob("*.md"))
    return [*found, ROOT / "docs" / "leaderboard.md"]


def fingerprint(path: Path) -> str:
    """Return the hash of what a file of docs/figures shows, or "" if there is no such file or no hash in it."""
    if not path.exists():
        return ""
    found = _FINGERPRINT.search(path.read_text(encoding="utf-8"))
    return found[1] if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tables and figures of docs/results from the JSON.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if something differs")
    parser.add_argument("--redraw", action="store_true", help="draw all figures anew")
    args = parser.parse_args()
    different: list[str] = []
    drawn: dict[str, Drawn] = {}
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = written(old, drawn)
        if new != old:
            different.append(page.name)
            if not args.check:
                page.write_text(new, encoding="utf-8")
    for name, figure in drawn.items():
        path = DRAWINGS / f"{name}.svg"
        if args.redraw or fingerprint(path) != figure.fingerprint:
            different.append(path.name)
            if not args.check:
                style.save(figure.figure, path, description=figure.alt, identifier=figure.fingerprint)
    if different:
        print(("differ from their JSON: " if args.check else "written: ") + ", ".join(different))
    sys.exit(1 if args.check and different else 0)


if __name__ == "__main__":
    main()
