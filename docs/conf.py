"""Sphinx: the manual of diffusional, from the pages of this folder. `make docs` builds it."""

import os
import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

# One thread for each notebook's kernel: two kernels with two threads each wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "diffusional"
author = "the diffusional contributors"
copyright = "the diffusional contributors"
version = release = version_of("diffusional")

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import reference  # noqa: E402

extensions = ["myst_nb"]
html_theme = "furo"
html_title = "diffusional"
html_copy_source = False
# Excerpts of the pages found are fetched, which a browser refuses from file://.
html_show_search_summary = False
# What furo leaves out for keyboards and screen readers.
html_static_path = ["static"]
html_js_files = ["accessible.js"]
html_css_files = ["accessible.css"]
exclude_patterns = ["_build"]

# Pages are Markdown that GitHub shows as well, and their headings have the anchors that GitHub gives them.
# Formulas are Unicode text: no page loads anything from elsewhere.
myst_enable_extensions = ["tasklist"]
myst_heading_anchors = 4

# Notebooks run while the site is built; DIFFUSIONAL_DOCS_RUN=0 leaves that out.
nb_execution_mode = "off" if os.environ.get("DIFFUSIONAL_DOCS_RUN") == "0" else "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

HERE = Path(__file__).resolve().parent
_OUTSIDE = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\.?/[^)\s#]*)(#[^)\s]*)?\)")


def without_outside_links(app: Any, name: str, source: list[str]) -> None:
    """Replace links to folders and to pages outside of docs/, which are not part of the site, by their text and path."""
    page = HERE / f"{name}.md"

    def replaced(match: re.Match[str]) -> str:
        target = (page.parent / match[2]).resolve()
        inside = target.is_relative_to(HERE)
        if (inside and not target.is_dir()) or (target.is_file() and target.suffix != ".md"):
            return match[0]
        path = os.path.relpath(target, HERE.parent)
        return match[1] if match[1].strip("`") == path else f"{match[1]} (`{path}`)"

    source[0] = _OUTSIDE.sub(replaced, source[0])


def with_docstrings(app: Any, name: str, source: list[str]) -> None:
    """Replace the list of public names by their docstrings."""
    if name == "reference":
        source[0] = reference.expanded(source[0])


def setup(app: Any) -> dict[str, bool]:
    """Register what is done to the source of pages."""
    app.connect("source-read", without_outside_links)
    app.connect("source-read", with_docstrings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
