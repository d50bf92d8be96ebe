"""The site of the documentation: `make docs`. The pages are Markdown that GitHub shows as it is."""

from __future__ import annotations

project = "inturn"
author = "the authors of inturn"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
html_theme = "furo"
html_title = "inturn"
# Links to headings are those that GitHub makes.
myst_heading_anchors = 4
autodoc_typehints = "description"
autodoc_member_order = "bysource"
# A page's first lines may be a comment for the tests.
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
