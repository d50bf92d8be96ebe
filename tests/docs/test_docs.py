"""The documentation: its commands print what it shows, its links lead somewhere, its reference is whole.

A line above a block of code says what is done with it:

    <!-- run -->            console: its commands print what is shown; sql, python: it runs without error
    <!-- run: LOGIN -->     sql: the same, as app, worker or ops, rather than who owns the database
    <!-- run until -->      console: the same, asked again until it prints that
    <!-- file: NAME -->     it is what this file holds from here on
    <!-- not run: WHY -->   nothing
    <!-- help: COMMAND -->  it is this command's help

All blocks of a page share one shell in a folder of their own, and a database `shop`. What a page takes for
granted is in a comment at its top: `<!-- prepare`, shell commands, `-->`. INTURN_DSN names the login that
owns the database, which is no superuser; in the how-to pages each command of inturn has a login of its own,
as docs/how-to/give-each-process-a-login.md has it: a page that takes more rights than it says fails.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo
from support import command_help
from support.database import Database, until
from support.place import DOCS, ROOT
from support.roles import DEPLOYER, OWNER
from support.sentences import broken, pages
from support.server import Server
from support.shell import Shell
from support.statements import login_of

import inturn.applier
import inturn.schema.errors
from inturn.cli.exit_codes import ExitCode
from inturn.schema.errors import BY_SQLSTATE
from inturn.schema.install import upgrade
from inturn.schema.receiver import receiver_roles_script
from inturn.schema.source import roles_script, statements

PAGES = sorted(
    [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")), *DOCS.rglob("*.md")]
)
#: With the page that lies beside the SQL.
LINKING = [*PAGES, ROOT / "schema" / "sql" / "README.md"]
#: The pages of others to which ours link. No test follows these links: there may be no internet.
WEB = {
    "https://www.npmjs.com/package/pg",
    "https://www.postgresql.org/docs/current/libpq-pgservice.html",
    "https://www.standardwebhooks.com",
}
REFERENCE = ROOT / "docs" / "reference"
HOW_TO = DOCS / "how-to"

_BLOCK = re.compile(
    r"^(?:<!-- (?P<verb>run until|run|file|not run|help)(?:: (?P<what>[^\n]+?))? -->\n\n?)?"
    r"^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_PREPARE = re.compile(r"^<!-- prepare\n(.*?)^-->$", re.MULTILINE | re.DOTALL)
# What differs from run to run: times, rates, who applied.
_VARIES = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d[\d:.+Z]*"), "TIME"),
    (re.compile(r"\b(?:\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d)\b"), "TIME"),
    (re.compile(r"[\w.-]+:\d+-[0-9a-f]{6}:\d+\b"), "APPLIER"),
    (re.compile(r"backend[ (]\d+\b"), "BACKEND"),
    (re.compile(r"\bsql:\d+\b"), "APPLIER"),
    (re.compile(r"\b\d+(?:\.\d+)? ?(?:ms|s|m)\b"), "SPAN"),
    (re.compile(r" \([\d,]+/s\)"), ""),
    (re.compile(r"\[\d+\] \d+$"), "JOB"),
    (re.compile(r"[-─]{3,}"), "--"),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    verb: str
    what: str
    language: str
    text: str
    line: int
    #: What the page takes for granted from there on.
    prepare: tuple[str, ...]


def _blocks(page: Path) -> list[Block]:
    text, end, blocks = page.read_text(), 0, []
    for found in _BLOCK.finditer(text):
        block = Block(
            found["verb"] or "",
            found["what"] or "",
            found["language"],
            found["text"],
            text.count("\n", 0, found.start("language")) + 1,
            tuple(_PREPARE.findall(text, end, found.start())),
        )
        blocks.append(block)
        end = found.end()
    return blocks


def _dialogue(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block, with its continued lines, and the output shown for it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        count = 1
        while count < len(lines) and (lines[count].startswith("> ") or lines[count] == ">"):
            count += 1
        command = "\n".join([lines[0], *(line[2:] for line in lines[1:count])])
        yield command, "\n".join(lines[count:])


def _settled(output: str) -> list[str]:
    lines = []
    for line in output.replace("\r", "").splitlines():
        settled = line
        for pattern, replacement in _VARIES:
            settled = pattern.sub(replacement, settled)
        if settled.strip():
            lines.append(settled.strip())
    return lines


def _matches(shown: str, printed: str) -> bool:
    """Whether the output is the one shown, in which a line `...` stands for any number of lines."""
    pattern = "".join("(?:.*\n)*?" if line == "..." else re.escape(line) + "\n" for line in _settled(shown))
    return re.fullmatch(pattern, "".join(line + "\n" for line in _settled(printed))) is not None


def _make_logins(database: Database) -> None:
    database.execute(roles_script())
    database.execute(receiver_roles_script())
    for name, role in LOGINS.items():
        if not database.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]):
            database.administer(f"CREATE ROLE {name} LOGIN {role}")
    database.administer(_DEPLOYER.format(database=database.name))


@pytest.fixture(scope="session")
def shop_template(server: Server) -> str:
    """A database in which the deployer has installed the schema, for the pages that begin with that."""
    database = Database(server, "shop_template")
    _make_logins(database)
    upgrade(make_conninfo(database.dsn, user="shop_deployer"))
    database.close()
    return database.name


@pytest.fixture
def shop(request: pytest.FixtureRequest, server: Server) -> Iterator[Database]:
    """The database that the pages call shop, and the logins that a DBA made for it; without the schema,
    unless the page takes it for granted."""
    page = request.node.callspec.params["page"] if hasattr(request.node, "callspec") else None
    granted = page is not None and "<!-- prepare\ninturn upgrade\n" in page.read_text()
    template = request.getfixturevalue("shop_template") if granted else None
    database = Database(server, "shop", template=template)
    there = "SELECT rolname::text FROM pg_roles"
    before = database.execute(there)
    _make_logins(database)
    yield database
    made = [name for (name,) in database.execute(there) if (name,) not in before and name not in LOGINS]
    database.drop()
    with server.connect() as admin:
        for name in made:  # by the page
            admin.execute(f"DROP ROLE {name}")


@pytest.fixture
def shell(shop: Database, tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path, make_conninfo(shop.dsn, user="shop_deployer"), shop.server.binaries)
    yield shell
    shell.close()


#: What a DBA makes, as docs/how-to/give-each-process-a-login.md says.
LOGINS = {
    "shop_deployer": "CREATEROLE",
    "shop_app": "IN ROLE inturn_caller",
    "shop_worker": "IN ROLE inturn_applier",
    "shop_ops": "IN ROLE inturn_operator, pg_signal_backend",
}
#: Besides, some pages are about logins, so it may grant the roles; and in none the tables are the point.
_DEPLOYER = """
    ALTER DATABASE {database} OWNER TO shop_deployer;
    GRANT pg_monitor TO shop_deployer;
    GRANT inturn_caller, inturn_applier, inturn_operator, inturn_admin, inturn_receiver
        TO shop_deployer WITH ADMIN OPTION;
    ALTER DEFAULT PRIVILEGES FOR ROLE shop_deployer IN SCHEMA public
        GRANT ALL ON TABLES TO shop_app, shop_worker, shop_ops;
    ALTER DEFAULT PRIVILEGES FOR ROLE shop_deployer IN SCHEMA public
        GRANT ALL ON SEQUENCES TO shop_app, shop_worker, shop_ops;
"""


def _own_logins() -> str:
    """Return what the pages have in their shell that link to it."""
    (block,) = (b for b in _blocks(HOW_TO / "give-each-process-a-login.md") if b.what == "logins.sh")
    return block.text


def test_the_pages_run_without_a_superuser(shop: Database) -> None:
    powers = "SELECT rolname::text FROM pg_roles WHERE rolname = ANY (%s) AND NOT rolsuper ORDER BY 1"
    assert [name for (name,) in shop.execute(powers, [list(LOGINS)])] == sorted(LOGINS)


def _runs(page: Path) -> bool:
    return any(block.verb in {"run", "run until"} for block in _blocks(page))


# A page may run thirty processes, one after the other.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [p for p in PAGES if _runs(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_print_what_the_page_shows(page: Path, shell: Shell, tmp_path: Path) -> None:
    shell.run(_own_logins() if page.parent == HOW_TO else "export APP_DSN=$INTURN_DSN WORKER_DSN=$INTURN_DSN")
    for block in _blocks(page):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        for commands in block.prepare:
            printed, status = shell.run(commands)
            assert status == 0, f"{where}:\n{printed}"
        if block.verb == "file":
            (tmp_path / block.what).write_text(block.text)
        elif block.verb in {"run", "run until"} and block.language == "console":
            for command, shown in _dialogue(block.text):
                _check(shell, command, shown, where, again=block.verb == "run until")
        elif block.verb == "run":
            program = {
                "sql": f'psql -qX -v ON_ERROR_STOP=1 "${block.what.upper() or "INTURN"}_DSN"',
                "python": "python",
                "sh": "bash -eu",
            }
            (tmp_path / "block").write_text(block.text)
            printed, status = shell.run(f"{program[block.language]} < block")
            assert status == 0, f"{where}:\n{printed}"


@pytest.mark.parametrize("page", sorted(HOW_TO.glob("*.md")), ids=lambda p: p.name)
def test_a_how_to_has_its_deployer_do_nothing_that_is_a_roles(page: Path) -> None:
    """Whatever it shows of SQL and psql: commands of inturn have their logins by what the pages share."""
    shown: list[str] = []
    for block in _blocks(page):
        if block.language == "sql" and block.verb == "run" and not block.what:
            shown += statements(block.text)
        elif block.language == "console" and block.verb in {"run", "run until"}:
            commands = [command for command, _ in _dialogue(block.text)]
            shown += [each for each in commands if re.search(r'\bpsql\b.*"\$INTURN_DSN(?! user=)', each)]
    assert {each: login_of(each) for each in shown if login_of(each) not in {OWNER, DEPLOYER}} == {}


def test_a_how_to_that_names_a_login_says_where_it_comes_from() -> None:
    texts = {page.name: _PREPARE.sub("", page.read_text()) for page in HOW_TO.glob("*.md")}
    using = {name for name, text in texts.items() if re.search(r"\b(APP|WORKER|OPS)_DSN\b", text)}
    where = "give-each-process-a-login.md"
    assert {name for name in using if f"{where}#in-the-other-pages" not in texts[name]} == {where}


def _check(shell: Shell, command: str, shown: str, where: str, *, again: bool) -> None:
    if command.startswith("export INTURN_DSN="):
        return  # ours names the test's server
    printed, _ = shell.run(command)
    if again and not _matches(shown, printed):
        until(lambda: _matches(shown, shell.run(command)[0]), f"{where}: {command}\n{shown}")
    elif not again:
        assert _matches(shown, printed), f"{where}: $ {command}\n{printed}\nshown:\n{shown}"


def test_every_block_says_whether_it_runs() -> None:
    """By a comment above it: one of those at the head of this file, or the name by which a test finds it.

    What is printed says nothing, nor a picture, nor the signatures of functions.
    """
    unmarked = [
        f"{page.relative_to(ROOT)}:{page.read_text().count(chr(10), 0, block.start()) + 1}"
        for page in PAGES
        for block in re.finditer(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        if block[1] not in {"text", "mermaid"} and not block[2].startswith("inturn.")
        if not page.read_text()[: block.start()].rstrip().endswith("-->")
    ]
    assert unmarked == []


def _prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def _words(page: Path) -> str:
    """The same without code and comments."""
    return re.sub(r"`[^`\n]*`|<!--.*?-->", "", _prose(page), flags=re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    prose = _words(page)
    assert re.findall(r'^\[[^]]+\]:|<a |\]\([^)]* "', prose, re.MULTILINE) == [], "not checked here"
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in _anchors(linked), target


def test_links_to_the_web_are_few_and_known() -> None:
    prose = "".join(map(_words, LINKING))
    assert set(re.findall(r"\w+://[^\s)>]+", prose)) == WEB
    assert set(re.findall(r"\]\((\w+:[^)]*)\)", prose)) <= WEB


def test_every_page_is_in_the_index() -> None:
    indexes = [ROOT / "docs" / "README.md", ROOT / "docs" / "decisions" / "README.md"]
    linked = {
        (index.parent / link).resolve()
        for index in indexes
        for link in re.findall(r"\]\(([^)#\s]+)", index.read_text())
    }
    pages = {page for page in PAGES if page.parent != ROOT and page != indexes[0]}
    assert pages - linked == set()


def test_a_page_has_one_sentence_a_line() -> None:
    """So that a change of a sentence is a change of a line: `python -m support.sentences` breaks them."""
    assert [page for page in pages() if broken(page.read_text()) != page.read_text()] == []


def test_named_tests_exist() -> None:
    there = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        there |= {file.stem, *re.findall(r"def (test_\w+)", file.read_text())}
    for page in PAGES:
        assert set(re.findall(r"`(?:\w+::)?(test_\w+)`", page.read_text())) - there == set(), page


def test_the_guards_that_the_protocol_names_exist() -> None:
    guards = "".join(file.read_text() for file in (ROOT / "tests/promises/all/guards").glob("test_*.py"))
    named = re.findall(r"\| _([^|]+)_ \|$", (DOCS / "explanation" / "protocol.md").read_text(), re.MULTILINE)
    assert len(named) > 30
    assert [name for name in named if f'"{name}",' not in guards] == []


def test_what_the_promises_name_lies_under_promises_and_so_runs_on_every_version() -> None:
    there = set()
    for file in (ROOT / "tests" / "promises").rglob("test_*.py"):
        there |= {file.stem, *re.findall(r"def (test_\w+)", file.read_text())}
    page = (DOCS / "explanation" / "promises.md").read_text()
    assert set(re.findall(r"`(?:\w+::)?(test_\w+)`", page)) - there == set()


@pytest.mark.timeout(600)
def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    listed = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in listed.splitlines() if "directory" not in line} == set(
        phony[1].split()
    )


def test_cli_reference_has_every_commands_help() -> None:
    """`PYTHONPATH=tests .venv/bin/python -m support.command_help` writes it."""
    page = (REFERENCE / "cli.md").read_text()
    real = command_help.helps()
    assert {block.what for block in _blocks(REFERENCE / "cli.md") if block.verb == "help"} == set(real)
    assert command_help.rewritten(page, real) == page


def test_cli_reference_has_every_exit_code() -> None:
    shown = re.findall(r"^\| (\d+) \| `(\w+)` \|", (REFERENCE / "cli.md").read_text(), re.MULTILINE)
    assert {(int(number), name) for number, name in shown} == {(int(code), code.name) for code in ExitCode}


def _joined(text: str) -> str:
    """Text without what a line break may add."""
    return re.sub(r"\s+", " ", text).replace("( ", "(").replace(" )", ")").strip()


def test_sql_reference_has_every_public_routine(database: Database) -> None:
    rows = database.execute(
        "SELECT format(E'%s(%s)%s', proname, pg_get_function_arguments(oid),"
        "              CASE prokind WHEN 'f' THEN ' RETURNS ' || pg_get_function_result(oid) ELSE '' END)"
        " FROM pg_proc WHERE pronamespace = 'inturn'::regnamespace"
        " AND proname !~ '^_'"
    )
    blocks = [block.text for block in _blocks(REFERENCE / "sql.md") if block.text.startswith("inturn.")]
    assert sorted(_joined(text) for text in blocks) == sorted(_joined(f"inturn.{row[0]}") for row in rows)


def test_error_reference_has_every_sqlstate() -> None:
    text = (REFERENCE / "errors.md").read_text()
    shown = dict(re.findall(r"^\| `(\w{5})` \| `(\w+)` \|", text, re.MULTILINE))
    assert shown == {sqlstate: error.__name__ for sqlstate, error in BY_SQLSTATE.items()}
    files = [*(ROOT / "schema" / "sql").rglob("*.sql"), *(ROOT / "schema" / "revisions").rglob("*_down.sql")]
    sources = "".join(file.read_text() for file in files)
    # What is caught where it was raised nobody sees.
    caught = set(re.findall(r"WHEN SQLSTATE '(\w{5})'", sources)) - shown.keys()
    raised = set(re.findall(r"ERRCODE = '(\w{5})'", sources)) - caught
    # PostgreSQL's own codes have no exception of ours; the page names them.
    named = {sqlstate for sqlstate in re.findall(r"`(\w{5})`", text) if not sqlstate.startswith("IT")}
    assert raised - shown.keys() - named == set()
    assert {sqlstate for sqlstate in shown if sqlstate.startswith("IT")} - raised == set()


def test_error_reference_says_where_each_exception_is() -> None:
    of_python = (REFERENCE / "errors.md").read_text().partition("These exist only in Python")[2]
    named = set(re.findall(r"^\| `([A-Z]\w+)` \|", of_python, re.MULTILINE))
    assert {"NoHandler", "TargetDown", "TooManyAbandoned", "WorkerEnded"} <= named
    for name in named:
        assert name in inturn.applier.__all__ or hasattr(inturn.schema.errors, name), name


def test_table_reference_has_every_column(database: Database) -> None:
    real: dict[str, list[str]] = {}
    for table, column in database.execute(
        "SELECT relname::text, attname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE relnamespace = 'inturn'::regnamespace AND relkind IN ('r', 'v', 'c') AND attnum > 0"
        " AND NOT attisdropped ORDER BY attnum"
    ):
        real.setdefault(table, []).append(column)
    shown = {}
    for section in re.split(r"^## ", (REFERENCE / "tables.md").read_text(), flags=re.MULTILINE)[1:]:
        name = section.partition("\n")[0].strip("`")
        shown[name] = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert shown == real


def test_settings_reference_has_every_setting_and_its_default(database: Database) -> None:
    real = database.execute(
        "SELECT column_name::text, trim(both '''' FROM split_part(column_default, '::', 1))"
        " FROM information_schema.columns WHERE table_schema = 'inturn' AND table_name = 'topic'"
        " AND column_name NOT IN ('name', 'created_at', 'paused_at', 'paused_until', 'callers',"
        " 'merges', 'target_owner', 'target_owner_id')"
    )
    text = (REFERENCE / "settings.md").read_text()
    shown = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text, re.MULTILINE)
    times = {"00:00:01": "1 second", "00:05:00": "5 minutes", "00:00:30": "30 seconds"}
    without = {"target": "python", "gap_timeout": "none", "timeout": "none", "max_pending": "none"}
    without |= {"retain": "none", "retain_idempotency": "none", "forget_idle_after": "none"}
    assert dict(shown) == {
        name: times.get(default, default) if default else without[name] for name, default in real
    }


def test_the_promises_name_every_violation_that_verify_knows() -> None:
    source = (ROOT / "schema" / "sql" / "verify" / "verify.sql").read_text()
    actions = {"cancel-rest", "fill-gap"}
    known = set(re.findall(r"'([a-z]+(?:-[a-z]+)+)'", source)) - actions
    section = (
        (ROOT / "docs" / "explanation" / "promises.md").read_text().partition("## What verify proves")[2]
    )
    assert set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", section)) == known
