"""What is advised works where it is pasted: every command line names the schema and the database."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator

import psycopg
import pytest
from support.database import Database
from support.place import ROOT
from support.process import run_inturn
from support.roles import members

from inturn.cli import advice
from inturn.cli.errors import explain
from inturn.cli.main import COMMANDS
from inturn.schema.advice import COMMANDS as ADVISED
from inturn.schema.install import upgrade
from inturn.schema.source import manifest, rename

COMMAND_LINE = re.compile(rf"(?<![\w-])inturn (?:{'|'.join(ADVISED)})\b")
#: Where a command line stands in Python that nothing completes on the spot.
ELSEWHERE = {
    "cli/errors.py": "hints by kind of error: explain completes them",
    "schema/errors.py": "hints by kind of error: whoever raises it completes them",
    "applier/inside/rounds.py": "Fleet.end completes what its workers raise",
    "applier/outside/drain_end.py": "Fleet.end completes what its workers raise",
    "applier/process/connections.py": "a session's name",
    "cli/run/metrics.py": "a session's name",
    "schema/install.py": "a lock's name",
    "cli/demo/database.py": "a mark on its database",
    "cli/demo/command.py": "it says what to set INTURN_DSN to, and its database has the default schema",
}


def test_every_command_that_works_on_a_schema_is_known() -> None:
    commands = {name for section in COMMANDS.values() for name in section}
    assert set(ADVISED) == commands - {"embedded", "completion"}


def test_every_command_line_in_python_is_completed() -> None:
    loose, found = [], set()
    for folder in ("cli", "applier", "outbox", "schema"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            for line in _command_lines(ast.parse(path.read_text("utf-8")), in_cli=folder == "cli"):
                found.add(name)
                if name not in ELSEWHERE:
                    loose.append(f"{name}:{line}")
    assert loose == []
    assert set(ELSEWHERE) <= found, "an exception that is none any more"


def _command_lines(node: ast.AST, *, in_cli: bool) -> Iterator[int]:
    """Yield the lines of strings with a command line that nothing completes; not of docstrings and helps."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.keyword(arg="epilog" | "example" | "help" | "short_help"):
            return
        case ast.Assign(targets=[ast.Name(id="_EPILOG")]):
            return
        case ast.keyword(arg="hint") | ast.Assign(targets=[ast.Name(id="hint")]) if in_cli:
            return  # explain completes it
        case ast.Call(func=ast.Name(id="advised")):
            return
        case ast.Call(func=ast.Name(id="Finding" | "fill")) if in_cli:
            return  # doctor completes it, and why
        case ast.Constant(value=str() as text) if COMMAND_LINE.search(text):
            yield node.lineno
    for child in ast.iter_child_nodes(node):
        yield from _command_lines(child, in_cli=in_cli)


def test_every_command_line_in_sql_names_the_schema_that_it_is_installed_in() -> None:
    folder = ROOT / "schema" / "sql"
    words = set()
    for name in manifest():
        text = (folder / name).read_text("utf-8")
        words |= set(re.findall(r"(?<=['\n])inturn ([a-z-]+)", re.sub(r"--.*", "", text)))
        renamed = rename(text, "queue")
        assert not COMMAND_LINE.search(renamed), name
        assert renamed.count("inturn --schema queue ") == len(COMMAND_LINE.findall(text)), name
        assert rename(text, "inturn") == text
    locks = {"process", "numbers", "prunes"}
    assert words - locks <= set(ADVISED), "a command line that is not completed"


@pytest.fixture
def called(called: advice.Called, monkeypatch: pytest.MonkeyPatch) -> advice.Called:
    for name in ("INTURN_DSN", "PGHOST", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    assert called == advice.Called(), "another test has left its own"
    return called


def test_what_users_have_named_stays_as_it_is(called: advice.Called) -> None:
    called.schema = "queue"
    text = "Try: inturn why 'inturn keys' or -- '-it'\"'\"'s inturn keys'; or: inturn topic list"
    completed = text.replace("inturn why", "inturn --schema queue why")
    completed = completed.replace("inturn topic", "inturn --schema queue topic")
    assert advice.advised(text) == completed
    assert advice.advised(completed) == completed
    assert advice.advised("this inturn serves, inturn itself, reinstall inturn") == (
        "this inturn serves, inturn itself, reinstall inturn"
    )


def test_a_database_that_was_named_is_named_again_without_its_password(called: advice.Called) -> None:
    line = 'inturn retry k; psql "$INTURN_DSN" -c "SELECT 1"'
    assert advice.advised(line) == line.replace("$INTURN_DSN", "$(inturn embedded start)")
    called.dsn = "postgresql://ada@db/shop"
    named = f'inturn --dsn {called.dsn} retry k; psql {called.dsn} -c "SELECT 1"'
    assert advice.advised(line) == named
    assert advice.advised(named) == named
    called.schema = "queue"
    assert advice.advised("inturn --schema queue keys") == f"inturn --dsn {called.dsn} --schema queue keys"
    for secret in (
        "postgresql://ada:s3@db/shop",
        "host=db password=s3 dbname=shop",
        "sslpassword=s3 host=db",
    ):
        called.dsn = secret
        assert "s3" not in advice.advised(line)
        assert advice.advised(line).count("***") == 2
    called.dsn = "host="
    assert advice.advised("inturn keys") == "inturn --dsn host= --schema queue keys"
    called.dsn = "post gres"
    assert advice.advised("inturn keys") == "inturn --dsn ... --schema queue keys"


def test_where_the_environment_names_the_database_it_is_not_repeated(
    called: advice.Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert called.dsn is None
    for name in ("PGSERVICE", "PGHOST", "INTURN_DSN"):
        monkeypatch.setenv(name, "x")
        assert advice.advised('inturn keys; psql "$INTURN_DSN"') == 'inturn keys; psql "$INTURN_DSN"'


#: What is said in a schema `queue` that has a topic `orders` with one command of key `k`, and by what it is.
SAYINGS = {
    "status": "Start one with: {} apply",
    "doctor": "Start one: {} apply --app MODULE:APPLIER --topic orders; or, if the topic is not in use:"
    " {} pause --topic orders",
    "why k": "$ {} apply --app MODULE:APPLIER --topic orders",
    "show x": "List keys with: {} keys; or ask: {} why x",
    "show k --topic nope": "List them with: {} topic list",
    "verify --key x": "List keys with: {} keys",
    "retry x": "Look for keys like it with: {} why x",
    "wait k 1 --timeout 0 --topic orders": "Find out more by: {} why k --topic orders",
    "topic merge orders": "Set a rule with: {} topic merge orders FIRST THEN BECOMES",
    "topic create orders --max-attempts 2": "Compare with: {} topic list",
    "append nope k insert": "Create it with: {} topic create NAME; or see: {} topic list",
    "prune --topic orders": "Say how long to keep what was applied: {} topic set --retain 30d orders",
    "apply --topic orders": "Name the module: {} apply --app MODULE:APPLIER",
    "apply --topic nope": "Create it first: {} topic create nope",
    "downgrade": "Apply them first ({} apply --drain), or lose them with --force",
}


def test_every_command_line_that_is_printed_names_database_and_schema(empty_database: Database) -> None:
    """One installation in another schema, and what each command says there, all of them with --dsn."""

    def said(line: str) -> str:
        named = ["--dsn", empty_database.dsn, "--schema", "queue"]
        _, out, err = run_inturn("host=nowhere", *line.split(), *named, COLUMNS="300")
        return re.sub(r"inturn --dsn (?:'[^']*'|\S+) --schema queue(?= )", "{}", out + err)

    assert "Install it with: {} upgrade" in said("keys")
    upgrade(empty_database.dsn, schema="queue")
    empty_database.execute(members("queue"))
    for line in ("topic list", "status"):
        assert "Create one with: {} topic create NAME" in said(line)
    said("topic create orders")
    said("append orders k insert")
    wrong = {line: found for line, says in SAYINGS.items() if says not in (found := said(line))}
    assert wrong == {}


def test_a_line_that_was_printed_can_be_pasted(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('orders'), inturn.append('orders', 'it''s', 'insert')")
    _, _, err = run_inturn("host=nowhere", "show", "its", "--dsn", database.dsn)
    why = shlex.split(err.partition("or ask: ")[2])
    code, out, _ = run_inturn("host=nowhere", *why[1:], "--json")
    assert code == 1
    (answer,) = json.loads(out)
    again = shlex.split(answer["to_do"][-1])
    code, out, _ = run_inturn("host=nowhere", *again[1:], "--json")
    assert (code, json.loads(out)[0]["cause"]) == (0, "no_applier")


def test_a_role_of_inturn_that_is_gone_is_advised_to_be_made_in_any_language() -> None:
    for said in ('role "inturn_admin" does not exist', "Rolle »inturn_admin« existiert nicht"):
        line, _ = explain(psycopg.errors.UndefinedObject(said))
        assert line.endswith("Have the owner of the schema, or a superuser, run: inturn upgrade"), line
    assert "upgrade" not in explain(psycopg.errors.UndefinedObject('type "shelf" does not exist'))[0]


def test_a_login_that_does_not_inherit_its_role_is_told_how_to_take_it() -> None:
    line, _ = explain(psycopg.errors.InsufficientPrivilege("permission denied for schema inturn"))
    assert line.endswith("where it has that and does not inherit it: PGOPTIONS='-c role=inturn_operator'")
