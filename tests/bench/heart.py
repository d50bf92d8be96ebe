"""How the storage holds: crowds, snapshots, topics, backlog, fairness, latency, cost, waiters, company,
retention, flat, vacuum, rights, partitions, scrape.

An hour and a half.

All on one throw-away server. `make bench` measures the rates themselves, against a plain INSERT.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from support.server import Server

from bench import (
    SETTINGS,
    backlog,
    company,
    cost,
    crowds,
    fairness,
    flat,
    kinds,
    latency,
    partitions,
    retention,
    rights,
    scrape,
    snapshot,
    topics,
    vacuum,
    waiters,
)
from bench.ground import Ground
from bench.section import Section

_COMMAND = "PYTHONPATH=tests .venv/bin/python -m bench.heart"
_NAMES = (
    "crowds",
    "snapshot",
    "topics",
    "backlog",
    "fairness",
    "latency",
    "cost",
    "waiters",
    "company",
    "retention",
    "flat",
    "vacuum",
    "rights",
    "partitions",
    "scrape",
)


def main() -> None:
    options = _options()
    sections: dict[str, Section] = {}
    failed = []
    server = Server(int(os.environ.get("INTURN_TEST_PG", "18")), extra_settings=SETTINGS, on_disk=True)
    try:
        server.start()
        ground = Ground(server, quick=options.quick, plots=options.plots)
        facts = _facts(server)
        for name, measure in _measures(options, ground).items():
            print(f"{name}:", file=sys.stderr, flush=True)
            started_at = time.monotonic()
            try:
                sections[name] = measure()
            except Exception:  # noqa: BLE001 - half an hour of figures is not to be lost by the last of them
                traceback.print_exc()
                failed.append(name)
            print(f"  took {time.monotonic() - started_at:.0f} s", file=sys.stderr, flush=True)
            if options.markdown:
                options.markdown.parent.mkdir(parents=True, exist_ok=True)
                options.markdown.write_text(_fragment(sections, failed, facts, options))
    finally:
        server.remove()
    _print(sections, failed, facts)
    sys.exit(1 if failed else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.heart",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, not how fast")
    parser.add_argument(
        "--only", nargs="+", choices=_NAMES, default=_NAMES, metavar="MEASURE", help=", ".join(_NAMES)
    )
    parser.add_argument("--held", type=float, help="seconds for which the snapshot is held (default: 600)")
    parser.add_argument(
        "--no-compare", action="store_true", help="only the runs beside the snapshot: half the time"
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=kinds.KINDS,
        default=list(kinds.KINDS),
        metavar="KIND",
        help=f"the appliers beside the snapshot, all at once: {', '.join(kinds.KINDS)} (default: all)",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument(
        "--plots", type=Path, metavar="FOLDER", help="draw the snapshot's rates there, as SVG"
    )
    return parser.parse_args()


def _measures(options: argparse.Namespace, ground: Ground) -> dict[str, Callable[[], Section]]:
    measures: dict[str, Callable[[], Section]] = {
        "crowds": partial(crowds.measure, ground),
        "snapshot": partial(
            snapshot.measure, ground, options.held, options.kinds, compare=not options.no_compare
        ),
        "topics": partial(topics.measure, ground),
        "backlog": partial(backlog.measure, ground),
        "fairness": partial(fairness.measure, ground),
        "latency": partial(latency.measure, ground),
        "cost": partial(cost.measure, ground),
        "waiters": partial(waiters.measure, ground),
        "company": partial(company.measure, ground),
        "retention": partial(retention.measure, ground, options.held),
        "flat": partial(flat.measure, ground),
        "vacuum": partial(vacuum.measure, ground),
        "rights": partial(rights.measure, ground),
        "partitions": partial(partitions.measure, ground),
        "scrape": partial(scrape.measure, ground),
    }
    return {name: measure for name, measure in measures.items() if name in options.only}


def _facts(server: Server) -> str:
    """Return what the figures were taken with."""
    with server.connect() as connection:
        row = connection.execute("SHOW server_version").fetchone()
    return (
        f"PostgreSQL {row[0] if row else server.version} with fsync on, {os.cpu_count()} cores,"
        f" Python {platform.python_version()}, {time.strftime('%B %Y')}"
    )


def _fragment(
    sections: dict[str, Section], failed: list[str], facts: str, options: argparse.Namespace
) -> str:
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    parts = [f"{facts}. Load averages at the end: {load}.\n"]
    for name, section in sections.items():
        command = f"{_COMMAND} --only {name}{' --quick' if options.quick else ''}"
        parts.append(section.markdown(command, options.markdown.parent))
    parts += [f"Not measured, it failed: {name}.\n" for name in failed]
    return "\n".join(parts)


def _print(sections: dict[str, Section], failed: list[str], facts: str) -> None:
    console = Console(width=110)
    for section in sections.values():
        console.print(section.table())
        for note in section.notes:
            console.print(note, highlight=False)
        console.print()
    console.print(facts, highlight=False)
    for name in failed:
        console.print(f"Not measured, it failed: {name}.", highlight=False)


if __name__ == "__main__":
    main()
