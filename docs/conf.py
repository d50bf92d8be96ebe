"""The site of the documentation: `make docs`. The pages are Markdown that GitHub shows as it is."""

from __future__ import annotations

import re
from typing import Any

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

#: A link to a file of the repository that is no page of the site.
_ELSEWHERE = re.compile(
    r"\[([^\]]+)\]\((?:\.\./)+(?:CHANGELOG|CONTRIBUTING|README|schema/sql/README)\.md[^)]*\)"
    r"|\[([^\]]+)\]\((?:\.\./)+monitoring/[^)]*\)"
)


def _unlink(_app: Any, _page: str, source: list[str]) -> None:
    source[0] = _ELSEWHERE.sub(lambda link: link[1] or link[2], source[0])


def setup(app: Any) -> None:
    app.connect("source-read", _unlink)
