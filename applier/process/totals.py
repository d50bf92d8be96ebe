"""What a worker has done, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass

from inturn.applier.failure import on_one_line
from inturn.applier.inside.batch import Batch
from inturn.schema.errors import InturnError


@dataclass(slots=True)
class Totals:
    """What a worker, or a whole fleet, has done so far.

    Attributes:
        keys: how many turns it took; a key that was claimed twice counts twice.
        commands, failures: how many commands it applied, and how many attempts failed.
        skipped: commands that were skipped, because a handler asked for it or attempts ran out.
    """

    keys: int = 0
    commands: int = 0
    failures: int = 0
    skipped: int = 0

    def count(self, batch: Batch) -> None:
        self.keys += batch.keys
        self.commands += batch.commands
        self.failures += batch.failures
        self.skipped += batch.skipped


class WorkerEnded(InturnError):
    """A worker was ended by something that is not an error of its own: a SystemExit, a KeyboardInterrupt."""


def ended_by(error: BaseException) -> Exception:
    """Return what ended a worker, as an error that makes a non-zero exit."""
    if isinstance(error, Exception):
        return error
    ended = WorkerEnded(
        f"a worker was ended by {type(error).__name__}: {on_one_line(error)}", hint="See the log for where"
    )
    ended.__cause__ = error
    return ended
