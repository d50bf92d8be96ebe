"""The comparison with the peers, at a size that shows that it works and not how fast anything is."""

from __future__ import annotations

import io

from bench.peers import of_inturn, of_nothing
from bench.peers.measure import Comparison, Measured
from bench.peers.peer import Peer, PythonPeer
from bench.peers.processes import last_words
from bench.peers.report import fragment, notes, tables
from bench.peers.work import WORKLOADS, Workload
from rich.console import Console
from support import unordered_peer
from support.server import Server

_LOAD = Workload("three keys", 3, 4)


def _compare(server: Server, peers: list[Peer], **limits: float) -> Comparison:
    comparison = Comparison(server, peers, **({"seconds": 20.0, "minutes": 5.0} | limits))
    comparison.run([_LOAD], [2])
    return comparison


def test_counts_what_took_effect_and_what_out_of_order(server: Server) -> None:
    peers = [of_inturn.WITH_PYTHON, of_inturn.WITH_SQL, of_nothing.PEER, unordered_peer.PEER]
    comparison = _compare(server, list(peers))
    found = {row.peer: (row.done, row.out_of_order, row.reason) for row in comparison.rows}
    assert found == {
        "inturn, Python target": (12, 0, ""),
        "inturn, SQL target": (12, 0, ""),
        "no queue": (12, 0, ""),
        "backwards": (12, 12, ""),
    }
    assert all(row.rate for row in comparison.rows)
    assert set(comparison.versions) == {"inturn", "psycopg"}
    # Its databases are gone.
    with server.connect() as connection:
        assert not connection.execute("SELECT 1 FROM pg_database WHERE datname LIKE 'peers%'").fetchall()


def test_peers_that_cannot_be_had_are_reported_and_the_others_measured(server: Server) -> None:
    absent = PythonPeer("absent", "support.unordered_peer", ["no-such-package"])
    broken = PythonPeer("broken", "support.no_such_module", [])
    comparison = _compare(server, [absent, unordered_peer.PEER, broken])
    table = fragment(comparison.rows, ["made by a test"])
    assert "| three keys | 2 | absent | - |  |  |  |" in table
    assert "- absent: not measured: no-such-package is not installed" in table
    assert "- broken: not measured: python failed: " in table
    assert "No module named support.no_such_module" in table
    assert " | all | 12 |" in table


def test_what_is_not_begun_in_time_is_not_measured(server: Server) -> None:
    comparison = _compare(server, [unordered_peer.PEER], minutes=0.0)
    assert notes(comparison.rows) == ["backwards: not measured: out of time"]


def test_tables_compare_with_inturn_and_fit_a_terminal() -> None:
    rows = [
        Measured(WORKLOADS[0], 32, "inturn, Python target", done=50_000, rate=9_000.0),
        Measured(WORKLOADS[0], 32, "pgmq, 1,000 keys a read", done=49_000, out_of_order=50_000, rate=4_500.0),
        Measured(WORKLOADS[0], 32, "graphile-worker", done=500, rate=90.0, reason="node took more than 45 s"),
        Measured(WORKLOADS[2], 1, "pg-boss", reason="out of time"),
    ]
    printed = io.StringIO()
    for table in tables(rows):
        Console(file=printed, width=89).print(table)
    assert "1,000 keys, 50 deep: 50,000 commands, 1,000 keys" in printed.getvalue()
    found = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.getvalue().splitlines()]
    assert ["", "pgmq, 1,000 keys a read", "4,500", "2.0", "98%", "50,000"] in found
    assert ["", "graphile-worker", "90", "100", "1.0%", "0"] in found
    assert ["1", "pg-boss", "-", "", "", ""] in found
    assert notes(rows) == [
        "graphile-worker: went wrong: node took more than 45 s",
        "pg-boss: not measured: out of time",
    ]


def test_no_transaction_of_a_load_has_two_commands_of_a_key() -> None:
    for load in WORKLOADS:
        chunks = list(load.scaled(0.1).chunks())
        assert all(len({key for key, _ in chunk}) == len(chunk) <= 1000 for chunk in chunks)
        assert sum(len(chunk) for chunk in chunks) == load.commands // 10


def test_what_failed_programs_say() -> None:
    assert last_words("npm warn old\nnpm error code EBADENGINE\nnpm error A log is at /tmp\n") == "EBADENGINE"
    assert last_words('Traceback:\n  File "x"\npsycopg.errors.UndefinedTable: gone\n') == (
        "psycopg.errors.UndefinedTable: gone"
    )
    assert last_words("file:1\n  throw\n\nError: boom\n    at file:1\n\nNode.js v24.19.0\n") == "Error: boom"
    assert last_words("/usr/bin/python: No module named x\n") == "No module named x"
    assert last_words("") == "without a word"
