"""A steady load that is pruned, beside the same that is not: rates, sizes, what a prune leaves behind."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from support.database import Database
from support.roles import OWNER

from bench import cpu, pgbench
from bench.callers import append_script, at_call
from bench.ground import Ground
from bench.kinds import APPLICATION, KINDS
from bench.section import Section, rate, ratio

_KEYS = 10_000
_CALLERS = 4
#: How long commands are kept in a run, as a part of it.
_KEPT = 0.1


@dataclass(slots=True)
class Found:
    """Of one run, for each interval.

    Attributes:
        applied: commands a second.
        plain: INSERTs a second of the client beside them, which inturn has no part in.
        cpu: seconds that the server took for each command.
        sizes: megabytes.
        behind: what was left to prune, at the end.
    """

    applied: list[float]
    plain: list[float]
    cpu: list[float]
    sizes: list[float]
    behind: int


def measure(ground: Ground, held: float | None) -> Section:
    """Run the load for so many seconds without a retention, with one, and with one beside a held snapshot."""
    seconds = held or ground.size(600.0, 20.0)
    section = Section(
        f"A steady load, pruned, for {seconds:g} seconds",
        [
            *("work", "applied/s", "to unpruned", "last / first", "that of plain", "quotient"),
            *("CPU first", "CPU last", "MB first", "MB last", "left to prune"),
        ],
        notes=[
            f"{_CALLERS} callers over {_KEYS:,} keys, as many commands as they can; one session applies.",
            f"Commands are kept for {seconds * _KEPT:g} seconds.",
            "last / first: of the commands applied in the last tenth and in the first.",
            "that of plain: the same of one more client, whose INSERTs have nothing to do with inturn.",
            "quotient: of the two. What remains is ours; the rest is the machine's.",
            "CPU: microseconds of the whole server for each command, in the first tenth and in the last.",
            "MB: all tables of inturn with their indexes, after the first tenth and after the last.",
            "left to prune: commands that were applied long enough ago and are there still, at the end.",
            "Measured from when the first commands were kept for so long: before, there is nothing to prune.",
        ],
    )
    unpruned = 0.0
    for name, pruned, snapshot in (
        ("unpruned", False, False),
        ("pruned", True, False),
        ("pruned, a snapshot held", True, True),
    ):
        found = _run(ground, seconds, pruned=pruned, snapshot=snapshot)
        whole = statistics.mean(found.applied)
        unpruned = unpruned or whole
        tail, of_plain = (rates[-1] / rates[0] for rates in (found.applied, found.plain))
        cells = [rate(whole), ratio(whole, unpruned), f"{tail:.2f}", f"{of_plain:.2f}"]
        cells.append(ratio(tail, of_plain))
        cells += [f"{each * 1e6:,.0f}" for each in (found.cpu[0], found.cpu[-1])]
        cells += [f"{size:,.0f}" for size in (found.sizes[0], found.sizes[-1])]
        section.rows.append([name, *cells, f"{found.behind:,}"])
        tenths, beside = (" ".join(map(rate, rates)) for rates in (found.applied, found.plain))
        ground.say(f"{name}: {' '.join(cells)}, left {found.behind:,}; tenths: {tenths}; plain: {beside}")
    return section


def _run(ground: Ground, seconds: float, *, pruned: bool, snapshot: bool) -> Found:
    with ground.database() as database, contextlib.ExitStack() as stack:
        database.execute(APPLICATION)
        kind = KINDS["call"](database)
        stack.enter_context(kind.at_work())
        at_most = seconds * (1 + _KEPT) + 60
        script = append_script(kind.topic, _KEYS)
        stack.enter_context(at_call(database, script, clients=_CALLERS, seconds=at_most))
        stack.enter_context(at_call(database, pgbench.PLAIN, clients=1, seconds=at_most))
        kept = f"{seconds * _KEPT} seconds"
        if pruned:
            database.execute("UPDATE inturn.topic SET retain = %s WHERE name = %s", [kept, kind.topic])
            stack.enter_context(pruning(database, seconds * _KEPT / 4))
        if snapshot:
            holder = database.session()
            holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            holder.execute("SELECT FROM inturn.topic")
        time.sleep(seconds * _KEPT)
        applied, plain, spent, sizes = [], [], [], []
        for _ in range(10):
            before, beside = kind.applied(), _inserted(database)
            began_at, began_with = time.monotonic(), cpu.seconds(ground.server)
            time.sleep(seconds / 10)
            commands, inserted = kind.applied() - before, _inserted(database) - beside
            taken = time.monotonic() - began_at
            applied.append(commands / taken)
            plain.append(inserted / taken)
            spent.append((cpu.seconds(ground.server) - began_with) / max(commands, 1))
            sizes.append(_megabytes(database))
        behind = database.value(
            "SELECT coalesce(sum(t.to_seq - t.from_seq + 1), 0) FROM inturn.turn t"
            " JOIN inturn.key_sequence s USING (topic, key)"
            " WHERE finished_at < now() - %s::interval * 1.5 AND t.to_seq >= coalesce(s.history_seq, 1)",
            [kept],
        )
        return Found(applied, plain, spent, sizes, int(behind))


@contextlib.contextmanager
def pruning(database: Database, pause: float) -> Iterator[None]:
    """Prune again and again, a pause of so many seconds after each pass over the keys."""
    over = threading.Event()

    def prune() -> None:
        with database.connect(user=OWNER) as connection:
            while not over.wait(pause):
                connection.execute("CALL inturn.prune()")

    thread = threading.Thread(target=prune)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _inserted(database: Database) -> int:
    """Return how many rows of measures.PREPARE's plain table were begun: whatever snapshot is held."""
    return int(database.value("SELECT last_value FROM app.plain_id_seq"))


def _megabytes(database: Database) -> float:
    return (
        float(
            database.value(
                "SELECT sum(pg_total_relation_size(oid)) FROM pg_class"
                " WHERE relnamespace = 'inturn'::regnamespace AND relkind = 'r'"
            )
        )
        / 1e6
    )
