"""The command `inturn demo`: the ordering problem happens, by what people try and by inturn."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from importlib.util import find_spec

import click
from rich.console import Console

from inturn.cli.database import Database, pass_database
from inturn.cli.demo import plan as plans
from inturn.cli.demo import ways
from inturn.cli.demo.database import NUMBERED, make_database, shown_dsn
from inturn.cli.demo.machine import THREADS
from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode
from inturn.cli.terminal.output import Column, print_table

_EPILOG = """\b
Example:
  inturn demo --orders 500 --seed 7"""


@click.command(epilog=_EPILOG, short_help="See the problem happen, and not happen.")
@click.option(
    "--orders",
    type=click.IntRange(6, 10_000),
    metavar="N",
    default=120,
    show_default=True,
    help="How many orders there are.",
)
@click.option(
    "--seed", type=int, metavar="N", default=42, show_default=True, help="Decides the calls and their delays."
)
@pass_database
def demo(database: Database, orders: int, seed: int) -> int:
    """Make the ordering problem happen, in a database of its own (inturn_demo).

    Service A inserts orders at service B and deletes each; it inserts every second
    one again. B is two processes that serve HTTP behind a front; each call takes its
    own time. Five ways to bring the calls to B are compared by what B's database
    holds at the end. The seed decides which calls there are and how long each takes;
    who wins a race is up to the machine.
    """
    if find_spec("httpx2") is None:
        raise Failure("the demo needs httpx2, to post commands", hint="pip install 'inturn[http]'")
    dsn = make_database(database.conninfo)
    calls = sum(map(len, plans.plan(orders, seed)))
    click.echo(
        f"Service A inserts {orders} orders at service B, deletes each, and inserts every\n"
        f"second one again: {calls} commands. B is 2 HTTP processes of {THREADS} threads behind\n"
        "a front. A command is up to 10 ms on its way; then an insert takes up to 30 ms,\n"
        "a delete up to 10.\n"
    )
    with Console(stderr=True, force_terminal=sys.stderr.isatty()).status("") as status:
        results = asyncio.run(_play(dsn, orders, seed, status.update))
    print_table(
        [
            Column("calls reach B by"),
            Column("wrong", right=True),
            Column("lost", right=True),
            Column("doubled", right=True),
            Column("seconds", right=True),
            Column("busiest", right=True),
        ],
        [
            [
                result.title,
                str(result.findings.wrong),
                str(result.findings.lost),
                str(result.findings.doubled),
                f"{result.seconds:.2f}",
                f"{result.findings.busiest:.0%}",
            ]
            for result in results
        ],
    )
    broken = [result.title.strip() for result in results if result.safe and _failed(result)]
    if broken:
        raise Failure(f"not all was in turn by {' and '.join(broken)}", hint="That is a bug: report it")
    _say_what_was_seen(results, orders)
    click.echo(
        "\nTry next:"
        f'\n  export INTURN_DSN="{shown_dsn(dsn)}"'
        "\n  inturn keys"
        f"\n  inturn show order-1 --topic {NUMBERED}"
        "\n  inturn verify"
        f"\n  inturn append {NUMBERED} order-1 delete --seq 4 && inturn why order-1"
        f"\n  inturn append {NUMBERED} order-1 insert --seq 3 && inturn apply --drain"
    )
    return ExitCode.OK


def _say_what_was_seen(results: list[ways.Result], orders: int) -> None:
    direct, lock, _, killed, hot, _, _, arrived, *_, merged = (result.findings for result in results)
    click.echo(
        "\nwrong: orders that exist and should be gone, or the other way round."
        "\nlost, doubled: commands that B never carried out, or once too often."
        "\nbusiest: how much of all the busiest machine carried out."
        f"\n\nDirectly, commands overtook one another: {direct.wrong} of {orders} orders are wrong."
        f"\nA lock keeps commands apart and does not order them: {lock.wrong} are wrong."
        "\nA ring with queues in memory is right while nothing happens. A machine that died"
        f"\ntook {killed.lost} commands along that B had said to have, and {killed.wrong} orders are wrong."
        f"\nWhere one key is hot, one machine did {hot.busiest:.0%} of the work."
        "\nBy inturn all commands took effect in turn, on any machine. Where one died, its"
        "\ncommands went to another, and inturn.accept kept B from doing any twice."
        f"\nThe hot key's callers waited for no lock, and no machine did over {arrived.busiest:.0%}."
        "\nAn insert and a delete that waited together, while B was away, became nothing:"
        f"\n{merged.merged} of {merged.commands} commands were merged, on record, and cost B no work."
    )


def _failed(result: ways.Result) -> bool:
    return any((result.findings.wrong, result.findings.lost, result.findings.doubled))


async def _play(dsn: str, orders: int, seed: int, tell: Callable[[str], None]) -> list[ways.Result]:
    """Go through the ways, one after the other, on the same machines."""
    planned = plans.plan(orders, seed)
    async with ways.scene(dsn, seed, tell) as scene:
        return [
            await ways.direct(scene, planned),
            await ways.lock(scene, planned),
            await ways.ring(scene, planned),
            await ways.ring(scene, planned, killed=True),
            await ways.ring(scene, plans.plan_hot(orders, seed), hot=True),
            await ways.a_appends(scene, planned),
            await ways.a_appends(scene, planned, killed=True),
            await ways.a_appends(scene, plans.plan_hot(orders, seed), hot=True),
            await ways.b_appends(scene, planned),
            await ways.merged(scene, planned),
        ]
