"""Every statement of the appliers stands once, in applier/calls."""

from __future__ import annotations

import re

from support.place import ROOT

#: Services call it on connections of many drivers, and are no appliers.
RECEIVER = "receiver.py"


def test_no_statement_of_the_appliers_stands_elsewhere() -> None:
    elsewhere = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "applier").rglob("*.py"))
        if path.parent.name != "calls" and path.name != RECEIVER
        if re.search(r"sql\.SQL|\"(SELECT|WITH|SET|LISTEN) ", path.read_text("utf-8"))
    ]
    assert elsewhere == []
