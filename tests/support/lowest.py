"""The lowest versions that pyproject.toml allows, as constraints for pip; `make lowest` tests with them.

The tools of the extras `dev` and `bench` are as new as they come: no user has them.
"""

from __future__ import annotations

import re
import tomllib

from support.place import ROOT

_TOOLS = ("dev", "bench")
_BOUNDED = re.compile(r"(?P<name>[\w.-]+)(\[[\w,-]+\])?>=(?P<lowest>[\w.]+)(,.*)?")


def constraints() -> list[str]:
    """Return a line for each package that inturn or one of its extras needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = list(project["dependencies"])
    for extra, requirements in project["optional-dependencies"].items():
        needed += requirements if extra not in _TOOLS else []
    found = set()
    for requirement in needed:
        bounded = _BOUNDED.fullmatch(requirement)
        assert bounded, f"{requirement} has no lower bound"
        found.add(f"{bounded['name']}=={bounded['lowest']}")
    return sorted(found)


if __name__ == "__main__":
    print("\n".join(constraints()))
