"""Whose statement it is: a caller's, an applier's, a deployer's, an operator's, or the test's own."""

from __future__ import annotations

import re
from functools import cache

from support import roles
from support.place import TESTS

#: In the order in which a statement is theirs that more than one may run.
_LOGINS = {
    "caller": roles.CALLER,
    "applier": roles.APPLIER,
    "admin": roles.DEPLOYER,
    "operator": roles.OPERATOR,
}
#: What a statement uses of the schema: a name, and the bracket after it.
_USED = re.compile(r"\binturn\.(\w+)\s*(\(?)")
#: Which everybody may name.
_TYPE = "command"
_VIEWS = {"outbox": ("caller",), "schema_version": (*_LOGINS,), "compatible_since": (*_LOGINS,)}
#: What tests arrange and look at is no work of a role.
_OURS = re.compile(
    r"(?:^|;)\s*(?:CREATE|ALTER|DROP|GRANT|REVOKE|DO|EXPLAIN|VACUUM|ANALYZE)\b|\bpg_(?:stat_|locks)"
    r"|\b(?:INTO|UPDATE|DELETE FROM|ONLY)\s+inturn\.(?!outbox\b)|\bFOR (?:UPDATE|SHARE)\b",
    re.MULTILINE,
)
_SETS = re.compile(r"^\s*(?:(?:SET|RESET) (?!ROLE)|SELECT set_config\()[^;]*$")


def is_setting(statement: str) -> bool:
    """Whether a statement does nothing but set something in its session."""
    return bool(_SETS.search(statement))


@cache
def _who_may() -> dict[str, set[str]]:
    """Return who may call each function and use each view that is not operators' alone: see the matrix."""
    text = (TESTS / "security" / "matrix.txt").read_text("utf-8")
    functions = text.partition("[functions]\n")[2].partition("[topics]")[0]
    found = {name: {*users} for name, users in _VIEWS.items()}
    for name, granted in re.findall(r"^(\w+)\(.*\): ([a-z -]+)$", functions, re.MULTILINE):
        found.setdefault(name, set()).update(set(granted.split()) - {"-"})
    return found


@cache
def login_of(statement: str) -> str:
    """Return the login that runs a statement: of the one role whose functions it calls, or the owner."""
    used = {(name, bracket) for name, bracket in _USED.findall(statement) if name != _TYPE}
    who_may, calls = _who_may(), {name for name, bracket in used if bracket}
    if _OURS.search(statement) or not calls | ({name for name, _ in used} & {*_VIEWS}):
        return roles.OWNER
    may = {*_LOGINS}
    for name, bracket in used:
        # Operators read every table.
        may &= who_may.get(name, set()) if bracket or name in _VIEWS else {"operator"}
    return next((login for role, login in _LOGINS.items() if role in may), roles.OWNER)
