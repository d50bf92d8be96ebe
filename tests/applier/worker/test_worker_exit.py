"""What `inturn apply` says and returns when it cannot work, or when keys are held."""

from __future__ import annotations

from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo
from support.b_server import open_topic, put_keys
from support.database import Database, set_revision
from support.process import run_apply, run_inturn
from support.server import Server
from support.shop import append, append_keys, count_applied, open_shop

PASSWORD = "s3cret-p4ssword"


def _one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("inturn: ")
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize("mode", [(), ("--drain",)])
@pytest.mark.parametrize("form", ["uri", "keywords"])
def test_a_database_that_is_down_is_said_in_one_line_without_the_password(
    mode: tuple[str, ...], form: str
) -> None:
    dsn = (
        f"postgresql://me:{PASSWORD}@127.0.0.1:1/shop"
        if form == "uri"
        else f"host=127.0.0.1 port=1 user=me password={PASSWORD} dbname=shop"
    )
    code, out, err = run_apply(dsn, *mode)
    assert code == 4
    assert PASSWORD not in out + err
    assert "cannot connect" in _one_line(err)


def test_a_wrong_password_is_not_repeated(server: Server) -> None:
    dsn = make_conninfo(server.dsn("no_such_database"), password=PASSWORD)
    code, out, err = run_apply(dsn, "--drain")
    assert code == 4
    assert PASSWORD not in out + err
    assert "no_such_database" in _one_line(err)


@pytest.mark.parametrize(
    ("version", "said", "remedy"),
    [
        ("0000", "older than", "inturn upgrade"),
        ("9999", "newer than", "pip install --upgrade inturn"),
    ],
)
@pytest.mark.parametrize("mode", [(), ("--drain",)])
def test_a_schema_of_another_version_is_said_in_one_line_with_the_remedy(
    database: Database, version: str, said: str, remedy: str, mode: tuple[str, ...]
) -> None:
    open_shop(database)
    append(database, "a", "insert")
    set_revision(database, version)
    code, _, err = run_apply(database.dsn, *mode)
    assert code == 5
    line = _one_line(err)
    assert said in line
    assert remedy in line
    assert count_applied(database) == 0


def test_a_database_without_the_schema_is_said_in_one_line_with_the_remedy(
    empty_database: Database,
) -> None:
    code, _, err = run_apply(empty_database.dsn, "--drain")
    assert code == 5
    assert "inturn upgrade" in _one_line(err)


def test_held_keys_are_said_and_returned_after_the_others_were_applied(database: Database) -> None:
    open_shop(database, settings="max_attempts => 1")
    append_keys(database, 3, name="fail")
    append_keys(database, 10, prefix="good")
    code, out, _ = run_apply(database.dsn, "--drain")
    assert code == 3
    assert count_applied(database) == 10
    assert len(out.splitlines()) == 1
    for part in ("applied 10 commands", "3 failed", "3 keys held"):
        assert part in out
    code, out, _ = run_apply(database.dsn, "--drain")
    assert code == 3, "they are still held, though this run did nothing"
    assert "3 keys held" in out


def test_a_run_with_nothing_to_do_is_fine_and_silent_when_quiet(database: Database) -> None:
    open_shop(database)
    code, out, _ = run_apply(database.dsn, "--drain")
    assert code == 0
    assert out.startswith("applied 0 commands")
    code, out, _ = run_apply(database.dsn, "--drain", "--quiet")
    assert (code, out) == (0, "")
    append(database, "a", "insert")
    code, out, _ = run_apply(database.dsn, "--drain", "--quiet")
    assert (code, out.startswith("applied 1 command ")) == (0, True)


def test_topics_that_cannot_be_served_are_refused_by_name(database: Database) -> None:
    open_shop(database)
    for args, said in (
        (("--topic", "nosuch"), "topic 'nosuch' does not exist"),
        (("--topic", "shop"), "no handler of it was given"),
    ):
        code, _, err = run_apply(database.dsn, "--drain", *args, app=None)
        assert code == 1
        assert said in _one_line(err)


def test_a_drain_without_any_topic_to_serve_says_what_is_missing(database: Database) -> None:
    open_shop(database)
    code, _, err = run_apply(database.dsn, "--drain", app=None)
    assert code == 1
    assert "no topic to serve" in err
    assert "--app" in err


def test_only_the_named_topics_are_served(database: Database) -> None:
    open_shop(database)
    database.execute("SELECT inturn.create_topic('other', 'sql:app.apply')")
    database.execute("SELECT inturn.append('other', 'o', 'insert')")
    append(database, "a", "insert")
    assert run_apply(database.dsn, "--drain", "--topic", "other")[0] == 0
    assert database.execute("SELECT key FROM app.witness") == [("o",)]
    assert run_apply(database.dsn, "--drain")[0] == 0
    assert database.execute("SELECT key FROM app.witness ORDER BY id") == [("o",), ("a",)]


def test_an_app_that_cannot_be_used_is_said_in_one_line_with_what_helps(
    database: Database, tmp_path: Path
) -> None:
    open_shop(database)
    (tmp_path / "needy.py").write_text("import nosuch\n")
    for app, code, said, helps in (
        ("support.shop", 2, "names no applier", "Write MODULE:NAME"),
        ("support/shop.py:applier", 2, "names no applier", "Write MODULE:NAME"),
        ("shop.py:applier", 2, "names no applier", "Write MODULE:NAME"),
        ("nosuch.module:applier", 1, "cannot be loaded: ModuleNotFoundError", "Run it in the folder"),
        ("support.nosuch:applier", 1, "cannot be loaded: ModuleNotFoundError", "Run it in the folder"),
        ("needy:applier", 1, "cannot be loaded: ModuleNotFoundError", "python -c 'import needy'"),
        ("support.shop:nosuch", 1, "cannot be loaded: AttributeError", "In support.shop there is: "),
        ("support.roles:nosuch", 1, "cannot be loaded: AttributeError", "no Applier in support.roles"),
        ("support.shop:append", 1, "not an inturn.applier.Applier", "Name the Applier"),
    ):
        returned, _, err = run_apply(database.dsn, "--drain", app=app, PYTHONPATH=str(tmp_path))
        assert returned == code, app
        line = _one_line(err)
        assert said in line, app
        assert helps in line, app


@pytest.mark.parametrize("processes", ["1", "2"])
def test_an_app_that_ends_itself_is_said_in_one_line(
    database: Database, tmp_path: Path, processes: str
) -> None:
    """As a script does whose last line is sys.exit(main()): nothing was applied, and all seemed well."""
    open_shop(database)
    (tmp_path / "a_script.py").write_text("import sys\nsys.exit(0)\n")
    code, _, err = run_apply(
        database.dsn, "--processes", processes, app="a_script:applier", PYTHONPATH=str(tmp_path)
    )
    assert code == 1
    assert "--app a_script:applier cannot be loaded: SystemExit: 0" in _one_line(err)


def test_options_out_of_range_are_wrong_usage(database: Database) -> None:
    for args in (("--workers", "0"), ("--max-keys", "0"), ("--max-seconds", "0"), ("--grace", "-1")):
        assert run_inturn(database.dsn, "apply", *args)[0] == 2, args


def test_an_applier_without_the_right_to_apply_is_refused_in_one_line(database: Database) -> None:
    open_shop(database, target="sql")
    append(database, "a", "insert")
    login = f"stranger_{database.name}"
    database.execute(f"CREATE ROLE {login} LOGIN")
    try:
        code, _, err = run_apply(make_conninfo(database.dsn, user=login), "--drain", app=None)
        assert code == 1
        assert "permission denied" in _one_line(err)
    finally:
        database.execute(f"DROP ROLE {login}")


def test_ten_threads_outside_that_do_not_return_end_the_process_with_its_own_code(database: Database) -> None:
    open_topic(database, "python", "timeout => '20 ms', max_attempts => 1")
    put_keys(database, 10)
    code, _, err = run_apply(database.dsn, app="support.stuck:applier")
    assert code == 10, err
    assert "10 handlers did not return within their topic's timeout" in err.splitlines()[-1]
    assert database.value("SELECT count(*) FROM inturn.key_cursor WHERE held_at IS NOT NULL") == 10
