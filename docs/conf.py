"""Sphinx: the manual of diffusional, from the pages of this folder. `make docs` builds it."""

import os
from importlib.metadata import version as version_of

project = "diffusional"
author = "the diffusional contributors"
copyright = "the diffusional contributors"
version = release = version_of("diffusional")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "diffusional"
exclude_patterns = ["_build", "figures/*.md"]

# Pages are Markdown that GitHub shows as well; headings get the anchors that GitHub gives them.
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 4

# Notebooks run while the site is built; DIFFUSIONAL_DOCS_RUN=0 leaves that out.
nb_execution_mode = "off" if os.environ.get("DIFFUSIONAL_DOCS_RUN") == "0" else "cache"
nb_execution_timeout = 60
nb_execution_raise_on_error = True

nitpicky = False
