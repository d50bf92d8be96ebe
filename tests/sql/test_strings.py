"""Strings in the SQL: what a backslash in them means, and whose name they say."""

from __future__ import annotations

import re
import shlex
from typing import Any

import psycopg
from support.database import Database
from support.place import ROOT
from support.refusal import refusal
from support.roles import APPLIER, OPERATOR, OWNER

from inturn.cli.look import why
from inturn.cli.terminal.output import escape
from inturn.schema.advice import COMMANDS
from inturn.schema.receiver import receiver_script
from inturn.schema.source import manifest, rename, script

#: A string, with what is written below it as a part of it.
_STRING = re.compile(r"(?<![\w$'])(E?)'(?:[^'\n]|'')*'(?:\s*\n\s*'(?:[^'\n]|'')*')*")


def test_a_backslash_stands_in_strings_alone_in_which_it_always_means_the_same() -> None:
    text = re.sub(r"--[^\n]*", "", script() + receiver_script())
    strings = [*_STRING.finditer(text)]
    assert any(found[1] and "\\" in found[0] for found in strings)
    assert [found[0] for found in strings if not found[1] and "\\" in found[0]] == []


def test_texts_are_read_and_cut_the_same(database: Database) -> None:
    calls = """
        SELECT inturn._shorten('the password  is missing', 100), inturn._is_encoded_twice('"  {}"'),
               inturn._address_problem('http://[::1]:80/{name}')
    """
    with database.connect(user=OWNER) as owner:
        owner.execute("SET standard_conforming_strings = off")
        assert owner.execute(calls).fetchall() == [("the password is missing", True, None)]


def test_two_schemas_of_one_database_share_no_advisory_lock() -> None:
    """A pass over the topic of one would wait for the passes over that of the other."""
    names = re.findall(r"hashtextextended\('([^']+)'", rename(script(), "other"))
    assert len(names) == 6
    assert [name for name in names if not name.startswith("other.")] == []


#: A string with a command line of inturn in it, and whether something follows it.
_ADVISES = re.compile(
    rf"(E?'(?:[^']|'')*?\binturn (?:{'|'.join(COMMANDS)})\b(?:[^']|'')*')(\s*\|\||(?=\s*,\s*'\{{topic\}}'))?"
)
#: What tells a number, which needs no quotes, and what is a remark.
_HARMLESS = re.compile(r"(?:--seq|\{key\}) %s|  # .*")
#: Where a command line in SQL names what users have named.
_NAMING = {"prune/_check_prune.sql", "sql_target/_sql_topic.sql", "sql_target/_target_refusal.sql"}
#: What users may call a topic.
_NAMES = (
    *("orders", "two words", "it's", 'so "called"', "$HOME `id`", "-dash", "--", "-it's", "#1", "~"),
    *("a=b", "=a", "*", "; ls", "back\\slash", "{key}", "größe", "a\tb", "&", "!x", "'", "\\'"),
)


def test_every_command_line_in_sql_that_names_something_of_a_users_quotes_it() -> None:
    naming = set()
    for name in manifest():
        text = re.sub(r"--(?!\w|\s?').*", "", (ROOT / "schema" / "sql" / name).read_text("utf-8"))
        for found in _ADVISES.finditer(text):
            goes_on = found[2] is not None and not found[1].endswith("\\n'")  # a line of its own follows
            if goes_on or "%" in _HARMLESS.sub("", found[1]):
                naming.add(name)
        if "to_run" in text and "replace(" in text:
            naming.add(name)
        assert name not in naming or "inturn._shell_word(" in text, name
    assert naming == _NAMING


def test_whatever_a_topic_is_called_what_sql_advises_can_be_pasted(database: Database) -> None:
    database.execute("SELECT inturn.create_topic(n) FROM unnest(%s::text[]) n", [list(_NAMES)])

    def line(by: psycopg.Connection[Any], query: str, name: str) -> list[str]:
        hint = refusal(by, query, [name]).hint
        return shlex.split(hint[hint.index("inturn ") :])

    with database.connect(user=OPERATOR) as operator, database.connect(user=APPLIER) as applier:
        for name in _NAMES:
            last = ["--", name] if name.startswith("-") else [name]
            keep = ["inturn", "topic", "set", "--retain", "30d", *last]
            assert line(operator, "SELECT inturn.prune_batch(%s)", name) == keep
            apply = ["inturn", "apply", "--app", "MODULE:APPLIER", "--topic", name]
            assert line(applier, "CALL inturn.apply(ARRAY[%s])", name) == apply


def test_what_the_command_line_puts_into_such_lines_can_be_pasted_too() -> None:
    places = "inturn keys --topic {topic} --key {key}  inturn topic set --retain 30d {topic}"
    for name in _NAMES:
        last = ["--", name] if name.startswith("-") else [name]
        _, _, _, topic, _, key, *rest = shlex.split(why.fill(places, name, "a\\"))
        assert (topic, key, rest[4:]) == (escape(name), "a\\\\", ["30d", *last[:-1], escape(name)])


def test_a_target_that_is_to_be_set_again_is_named_so_that_a_shell_takes_it(database: Database) -> None:
    target = 'sql:app."apply it\'s $HOME"'
    database.execute("""
        CREATE SCHEMA app;
        CREATE FUNCTION app."apply it's $HOME"(command inturn.command) RETURNS void LANGUAGE sql AS '';
    """)
    database.execute("SELECT inturn.create_topic('orders', %s)", [target])
    database.execute("UPDATE inturn.topic SET target_owner = 'somebody', target_owner_id = '1/1'")
    (line,) = database.execute("SELECT (inturn._target_refusal(t)).to_do FROM inturn.topic t")[0]
    assert shlex.split(line.partition("  # ")[0]) == ["inturn", "topic", "set", "--target", target, "{topic}"]
