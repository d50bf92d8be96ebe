"""Strings in the SQL: what a backslash in them means, and whose name they say."""

from __future__ import annotations

import re

from support.database import Database
from support.roles import OWNER

from inturn.schema.receiver import receiver_script
from inturn.schema.source import rename, script

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
