"""The kind of a target is looked up in one table in SQL and one in Python; no text is compared elsewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from support.place import ROOT

from inturn.applier.targets import KINDS

#: How targets begin: python, sql, http, https.
WORDS = "|".join(sorted({each.partition(":")[0] for kind in KINDS.values() for each in kind.begins}))
#: Where SQL may say it, and why.
SQL = {
    "schema/sql/topic/_target_kinds.sql",  # the table
    "schema/sql/topic/_address_problem.sql",  # looks into addresses
    "schema/sql/topic/create_topic.sql",  # the target that anybody may name
    "schema/sql/topic/_function_name.sql",  # what follows sql:
    # Names of appliers.
    "schema/sql/lease/claim_lease.sql",
    "schema/sql/sql_target/apply.sql",
}


def test_sql_asks_for_the_kind_of_a_target_and_compares_no_text() -> None:
    literal = re.compile(rf"'\^?(?:{WORDS})\b[^' ]*'")
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "schema").rglob("*.sql")
        if literal.search(re.sub(r"--.*", "", path.read_text("utf-8")))
    }
    assert found == SQL


def test_python_asks_for_the_kind_of_a_target_and_compares_no_text() -> None:
    found = {
        str(path.relative_to(ROOT))
        for folder in ("schema", "outbox", "applier", "cli")
        for path in (ROOT / folder).rglob("*.py")
        if any(_compared(ast.parse(path.read_text("utf-8"))))
    }
    assert found <= {"applier/targets.py"}  # the table, and what it makes of a target


def test_the_scan_finds_each_way_to_compare() -> None:
    for text in (
        "row.target == 'python'",
        "row.target.startswith('sql:')",
        "row.target.startswith(('http://', 'https://'))",
        "row.target in {'python', 'other'}",
        "KINDS['http']",
        "rows(\"SELECT name FROM topic WHERE target LIKE 'sql:%%'\")",
        "rows(\"SELECT name FROM topic WHERE target <> 'python'\")",
    ):
        assert any(_compared(ast.parse(text))), text
    assert not any(_compared(ast.parse("create('orders', target='python', at='sql:app.apply')")))


def _compared(tree: ast.AST) -> Iterator[str]:
    """Yield what Python compares with how a target is written, and SQL in its texts."""
    for node in ast.walk(tree):
        beside: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            beside = [node.left, *node.comparators]
        elif isinstance(node, ast.Subscript):
            beside = [node.slice]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in {"startswith", "endswith", "removeprefix", "partition", "split", "match"}:
                beside = list(node.args)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(rf"(?:LIKE|[=>~]|IN \() *'\^?(?:{WORDS})\b", node.value)
        for each in (constant for part in beside for constant in ast.walk(part)):
            if isinstance(each, ast.Constant) and isinstance(each.value, str):
                yield from re.findall(rf"^\^?(?:{WORDS})(?::.*)?$", each.value)
