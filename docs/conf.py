"""The site of the documentation: `make docs`. The pages are Markdown that GitHub shows as it is."""

from __future__ import annotations

import html
import logging
import re
from typing import Any

project = "inturn"
author = "the authors of inturn"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
html_theme = "furo"
html_title = "inturn"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
# Links to headings are those that GitHub makes.
myst_heading_anchors = 4
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
# A page's first lines may be a comment for the tests.
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

#: A link to a file of the repository that the site has no page of.
_ELSEWHERE = re.compile(
    r"\[([^\]]+)\]\((?:\.\./)+(?:CHANGELOG|CONTRIBUTING|README|schema/sql/README)\.md[^)]*\)"
    r"|\[([^\]]+)\]\((?:\.\./)+monitoring/[^)]*\)"
)

#: GitHub draws it; on the site a script does, and without a network it stays text.
_DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_DRAW = "https://cdn.jsdelivr.net/npm/mermaid@11.17.2/dist/mermaid.min.js"

# Alembic, which autodoc imports, logs that it has plugins.
logging.getLogger("alembic").setLevel(logging.WARNING)


def _unlink(_app: Any, _page: str, source: list[str]) -> None:
    source[0] = _ELSEWHERE.sub(lambda link: link[1] or link[2], source[0])


def _draw(_app: Any, _page: str, source: list[str]) -> None:
    source[0] = _DIAGRAM.sub(
        lambda diagram: (
            f'```{{raw}} html\n<pre class="mermaid">\n{html.escape(diagram[1])}</pre>\n'
            f'<script defer src="{_DRAW}"></script>\n```'
        ),
        source[0],
    )


def setup(app: Any) -> None:
    app.connect("source-read", _unlink)
    app.connect("source-read", _draw)
