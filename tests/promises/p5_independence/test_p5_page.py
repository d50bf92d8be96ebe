"""P5: docs/explanation/failures.md and the tests of failures are one matrix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from support import bad_company, bad_outside, deaths, large, left_behind, not_run, ways
from support.place import DOCS

#: Of each section with a table of kinds, the kinds that tests force.
KINDS: dict[str, Iterable[str]] = {
    "In a handler in Python": bad_company.IN_PYTHON,
    "In a SQL target": bad_company.IN_SQL,
    "In a handler outside the database": {**bad_outside.PLAIN, **bad_outside.COROUTINE},
    "In a service over HTTP": bad_outside.SERVICE,
    "In a lease client": bad_outside.LEASE_CLIENT,
    "In the session of a handler in Python": {
        **left_behind.NEVER_SHARED,
        **left_behind.AT_ONCE,
        **left_behind.BY_THE_NEXT_CLAIM,
        **left_behind.BY_A_NEW_CONNECTION,
    },
    "In the session of a SQL target": left_behind.IN_SQL,
    "A process dies": deaths.WAYS,
    "An interpreter is kept busy": deaths.BUSY,
    "What would not run": [*not_run.IN_PYTHON, *not_run.IN_SQL],
    "No handler takes the command": ways.UNHANDLED,
    "Something that commands need is down": [*ways.OUTAGES, *ways.OUTAGES_UNDER_CALL],
    "It takes too long": [
        *ways.TOO_LONG_IN_SQL,
        *ways.TOO_LONG_IN_PYTHON,
        *ways.TOO_LONG_IN_BATCHES,
        *ways.TOO_LONG_OUTSIDE,
    ],
    "Payloads are large": large.WAYS,
    "A half-open connection": ways.HALF_OPEN,
}


def test_the_page_of_failures_has_every_kind_and_no_other() -> None:
    page = (DOCS / "explanation" / "failures.md").read_text()
    shown = {}
    for section in page.split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        if "\n| kind |" in text:
            kinds = re.findall(r"^\| (.+?) \|", text.partition("\n| kind |")[2], re.MULTILINE)
            assert len(kinds) == len(set(kinds)), title
            shown[title] = set(kinds)
    assert shown == {title: set(kinds) for title, kinds in KINDS.items()}


def test_of_every_kind_of_fault_the_tests_know_its_own_error() -> None:
    tables: list[Mapping[str, bad_company.Fault | bad_outside.Fault]] = [
        *(bad_company.IN_PYTHON, bad_company.IN_SQL),
        *(bad_outside.PLAIN, bad_outside.COROUTINE, bad_outside.SERVICE, bad_outside.LEASE_CLIENT),
    ]
    unknown = {kind for faults in tables for kind, fault in faults.items() if not fault.error}
    assert unknown == {"the end of its own session"}
