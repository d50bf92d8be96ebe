"""A server whose queue of notifications is full: nothing of inturn's fails by it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from support import shop
from support.database import Database
from support.own_server import own_database
from support.roles import APPLIER, CALLER

#: Half a mebibyte. Only since 17 can it be less than 8 GiB.
_SMALL, _VERSION = "max_notify_queue_pages = 64", 18


@pytest.fixture
def full() -> Iterator[Database]:
    """A shop on a server where a listener is idle in a transaction, behind which no notification fits."""
    with own_database(_VERSION, extra_settings=_SMALL) as database:
        shop.open_shop(database, settings="backoff_base => '4 minutes'")
        listener = database.connect(user=CALLER, autocommit=False)
        listener.execute("LISTEN something")
        listener.commit()
        listener.execute("SELECT 1")
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            database.execute("SELECT pg_notify('any', repeat('x', 7000) || n) FROM generate_series(1, 99) n")
        yield database


def test_a_full_queue_of_notifications_fails_no_append_no_turn_and_no_action(full: Database) -> None:
    """A hint that cannot be sent is left out: who sleeps looks within a second, who waits within ten."""
    full.execute("SELECT inturn.create_topic('arriving', 'sql:app.apply', numbering => 'arrival')")
    full.execute("SELECT inturn.create_topic('given', 'sql:app.apply', numbering => 'given')")
    full.execute("SELECT inturn.set_topic('shop', target => 'sql:app.apply')")
    full.execute("SELECT inturn.announce_sleep('{shop,arriving,given}')")
    shop.append(full, "new", "insert", "fail")
    full.execute("SELECT inturn.append('arriving', 'k', 'insert')")
    full.execute("SELECT inturn.append('given', 'k', 'insert', seq => 1)")
    full.execute("SELECT inturn.announce_wait('shop', 'new')")
    with full.connect(user=APPLIER) as applier:
        assert applier.execute("CALL inturn.apply()").fetchone() == (3, 1)
    assert full.execute("SELECT key, attempts FROM inturn.key_mark") == [("new", 1)]
    full.execute("SELECT inturn.skip('shop', 'new', 2, 'no matter')")
    assert full.value("SELECT applied_seq FROM inturn.key_cursor WHERE key = 'new'") == 2
    with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="too many notifications"):
        full.execute("NOTIFY something")
