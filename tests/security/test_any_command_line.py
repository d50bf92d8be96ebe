"""Any arguments for every command of `inturn`: done, or refused in a line and by a code; never half."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import pytest
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo
from support.database import Database
from support.hostile import (
    DOCUMENTS,
    KEYS,
    SPANS,
    TIMES,
    TOPICS,
    Digest,
    attack,
    one_line,
    shop,
    texts,
    unbroken,
)
from support.logins import login

from inturn.cli.exit_codes import ExitCode
from inturn.cli.main import cli, main
from inturn.schema.install import upgrade

EXAMPLES = 12
#: Those that start servers of their own: tests/cli/test_cli_embedded.py and test_demo.py.
STARTS_SERVERS = {"demo", "embedded start", "embedded status", "embedded stop"}
#: Options that go on until somebody ends them, or start as many processes or editors as they are told to.
ENDLESS = {"watch", "processes", "workers", "metrics_port", "metrics_host", "edit"}
#: What keeps a command from waiting for more.
BOUNDED = {"apply": ["--drain"], "wait": ["--timeout", "0"]}
CALLER, APPLIER, DEPLOYER = {"append", "wait"}, {"apply"}, {"upgrade", "downgrade", "topic", "completion"}
#: Nothing was wrong with the arguments.
DONE = {ExitCode.OK, ExitCode.HELD, ExitCode.FOUND, ExitCode.UNHEALTHY, ExitCode.TIMED_OUT}
REFUSED = {ExitCode.ERROR, ExitCode.USAGE, ExitCode.SCHEMA}


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))
        elif command is not None:
            yield " ".join((*path, name)), command


NAMES = [name for name, _ in _commands(cli)]


def _texts(parameter: click.Parameter) -> st.SearchStrategy[str]:
    """Return what is typed for a parameter: often something that it may be, often nothing of the kind."""
    kind = parameter.type
    likely: tuple[str, ...] = ()
    if isinstance(kind, click.Choice):
        likely = tuple(map(str, kind.choices))
    elif isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
        likely = ("0", "1", "2", "3", "-1", "1000000", "9223372036854775807", "1e3", "nan", "inf")
    elif parameter.name in ("topic", "topics") or kind.name == "topic" or parameter.name == "name":
        likely = TOPICS
    elif kind.name == "key":
        likely = KEYS
    elif parameter.name == "payload":
        likely = DOCUMENTS
    else:
        likely = SPANS + TIMES
    return st.one_of(st.sampled_from(likely), st.sampled_from(likely), texts)


def _typed(parameter: click.Parameter) -> st.SearchStrategy[list[str]]:
    """Return what is typed for a parameter, if it is."""
    if parameter.name in ENDLESS or {"--dsn", "--schema", "--help"} & {*parameter.opts}:
        return st.just([])
    if isinstance(parameter, click.Argument):
        values = _texts(parameter).map(lambda text: [text])
        return values if parameter.required else st.one_of(st.just([]), values)
    option = max(parameter.opts, key=len)
    assert isinstance(parameter, click.Option)
    if parameter.is_flag:
        return st.sampled_from([[], [], [option]])
    given = _texts(parameter).map(lambda text: [f"{option}={text}"])
    return given if parameter.required else st.one_of(st.just([]), st.just([]), given)


def _lines(name: str, command: click.Command) -> st.SearchStrategy[list[str]]:
    """Return the command lines of a command."""
    ordered = sorted(command.params, key=lambda parameter: isinstance(parameter, click.Argument))
    arguments = st.tuples(*map(_typed, ordered))
    nothing: list[str] = []
    more = st.one_of(st.just(nothing), st.just(nothing), texts.map(lambda text: [text]))
    return st.tuples(arguments, more).map(
        lambda drawn: [
            *name.split(),
            *BOUNDED.get(name, []),
            *(text for each in drawn[0] for text in each),
            *drawn[1],
        ]
    )


def _run(arguments: list[str]) -> tuple[int, str, str]:
    """Run `inturn` in this process; return its exit code and what it printed."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main(arguments)
    finally:
        logging.getLogger().handlers[:] = handlers
        logging.getLogger().setLevel(level)
    code = ended.value.code
    return code if isinstance(code, int) else -1, _printed(out), _printed(err)


def _printed(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return bytes(stream.buffer.read()).decode("utf-8", "backslashreplace")


def _wrong(code: int, out: str, err: str) -> str | None:
    """Return what is wrong with how a command ended."""
    if "Traceback" in out + err or "internal error" in err:
        return "an internal error"
    if code not in {*map(int, ExitCode)} - {ExitCode.VIOLATED, ExitCode.UNREACHABLE, ExitCode.INTERRUPTED}:
        return f"exit code {code}"
    if code in REFUSED:
        said = err.splitlines()
        if not said or not said[-1].startswith("inturn: ") or not all(map(one_line, said)):
            return "the refusal is not a line"
        if not set(said[-1]) - set("inturn: "):
            return "the refusal says nothing"
        if code == ExitCode.USAGE and out:
            return "it printed something before it was refused"
    return None


def _dsn(database: Database, name: str) -> str:
    """Return the database as the login that the command belongs to reaches it."""
    first = name.split(maxsplit=1)[0]
    role = "caller" if first in CALLER else "applier" if first in APPLIER else "operator"
    return database.dsn if first in DEPLOYER else make_conninfo(database.dsn, user=f"{database.name}_{role}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(3))
def test_any_command_line_is_done_or_refused_in_a_line(
    witness: Database, part: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    database = shop(witness)
    for role in ("caller", "applier", "operator"):
        login(database, f"inturn_{role}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setenv("PGOPTIONS", "-c client_min_messages=error")
    digest, codes, wrong = Digest(database), set[int](), []
    for name, command in [pair for pair in _commands(cli) if pair[0] not in STARTS_SERVERS][part::3]:
        monkeypatch.setenv("INTURN_DSN", _dsn(database, name))
        try:
            _attack_one(name, command, database, digest, codes)
            assert unbroken(database) == [], name
        except AssertionError as found:
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)
    assert codes & DONE
    assert codes & REFUSED


def _attack_one(
    name: str, command: click.Command, database: Database, digest: Digest, codes: set[int]
) -> None:
    """Run a command as it is not meant to be run."""

    @attack(EXAMPLES, _lines(name, command))
    def _(arguments: list[str]) -> None:
        before = digest.read()
        code, out, err = _run(arguments)
        codes.add(code)
        wrong = _wrong(code, out, err) if not (name == "why" and out) else None  # it says that there is none
        assert wrong is None, f"{wrong}: inturn {arguments}\n{code}\n{out}\n{err}"
        if code in REFUSED:
            assert digest.read() == before, f"half done: inturn {arguments}\n{err}"
        elif arguments[0] == "downgrade":  # it may be what was wanted
            upgrade(database.dsn)


def test_every_command_is_attacked_or_starts_servers() -> None:
    assert {*NAMES} >= STARTS_SERVERS
    assert len(NAMES) - len(STARTS_SERVERS) > 25


def test_a_command_that_ends_in_any_other_way_is_found() -> None:
    """The test above can fail."""
    assert _wrong(1, "", "Traceback (most recent call last):\n") == "an internal error"
    assert _wrong(1, "", "inturn: internal error: KeyError: 'x'\n") == "an internal error"
    assert _wrong(1, "", "") == "the refusal is not a line"
    assert _wrong(2, "", "Usage: inturn [OPTIONS]\nError: no\n") == "the refusal is not a line"
    assert _wrong(2, "half\n", "inturn: no such option: -x\n") == "it printed something before it was refused"
    assert _wrong(1, "", "inturn: \n") == "the refusal says nothing"
    assert _wrong(77, "", "") == "exit code 77"
    assert _wrong(8, "", "") == "exit code 8"
    assert _wrong(0, "done\n", "") is None
    assert _wrong(1, "", "inturn: topic 'x' does not exist\n") is None
