"""What a public function can raise can be imported from where the function is."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

import pytest

from inturn import applier, outbox
from inturn.applier import receiver
from inturn.schema import errors


@pytest.mark.parametrize("module", [outbox, applier, receiver], ids=lambda module: module.__name__)
def test_a_module_exports_the_errors_that_its_docstrings_name(module: ModuleType) -> None:
    kinds = dict(inspect.getmembers(errors, inspect.isclass))
    named = {
        base.__name__
        for text in _docstrings(module)
        for name in re.findall(r"\w+", text.partition("Raises:")[2])
        for base in kinds.get(name, int).__mro__
        if issubclass(base, errors.InturnError)
    }
    assert "InturnError" in named, "there are some"
    assert named - {*module.__all__} == set()


def test_every_refusal_of_a_command_is_exported_by_outbox() -> None:
    # ArraysDiffer is of the SQL function append_many with arrays, which Python gives arrays of one length.
    refusals = {kind.__name__ for kind in errors.CommandRefused.__subclasses__()} - {"ArraysDiffer"}
    assert refusals | {"TopicNotGranted", "StatementPooling"} <= set(outbox.__all__)


def _docstrings(module: ModuleType) -> list[str]:
    """Return the docstrings of what a module exports, and of its classes' public methods."""
    exported = [getattr(module, name) for name in module.__all__]
    methods = [
        method
        for each in exported
        if inspect.isclass(each)
        for name, method in vars(each).items()
        if not name.startswith("_")
    ]
    return [inspect.getdoc(each) or "" for each in (*exported, *methods)]
