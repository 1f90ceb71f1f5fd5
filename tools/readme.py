"""Regenerate the output of the README's code: `make readme`.

    python tools/readme.py            # runs the first Python block of README.md, and writes what it prints into the text block after it
    python tools/readme.py --check    # exit status 1 if the text block no longer has the form of what the code prints

The numbers depend a little on the machine, so `--check`, and the test that calls `form`, compare the text without its numbers.
"""

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
_BLOCKS = re.compile(r"```python\n(?P<code>.*?)```\n+```text\n(?P<output>.*?)```", re.DOTALL)


def blocks(text: str) -> tuple[str, str]:
    """Return the code of the first Python block and the output that follows it.

    >>> blocks("```python\\nprint(1)\\n```\\n\\n```text\\n1\\n```")
    ('print(1)\\n', '1\\n')
    """
    found = _BLOCKS.search(text)
    if found is None:
        raise SystemExit("expected a Python block followed by a text block in README.md, found none")
    return found["code"], found["output"]


def printed(code: str) -> str:
    """Run the code in an empty folder and return what it prints to standard output."""
    out, here = io.StringIO(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(out):
        os.chdir(folder)
        try:
            exec(compile(code, str(README), "exec"), {"__name__": "readme"})
        finally:
            os.chdir(here)
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines()) + "\n"


def form(output: str) -> list[str]:
    """Return the words of each line, without numbers, rules and hashes: what must not change from run to run.

    >>> form("NELBO   1.70 ± 0.02\\n-----\\nmodel 3fa9c2d1\\n")
    ['NELBO', 'model']
    """
    lines = []
    for line in output.splitlines():
        words = [word for word in line.split() if re.fullmatch(r"[^\W\d_]{2,}[:,.;]?", word)]
        lines += [" ".join(words)] if words else []
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Regenerate the output of the README's code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if the form differs")
    args = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    code, old = blocks(text)
    new = printed(code)
    if args.check:
        sys.exit(
            f"README.md shows another output than its code prints; run `make readme`\n{new}"
            if form(old) != form(new)
            else 0
        )
    README.write_text(text.replace(f"```text\n{old}```", f"```text\n{new}```"), encoding="utf-8")


if __name__ == "__main__":
    main()
