"""The page of the Python reference: it has every public name, as it is called."""

from __future__ import annotations

import inspect
import re

from support.place import DOCS

import inturn.applier
import inturn.applier.receiver
import inturn.outbox
import inturn.schema.install
from inturn.schema.errors import ArraysDiffer, CommandRefused

_PAGE = DOCS / "reference" / "python.md"


def test_python_reference_has_every_public_name() -> None:
    text = _PAGE.read_text()
    for module in (inturn.outbox, inturn.applier):
        for name in module.__all__:
            assert f"`{name}" in text, f"{module.__name__}.{name}"


def test_python_reference_has_the_signatures_that_there_are() -> None:
    text = _PAGE.read_text()
    calls = re.findall(r"`(?:inturn\.[a-z.]+\.)?(\w+)(?:\.(\w+))?(\([^`]*\))`", text)
    #: Shown as they are written, in several forms.
    decorators = {"handler", "batch_handler"}
    compared = set()
    for module in (inturn.outbox, inturn.applier, inturn.applier.receiver, inturn.schema.install):
        for name, method, shown in calls:
            if not hasattr(module, name) or method in decorators:
                continue
            named = getattr(module, name)
            real = inspect.signature(getattr(named, method) if method else named)
            parameters = [p.replace(annotation=p.empty) for p in real.parameters.values() if p.name != "self"]
            plain = str(real.replace(parameters=parameters, return_annotation=real.empty))
            assert shown.replace('"', "'") == plain, f"{name} {method}"
            compared.add(name)
    assert {"append", "wait", "Fleet", "receive", "upgrade_on"} <= compared


def test_docstrings_name_the_errors_that_a_caller_has_to_expect() -> None:
    """append names every way to be refused, and each function that takes a schema that it may be refused."""
    refused = {error.__name__ for error in CommandRefused.__subclasses__() if error is not ArraysDiffer}
    assert {name for name in refused if name not in (inturn.outbox.append.__doc__ or "")} == set()
    silent = [
        f"{module.__name__}.{name}"
        for module in (inturn.outbox, inturn.applier.receiver.Received, inturn.schema.install)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_")
        and function.__module__ != "inturn.schema.version"
        and "schema" in inspect.signature(function).parameters
        and "Raises:" in (function.__doc__ or "")
        and "The same as `append`" not in (function.__doc__ or "")
        and "SchemaNameRefused" not in (function.__doc__ or "")
    ]
    assert silent == []
