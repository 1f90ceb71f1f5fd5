"""Write the tables of docs/results from the JSON of the benchmarks: `make results`.

    python tools/results.py            # write the tables
    python tools/results.py --check    # exit status 1 if a table differs from its JSON

A table stands below a line `<!-- table: NAME -->`, where NAME is a function of tools/result_tables, and ends at an
empty line. Tables without such a line are written by hand.
"""

import argparse
import re
import sys
from pathlib import Path

from result_tables import TABLES

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "results"
_TABLE = re.compile(r"(<!-- table: (?P<name>\w+) -->\n)\n?(?:\|.*\n)*")


def written(text: str) -> str:
    """Return a page with its tables written anew."""
    return _TABLE.sub(lambda match: f"{match[1]}\n{TABLES[match['name']]()}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tables of docs/results from the JSON of the benchmarks.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a table differs")
    args = parser.parse_args()
    different = []
    for page in sorted(PAGES.glob("*.md")):
        old = page.read_text(encoding="utf-8")
        new = written(old)
        if new != old:
            different.append(page.name)
            if not args.check:
                page.write_text(new, encoding="utf-8")
    if different:
        print(("differ from their JSON: " if args.check else "written: ") + ", ".join(different))
    sys.exit(1 if args.check and different else 0)


if __name__ == "__main__":
    main()
