"""Crowds: callers and appliers by the dozen, each in a session and a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Any

from support.database import Database
from support.roles import APPLIER, CALLER
from support.statements import login_of

#: A caller: transactions of one to three keys, low numbers more often, each with one to three commands;
#: some are undone by a savepoint, some transactions roll back. Receipts say which seqs it was given.
#: Keys are taken in byte order, as who appends to several should, or callers would deadlock.
_CALL = """
    CREATE FUNCTION app.append(topic text, key text, name text DEFAULT 'insert') RETURNS void
    LANGUAGE plpgsql AS $$
    DECLARE
        seq constant bigint := inturn.append(topic, key, name);
    BEGIN
        -- A statement of its own: the receipt shows its snapshot, which has to be newer than the append.
        INSERT INTO app.receipt (key, seq) VALUES (key, seq);
    END $$;
    CREATE PROCEDURE app.call(
        topic text, transactions integer, keys integer, prefix text DEFAULT 'k',
        rollbacks double precision DEFAULT 0.2, widest integer DEFAULT 3
    ) LANGUAGE plpgsql AS $$
    DECLARE
        chosen text;
    BEGIN
        FOR n IN 1 .. transactions LOOP
            FOR chosen IN
                SELECT DISTINCT (prefix || floor(keys * power(random(), 3))) COLLATE "C" AS key
                FROM generate_series(1, 1 + floor(random() * widest)::integer)
                ORDER BY key
            LOOP
                FOR m IN 1 .. 1 + floor(random() * widest)::integer LOOP
                    PERFORM app.append(topic, chosen);
                END LOOP;
                IF random() < rollbacks THEN
                    BEGIN
                        PERFORM inturn.append(topic, chosen, 'undone');
                        RAISE no_data_found;
                    EXCEPTION WHEN no_data_found THEN NULL;
                    END;
                END IF;
            END LOOP;
            IF random() < rollbacks THEN
                ROLLBACK;
            ELSE
                COMMIT;
            END IF;
        END LOOP;
    END $$;
"""


class Crowd:
    """Statements that run at the same time, in sessions of their own. Needs the Oracle's tables."""

    def __init__(self, database: Database) -> None:
        database.execute(_CALL)
        self._database = database

    def run(self, statements: list[str], **parameters: Any) -> None:
        """Run every statement in a session of its own, all at once, to the end of the last."""
        start = threading.Barrier(len(statements))

        def one(statement: str) -> None:
            with self._database.connect(**{"user": login_of(statement), **parameters}) as connection:
                start.wait()
                connection.execute(statement)

        together([partial(one, statement) for statement in statements])

    def call(self, callers: int, arguments: str) -> None:
        """Run app.call with these arguments by so many callers at once."""
        self.run([f"CALL app.call({arguments})"] * callers, user=CALLER)

    @contextmanager
    def applying(self, appliers: int, **parameters: Any) -> Iterator[None]:
        """Keep so many sessions at CALL inturn.apply() while the block runs, and then until drained."""
        over = threading.Event()

        def one() -> None:
            with self._database.connect(user=APPLIER, **parameters) as connection:
                while True:
                    last = over.is_set()
                    connection.execute("CALL inturn.apply()")
                    if last and not self._ready():
                        return
                    over.wait(0.001)

        with ThreadPoolExecutor(appliers, "applier") as threads:
            futures = [threads.submit(one) for _ in range(appliers)]
            try:
                yield
            finally:
                over.set()
                gather(futures)

    def _ready(self) -> bool:
        return bool(
            self._database.value(
                "SELECT EXISTS (SELECT FROM inturn.key_cursor k JOIN inturn.topic t ON t.name = topic"
                " WHERE ready_at IS NOT NULL AND target LIKE 'sql:%')"
            )
        )


def together(works: list[Callable[[], None]]) -> None:
    """Do all the works at once, each in a thread of its own."""
    with ThreadPoolExecutor(len(works), "crowd") as threads:
        gather([threads.submit(work) for work in works])


def gather(futures: list[Future[None]]) -> None:
    """Wait for all; raise what the first to fail raised."""
    wait(futures)
    for future in futures:
        future.result()
