"""The migrations: frozen once released, and together the same as the living files."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files
from pathlib import PurePosixPath

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from support.database import Database
from support.dump import dump
from support.server import Server

from inturn.schema import source
from inturn.schema.version import HEAD

#: SHA-256 of the frozen files, each from its release on. A change to the schema is a new revision, never an
#: edit of these. None is released yet: 0001 is the living files.
RELEASED: dict[str, str] = {}

#: Two functions of one name, each with a file.
OVERLOADED = {"claim_lease": "claim", "fail_lease": "fail"}

#: The folders of the script that hold no functions.
NOT_CHAPTERS = {"tables", "views"}

#: How much of a revision is written by hand, beside the copies of functions that changed; 0001 is all of it.
REVISION_LINES = 300
COPY = re.compile(r"^CREATE (?:OR REPLACE )?(?:FUNCTION|PROCEDURE) .*?^\$\$;$", re.MULTILINE | re.DOTALL)

VERSIONS = files("inturn.schema.revisions.versions")


def alembic_scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(files("inturn.schema") / "revisions"))
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config)


def test_every_released_revision_is_what_it_was() -> None:
    frozen = {
        entry.name: hashlib.sha256(entry.read_bytes()).hexdigest()
        for entry in VERSIONS.iterdir()
        if entry.name.endswith(".sql")
    }
    assert frozen == RELEASED


def test_a_revision_carries_only_what_changed() -> None:
    def by_hand(text: str) -> int:
        return len([line for line in COPY.sub("", text).splitlines() if line.strip()])

    copied = (files("inturn.schema") / "sql" / "append" / "append.sql").read_text("utf-8")
    assert by_hand("ALTER TABLE topic ADD x int;\n" + copied) < by_hand(copied.replace("$$;", "")) / 5
    lines: dict[str, int] = {}
    for entry in VERSIONS.iterdir():
        if entry.name.endswith((".sql", ".py")) and entry.name != "__init__.py":
            number = entry.name.partition("_")[0]
            lines[number] = lines.get(number, 0) + by_hand(entry.read_text("utf-8"))
    del lines["0001"]
    assert {number: size for number, size in lines.items() if size > REVISION_LINES} == {}


def test_the_package_serves_the_newest_revision_and_there_is_one_line_of_them() -> None:
    scripts = alembic_scripts()
    assert scripts.get_heads() == [HEAD]
    assert len(scripts.get_bases()) == 1
    numbers = [script.revision for script in scripts.walk_revisions()]
    # Their order as text is their age: check_version compares them so.
    assert numbers == sorted(numbers, reverse=True)


def test_all_that_the_script_creates_is_known_by_name_to_be_removed(database: Database) -> None:
    # Sequences go with their tables.
    there = database.execute("""
        SELECT DISTINCT coalesce(proname::text, name) FROM pg_depend
        CROSS JOIN LATERAL pg_identify_object(classid, objid, 0)
        LEFT JOIN pg_proc p ON p.oid = objid AND classid = 'pg_proc'::regclass
        WHERE refclassid = 'pg_namespace'::regclass AND refobjid = 'inturn'::regnamespace
          AND type <> 'sequence' ORDER BY 1
    """)
    ours = set(source.created_names(source.script()))
    assert {row[0] for row in there} == ours


@pytest.mark.parametrize("schema", ["inturn", "living"])
def test_the_living_files_build_what_the_migrations_build(
    database: Database, empty_database: Database, server: Server, schema: str
) -> None:
    server.run(
        *("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "--single-transaction"),
        *("-d", empty_database.dsn),
        input=f"CREATE SCHEMA {schema};\n" + source.script(schema),
    )
    assert dump(empty_database, schema) == source.rename(dump(database), schema).replace(
        "Schema: inturn", f"Schema: {schema}"
    ).replace("Name: inturn", f"Name: {schema}")


def test_the_manifest_names_every_sql_file_once() -> None:
    root = files("inturn.schema") / "sql"
    there = {
        f"{folder.name}/{entry.name}"
        for folder in root.iterdir()
        if folder.is_dir()
        for entry in folder.iterdir()
    } | {entry.name for entry in root.iterdir() if entry.name.endswith(".sql")}
    assert sorted(source.manifest()) == sorted(there)


def test_each_function_has_a_file_of_its_own_in_a_chapter_with_a_comment(database: Database) -> None:
    functions = database.execute("""
        SELECT proname::text, obj_description(oid, 'pg_proc') FROM pg_proc
        WHERE pronamespace = 'inturn'::regnamespace ORDER BY 1
    """)
    paths = [PurePosixPath(path) for path in source.manifest()]
    files = [path.stem for path in paths if len(path.parts) == 2 and path.parts[0] not in NOT_CHAPTERS]
    assert [name for name, _ in functions] == sorted(OVERLOADED.get(name, name) for name in files)
    assert [name for name, comment in functions if not comment] == []


def test_an_underscore_marks_what_is_internal_and_nothing_else(database: Database) -> None:
    functions = database.execute("""
        SELECT proname::text, obj_description(oid, 'pg_proc') FROM pg_proc
        WHERE pronamespace = 'inturn'::regnamespace
    """)
    internal = {name for name, comment in functions if comment.startswith(("Internal", "Trigger"))}
    assert internal == {name for name, _ in functions if name.startswith("_")}


def test_the_page_of_chapters_has_every_folder_function_and_grant(database: Database) -> None:
    root = files("inturn.schema") / "sql"
    page = (root / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .*? \| (.*?) \| (.*?) \|", page, re.MULTILINE)
    paths = [PurePosixPath(path) for path in source.manifest()]
    public: dict[str, set[str]] = {}
    for path in paths:
        if len(path.parts) == 2 and path.parts[0] not in NOT_CHAPTERS:
            functions = public.setdefault(path.parts[0], set())
            functions |= {OVERLOADED.get(path.stem, path.stem)} if not path.name.startswith("_") else set()
    assert {chapter: set(re.findall(r"`(\w+)`", names)) for chapter, names, _ in rows} == public
    granted = database.execute("""
        SELECT proname::text, ARRAY(
            SELECT role FROM unnest('{caller,applier,operator,admin}'::text[]) r (role)
            WHERE has_function_privilege('inturn_' || role, p.oid, 'EXECUTE'))
        FROM pg_proc p WHERE pronamespace = 'inturn'::regnamespace AND proname !~ '^_'
    """)
    by = {name: set(roles) for name, roles in granted}
    for chapter, _, roles in rows:
        # A chapter that is internal as a whole is called by the functions of another.
        assert not public[chapter] or set(roles.split(", ")) == set().union(
            *(by[name] for name in public[chapter])
        )


def test_the_header_of_a_public_function_is_shown_with_its_body(database: Database) -> None:
    r"""As by psql's `\sf`: what it does, what it locks, what it raises."""
    functions = database.execute("""
        SELECT proname::text, prosrc FROM pg_proc
        WHERE pronamespace = 'inturn'::regnamespace AND proname !~ '^_'
    """)
    assert [name for name, body in functions if not body.lstrip("\n").startswith("-- ")] == []


#: What is longer: one query over all that is stored; tables of filters and refusals; one transaction's loops,
#: with every operator qualified; append, of which each call of another function would be 3 per cent.
LONG = {"verify": 401, "list_keys": 105, "apply_batch": 136, "_check_topic": 68, "append": 90}


def test_a_function_fits_on_a_screen() -> None:
    root = files("inturn.schema") / "sql"
    long = {}
    for path in map(PurePosixPath, source.manifest()):
        body = (root / str(path)).read_text("utf-8").partition("AS $$\n")[2].partition("\n$$")[0]
        lines = [line for line in body.splitlines() if line.strip() and not line.lstrip().startswith("--")]
        if len(lines) > 60:
            long[path.stem] = len(lines)
    assert long.keys() == LONG.keys()
    assert all(long[name] <= LONG[name] for name in long)
