"""A warning of our own modules fails a test; one of somebody else's, who may be newer any day, is seen."""

from __future__ import annotations

import builtins
import tomllib
import warnings

import pytest
from support.place import ROOT

_FILTERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"][
    "filterwarnings"
]
_OURS = 'Exception ignored in: <f>\n\nTraceback:\n  File "/x/inturn/applier/fleet.py", line 1, in f'
_TESTS = 'Exception in thread x\n\nTraceback:\n  File "/x/tests/support/shop.py", line 1, in f'
_THEIRS = 'Exception ignored in: <f>\n\nTraceback:\n  File "/x/site-packages/other/cli/f.py", line 1, in f'
_UNRAISABLE, _IN_THREAD = (
    pytest.PytestUnraisableExceptionWarning,
    pytest.PytestUnhandledThreadExceptionWarning,
)


def _apply(line: str) -> None:
    """Do as pytest does with a line of the configuration."""
    action, message, category, module = (*line.split(":"), "", "", "")[:4]
    name = category.removeprefix("pytest.")
    kind = getattr(pytest if category.startswith("pytest.") else builtins, name) if name else Warning
    warnings.filterwarnings(action, message, kind, module)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "category", "module", "is_fatal"),
    [
        ("old", DeprecationWarning, "inturn.applier.fleet", True),
        ("old", DeprecationWarning, "other.fleet", False),
        ("unclosed <socket.socket fd=3>", ResourceWarning, "support.b_server", True),
        ("unclosed <socket.socket fd=3>", ResourceWarning, "other", False),
        ("connection <C> was deleted while still open. Close it", ResourceWarning, "psycopg._base", True),
        ("unclosed event loop <L>", ResourceWarning, "asyncio.base_events", True),
        ("coroutine 'f' was never awaited", RuntimeWarning, "inturn.applier.outside.turns", True),
        ("coroutine 'f' was never awaited", RuntimeWarning, "other", False),
        (_OURS, _UNRAISABLE, "_pytest", True),
        (_THEIRS, _UNRAISABLE, "_pytest", False),
        ("Exception ignored in: <socket>\n\nResourceWarning: unclosed", _UNRAISABLE, "_pytest", True),
        (_TESTS, _IN_THREAD, "_pytest", True),
        (_OURS, _IN_THREAD, "_pytest", True),
        (_THEIRS, _IN_THREAD, "_pytest", False),
    ],
)
def test_a_warning_is_fatal_where_it_is_ours(
    text: str, category: type[Warning], module: str, *, is_fatal: bool
) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        for line in _FILTERS:
            _apply(line)
        if is_fatal:
            with pytest.raises(category):
                warnings.warn_explicit(text, category, "f.py", 1, module)
        else:
            warnings.warn_explicit(text, category, "f.py", 1, module)
            assert len(seen) == 1, "it is seen"
