"""inturn and its peers on one throw-away server, with the same work; every handler checks the order."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
from pathlib import Path

from rich.console import Console
from support.server import Server

from bench import SETTINGS
from bench.peers import of_inturn, of_nothing, of_pgmq, of_procrastinate
from bench.peers.measure import Comparison
from bench.peers.of_node import NodeFolder, NodePeer
from bench.peers.report import fragment, notes, tables
from bench.peers.work import WORKLOADS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=15, help="a measurement at most (default: 15)")
    parser.add_argument("--minutes", type=float, default=25, help="all of them at most (default: 25)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--share", type=float, default=1.0, help="of each load, to try it out (default: 1)")
    parser.add_argument("--markdown", type=Path, help="write a fragment for docs/reference/benchmarks.md")
    parser.add_argument("--json", type=Path, help="write the figures")
    options = parser.parse_args()
    comparison, facts = _compare(options)
    console = Console(width=96)
    for table in tables(comparison.rows):
        console.print(table)
    console.print("inturn / it: how many times as fast inturn's Python target is with the same work.")
    for line in [*notes(comparison.rows), *facts]:
        console.print(line, highlight=False)
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(fragment(comparison.rows, facts))
    if options.json:
        rows = [dataclasses.asdict(row) for row in comparison.rows]
        options.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=2) + "\n")


def _compare(options: argparse.Namespace) -> tuple[Comparison, list[str]]:
    server = Server(int(os.environ.get("INTURN_TEST_PG", "18")), extra_settings=SETTINGS, on_disk=True)
    folder = NodeFolder()
    peers = [
        of_inturn.WITH_PYTHON,
        of_inturn.WITH_SQL,
        of_nothing.PEER,
        *of_pgmq.PEERS,
        of_procrastinate.PEER,
        NodePeer(folder, "graphile-worker"),
        NodePeer(folder, "pg-boss"),
    ]
    try:
        server.start()
        comparison = Comparison(server, peers, seconds=options.seconds, minutes=options.minutes)
        comparison.run([load.scaled(options.share) for load in WORKLOADS], options.workers)
        with server.connect() as connection:
            release = connection.execute("SHOW server_version").fetchone()
    finally:
        server.remove()
        folder.close()
    assert release is not None
    return comparison, _facts(options, str(release[0]), comparison.versions)


def _facts(options: argparse.Namespace, postgres: str, versions: dict[str, str]) -> list[str]:
    """Return what a reader has to know to judge the figures and to make them again."""
    asked = f" {' '.join(sys.argv[1:])}" if len(sys.argv) > 1 else ""
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    machine = f"PostgreSQL {postgres} with fsync on, {os.cpu_count()} cores (load at the end: {load})"
    until = f"ends when its load is applied or after {options.seconds:g} seconds"
    return [
        f"Made by `PYTHONPATH=tests .venv/bin/python -m bench.peers{asked}`.",
        f"{machine}, Python {platform.python_version()}, {packages}.",
        f"A measurement {until}; the rate is that of what was applied, from the start of the workers.",
    ]


if __name__ == "__main__":
    main()
