"""The metrics port of `inturn apply`: its options, and what serves it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import click

from inturn.applier.metrics.reading import Reader, parts
from inturn.applier.metrics.server import MetricsServer, Said
from inturn.applier.metrics.tallies import Snapshot
from inturn.cli.errors import Failure
from inturn.cli.look.metrics import MISSING, MISSING_HINT
from inturn.cli.run import logs
from inturn.schema.connection import connect

_F = TypeVar("_F", bound=Callable[..., Any])


class Port(NamedTuple):
    """Where to serve metrics."""

    host: str
    number: int


def metrics_options(command: _F) -> _F:
    """Add the options to a command, which gets `metrics_port` and `metrics_host`."""
    port = click.option(
        "--metrics-port",
        type=click.IntRange(0, 65535),
        metavar="PORT",
        help="Serve metrics for Prometheus at this port, under /metrics; 0: any free one, which is logged.",
    )
    host = click.option(
        "--metrics-host",
        default="127.0.0.1",
        show_default=True,
        metavar="ADDRESS",
        callback=_refuse_empty,
        help="Listen at this address; anybody who reaches it may read them. All: 0.0.0.0 or ::.",
    )
    return port(host(command))


def _refuse_empty(_context: click.Context, _option: click.Parameter, address: str) -> str:
    if not address.strip():
        raise click.BadParameter("it is empty, which would be all addresses; write 0.0.0.0 or :: for those")
    return address


@contextmanager
def serving(port: Port | None, dsn: str, schema: str, counted: Callable[[], Snapshot]) -> Iterator[None]:
    """Serve metrics meanwhile, if there is a port.

    Args:
        counted: says what the appliers have counted so far.

    Raises:
        Failure: the extra is not installed, or the port cannot be had.
    """
    if port is None:
        yield
        return
    read = _reading(dsn, schema, counted)
    try:
        server = MetricsServer(port.host, port.number, read)
    except OSError as error:
        raise Failure(
            f"cannot serve metrics at {port.host}, port {port.number}: {error.strerror or error}",
            hint="Choose another --metrics-port, or --metrics-host",
        ) from error
    server.start()
    host = f"[{port.host}]" if ":" in port.host else port.host
    logs.log.info("serving metrics at http://%s:%d/metrics", host, server.port)
    try:
        yield
    finally:
        server.close()


def _reading(dsn: str, schema: str, counted: Callable[[], Snapshot]) -> Callable[[], Said]:
    try:
        from inturn.applier.metrics import exposition
    except ImportError as error:
        raise Failure(MISSING, hint=MISSING_HINT) from error
    # Prepares nothing: it makes each statement once.
    connected = functools.partial(connect, dsn, prepare_threshold=None, application_name="inturn metrics")
    reader = Reader(connected, parts(schema))

    def read() -> Said:
        reading, tallied = reader.read(), counted()
        shown = functools.cache(functools.partial(exposition.expose, reading, tallied))
        return lambda accept: shown(exposition.form_of(accept))

    return read
