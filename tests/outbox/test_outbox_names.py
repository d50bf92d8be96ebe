"""What an append can raise can be imported from where append is."""

from __future__ import annotations

from inturn import outbox
from inturn.schema import errors


def test_every_refusal_of_a_command_is_exported_by_outbox() -> None:
    # ArraysDiffer is of the SQL function append_many with arrays, which Python gives arrays of one length.
    refusals = {kind.__name__ for kind in errors.CommandRefused.__subclasses__()} - {"ArraysDiffer"}
    assert refusals | {"TopicNotGranted", "StatementPooling"} <= set(outbox.__all__)
