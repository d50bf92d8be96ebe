"""Answers over HTTP that say too much, or nothing that can be read: each counts for its own post alone."""

from __future__ import annotations

import asyncio

import pytest
from support.b_server import (
    B,
    Post,
    answer,
    apply_all,
    assert_in_turn,
    at_work,
    open_topic,
    put,
    state,
    wait_applied,
)
from support.database import Database


@pytest.mark.parametrize(
    "answered",
    [
        b"HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{}",
        answer() + answer(500),
    ],
)
def test_what_comes_after_an_answer_does_not_make_the_next_command_take_effect_twice(
    database: Database, b: B, answered: bytes
) -> None:
    open_topic(database, b.url, "max_attempts => 1")

    async def say(_: Post, writer: asyncio.StreamWriter) -> None:
        writer.write(answered)

    b.say = say
    put(database, "a", "one", "two", "three", "four")
    outcome = apply_all(database)
    assert (outcome.commands, outcome.failures) == (4, 0)
    assert [post.seq for post in b.log] == [1, 2, 3, 4]


def test_a_second_answer_to_a_command_is_not_taken_for_that_of_the_next(database: Database, b: B) -> None:
    open_topic(database, b.url)

    async def say(post: Post, writer: asyncio.StreamWriter) -> None:
        writer.write(answer() + answer() if post.seq == 1 else answer(422))

    b.say = say
    put(database, "a", "one", "two", "three")
    assert apply_all(database).commands == 1
    assert state(database, "a")[:2] == ("held", 1)
    assert [post.seq for post in b.log] == [1, 2]


def test_connections_are_kept_after_answers_that_end_as_they_say(database: Database, b: B) -> None:
    open_topic(database, b.url)
    put(database, "a", "one", "two", "three", "four")
    assert apply_all(database).commands == 4
    assert b.connections == 1
    assert_in_turn(database, b.log)


def test_what_is_no_answer_on_a_kept_connection_is_a_failed_attempt(database: Database, b: B) -> None:
    """It is not as if the connection had been closed: B is there, and has read the post."""
    open_topic(database, b.url)

    async def say(post: Post, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n" if (post.seq, post.attempt) == (2, 1) else answer())

    b.say = say
    put(database, "a", "one", "two")
    with at_work(database):
        wait_applied(database)
    assert [(post.seq, post.attempt) for post in b.log] == [(1, 1), (2, 1), (2, 2)]
    assert [post.connection for post in b.log] == [1, 1, 2]
