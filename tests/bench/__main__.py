"""The run: all figures on one throw-away server, and beside each the plain INSERT of its minute."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from support.database import Database
from support.server import Server

from bench import SETTINGS, measures, outside, pgbench


class Run:
    """One run: measures, and keeps what it measured."""

    def __init__(self, database: Database, seconds: int, protocol: str) -> None:
        self._database = database
        self._seconds = seconds
        self._protocol = protocol
        self.rows: list[dict[str, object]] = []

    def clients(self, script: str, clients: int, options: str = "") -> float:
        return pgbench.rate(
            self._database,
            script,
            clients=clients,
            seconds=self._seconds,
            protocol=self._protocol,
            options=options,
        )

    def plain(self) -> float:
        return self.clients(pgbench.PLAIN, 16)

    def add(self, what: str, value: float, unit: str, ratio: float | None, target: str) -> None:
        self.rows.append({"work": what, "value": value, "unit": unit, "ratio": ratio, "asked": target})
        print(f"  {what}: {value:,.1f} {unit}" + (f", ratio {ratio:.2f}" if ratio else ""), file=sys.stderr)

    def beside_plain(self, what: str, script: str, target: str) -> None:
        """Measure a script between two runs of the plain INSERT."""
        before = self.plain()
        found = self.clients(script, 16)
        plain = statistics.mean([before, self.plain()])
        self.add(what, found, "/s", found / plain, target)

    def append(self) -> None:
        self.beside_plain("append, every command a new key, 16 clients", pgbench.NEW_KEYS, "0.65")
        self._database.execute("CALL inturn.apply()")
        self.beside_plain("append over 1,000 active keys, 16 clients", pgbench.ACTIVE_KEYS, "0.70")
        self._database.execute("CALL inturn.apply()")

    def drain(self) -> None:
        plain = self.plain()
        self.add("plain INSERT, 16 clients", plain, "/s", 1.0, "")
        for what, measure, keys, commands, target in (
            ("CALL inturn.apply(), one-command keys", measures.drain_by_sql, 100_000, 100_000, "0.75"),
            ("CALL inturn.apply(), 100 commands a key", measures.drain_by_sql, 2_000, 200_000, "7"),
            ("Python target, one-command keys", measures.drain_by_python, 10_000, 10_000, "0.11"),
            ("Python target, 100 commands a key", measures.drain_by_python, 200, 20_000, "0.21"),
        ):
            found = measure(self._database, keys, commands, what)
            self.add(what, found, "/s", found / plain, target)

    def latency(self) -> None:
        times = measures.latency_milliseconds(self._database, 50)
        self.add("commit to handler's start, idle: median", statistics.median(times), "ms", None, "5 ms")
        self.add("the same, 95th percentile", times[int(len(times) * 0.95)], "ms", None, "")
        times = measures.latency_milliseconds(self._database, 50, "arrival-python")
        self.add("numbered on arrival, the same: median", statistics.median(times), "ms", None, "5 ms more")
        self.add("the same, 95th percentile", times[int(len(times) * 0.95)], "ms", None, "")

    def snapshot(self) -> None:
        plain = self.plain()
        first, last = measures.drain_under_snapshot(self._database, 12)
        self.add("CALL inturn.apply(), snapshot held, first second", first, "/s", first / plain, "")
        self.add("the same, six seconds later", last, "/s", last / plain, "")

    def claim(self) -> None:
        for waiting in (1_000, 1_000_000):
            found = measures.claim_milliseconds(self._database, waiting)
            self.add(f"a claim beside {waiting:,} waiting keys", found, "ms", None, "")

    def posts(self) -> None:
        """Measure one applier's posts between two runs of a bare loop, both with so many in flight."""
        with outside.slow_service(5) as url:
            for what, commands in (("20 commands a key", 20), ("one-command keys", 1)):
                before = outside.bare_loop(url, self._seconds)
                found, oldest = outside.applier(self._database, url, self._seconds, commands)
                bare = statistics.mean([before, outside.bare_loop(url, self._seconds)])
                name = f"HTTP target at 5 ms, {outside.IN_FLIGHT} in flight, {what}, against bare httpx2"
                self.add(name, found, "/s", found / bare, "0.7")
                self.add("the oldest transaction meanwhile", oldest, "s", None, "1 s")
            one_pool = outside.bare_loop(url, self._seconds, one_pool=True)
            self.add("one httpx2.AsyncClient for all, bare", one_pool, "/s", None, "")

    def one_key(self) -> None:
        alone = self.clients(pgbench.ONE_KEY, 1)
        self.add("append to one key, 1 client", alone, "/s", None, "")
        for clients in (16, 64):
            found = self.clients(pgbench.ONE_KEY, clients)
            self.add(f"the same, {clients} clients, against 1", found, "/s", found / alone, "0.8")
        self._database.execute("CALL inturn.apply()")

    def hot_key(self) -> None:
        """Measure the callers of one key in both numberings."""
        for clients, options, of in (
            (1, "", ""),
            (16, "", ""),
            (64, "", ""),
            (64, pgbench.SLOW_COMMIT, ", 2 ms a commit"),
        ):
            plain = self.clients(pgbench.PLAIN, clients, options)
            for what, script, asked in (
                ("on arrival", pgbench.ONE_KEY_ON_ARRIVAL, "0.9"),
                ("in commit order", pgbench.ONE_KEY, ""),
            ):
                found = self.clients(script, clients, options)
                self.add(f"one key numbered {what}, {clients} clients{of}", found, "/s", found / plain, asked)

    def numbering(self) -> None:
        plain = self.plain()
        for keys in (1, 1_000):
            found = measures.numbered(self._database, keys, 100_000)
            self.add(f"a pass numbers what arrived, {keys:,} keys", found, "/s", found / plain, "150,000/s")

    def batch(self) -> None:
        plain = self.plain()
        by_batch, one_by_one = measures.drain_hot_key(self._database, 100_000)
        self.add(
            "Python target, one key 100,000 deep, by batch", by_batch, "/s", by_batch / plain, "50,000/s"
        )
        self.add("the same, one by one", one_by_one, "/s", one_by_one / plain, "")
        self.add("by batch against one by one", by_batch / one_by_one, "times", None, "")


#: What there is to measure, in its order.
_MEASURES: dict[str, Callable[[Run], None]] = {
    "append": Run.append,
    "one-key": Run.one_key,
    "hot-key": Run.hot_key,
    "numbering": Run.numbering,
    "batch": Run.batch,
    "drain": Run.drain,
    "latency": Run.latency,
    "snapshot": Run.snapshot,
    "posts": Run.posts,
    "claim": Run.claim,
}


def prepared(server: Server) -> Database:
    """Make the database that a run measures."""
    database = Database(server, "bench")
    database.install()
    database.execute(measures.PREPARE)
    server.administer(pgbench.ALLOW_SLOW_COMMIT)
    return database


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--seconds", type=int, default=8, help="per pgbench run (default: 8)")
    parser.add_argument("--protocol", default="prepared", choices=["simple", "extended", "prepared"])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=_MEASURES,
        default=list(_MEASURES),
        metavar="MEASURE",
        help=", ".join(_MEASURES),
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    server = Server(int(os.environ.get("INTURN_TEST_PG", "18")), extra_settings=SETTINGS, on_disk=True)
    try:
        server.start()
        run = Run(prepared(server), options.seconds, options.protocol)
        for name in options.only:
            _MEASURES[name](run)
    finally:
        server.remove()
    if options.json:
        print(json.dumps(run.rows, indent=2))
        return
    table = Table(title=f"PostgreSQL {server.version}, {os.cpu_count()} cores, {options.protocol}")
    for heading in ("work", "measured", "ratio to plain", "asked"):
        table.add_column(heading, justify="left" if heading == "work" else "right")
    for row in run.rows:
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else ""
        value = f"{row['value']:,.0f}" if row["unit"] == "/s" else f"{row['value']:.2f}"
        table.add_row(str(row["work"]), f"{value} {row['unit']}", ratio, str(row["asked"]))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
