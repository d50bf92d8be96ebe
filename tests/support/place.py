"""Where things are, wherever a test file lies."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
DOCS = ROOT / "docs"

#: The functions by which operators put keys right: each has a file in the chapter `act`.
OPERATOR_ACTIONS = {path.stem for path in (ROOT / "schema/sql/act").glob("[!_]*.sql")}
