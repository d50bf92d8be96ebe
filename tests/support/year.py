"""A year in the life of a system, a day at a time: its load, its nights, and what happens to it.

A day passes by moving every time that inturn has stored back by a day, in every column of every table of
its own, as the catalog has them. inturn only compares these times with each other and with the clock, so for
it the clock has moved on by a day. What living sessions say of themselves is left out: it is in unlogged
tables, and no older than they are.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg.conninfo import make_conninfo

from inturn.schema.source import DEFAULT_SCHEMA
from support import roles
from support.database import Database, until
from support.moved import CopiedServer, database_on
from support.process import run_inturn
from support.scrape import Samples, read, scrape
from support.server import Server, free_port
from support.shop import TOPIC, open_shop
from support.watch import Watch

#: For a fleet that has to connect again first, on a busy machine.
PATIENCE = 120.0
RETAIN_DAYS, FORGET_DAYS = 7, 14
#: The topics beside that of the shop: see year_app.
_OTHERS = {
    "bank": "max_attempts => 1000, backoff_base => '10 ms'",
    "numbered": "numbering => 'given'",
    "letters": "max_in_flight => 1",
    "stuck": "timeout => '100 ms', max_attempts => 1",
}
_KEPT = f"retain => '{RETAIN_DAYS} days', retain_idempotency => '{RETAIN_DAYS} days'"
_FORGOTTEN = f"forget_idle_after => '{FORGET_DAYS} days'"
_PORT = 5432
_HOT_KEYS, _NEW_KEYS = 5, 5
_TIMES = """
    SELECT format('UPDATE %s SET %s', c.oid::regclass, string_agg(
        format('%1$I = %1$I - interval ''1 day''', a.attname), ', '))
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace = %s::regnamespace AND c.relkind = 'r' AND c.relpersistence = 'p'
      AND a.atttypid = 'timestamptz'::regtype AND NOT a.attisdropped
    GROUP BY c.oid ORDER BY c.oid
""".replace("'UPDATE %s SET %s'", "'UPDATE %%s SET %%s'").replace("%1$I", "%%1$I")
_TABLES = f"""
    SELECT oid::regclass::text FROM pg_class
    WHERE relnamespace = '{DEFAULT_SCHEMA}'::regnamespace AND relkind = 'r' AND relpersistence = 'p'
"""


#: Of a standby: what was committed is there, too, and what it is promoted to waits for no other.
_STANDBY = """
primary_conninfo = '{conninfo} application_name=standby'
synchronous_standby_names = ''
hot_standby = on
"""
_IN_STEP = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"


class Year:
    """The system, and what it has been given to do so far.

    Attributes:
        database: the one that it lives in now.
        address: a folder in which appliers find the socket of its server, whichever that is now: what a name
            in the DNS, or an address that moves, is elsewhere.
        signs: a folder whose files tell handlers what goes wrong.
        day: the number of the day.
        appended: commands that were committed, and whose effect is written down.
        given: the highest number that a caller gave.
        port: where the appliers serve their metrics, when there are any.
        scraped, printed: watch these metrics, and those that `inturn metrics` prints.
    """

    def __init__(self, database: Database) -> None:
        open_shop(database, settings=f"max_attempts => 1, {_KEPT}, {_FORGOTTEN}")
        for topic, settings in _OTHERS.items():
            forgotten = "" if topic == "numbered" else f", {_FORGOTTEN}"
            database.execute(f"SELECT inturn.create_topic('{topic}', {settings}, {_KEPT}{forgotten})")
        self.database = database
        self.day = self.appended = self.given = 0
        self.port = free_port()
        self.scraped, self.printed = Watch(self._served, PATIENCE), Watch(self._printed, PATIENCE)
        self.address = Path(tempfile.mkdtemp(prefix="inturn-address-"))
        self.signs = Path(tempfile.mkdtemp(prefix="inturn-signs-"))
        self._first = database.server
        self._move_to(database)

    @property
    def dsn(self) -> str:
        """How the system is reached, today and after it has moved."""
        return make_conninfo(host=str(self.address), port=_PORT, user=roles.OWNER, dbname=self.database.name)

    def _move_to(self, database: Database) -> None:
        server = database.server
        newer = self.address / "newer"
        newer.symlink_to(server.directory / f".s.PGSQL.{server.port}")
        newer.rename(self.address / f".s.PGSQL.{_PORT}")
        self.database = database

    @contextmanager
    def standby(self) -> Iterator[CopiedServer]:
        """Give a standby that has whatever was committed; unless it becomes the primary, it is removed."""
        conninfo = self.database.server.dsn(user="postgres").replace("dbname=postgres", "").replace("'", "")
        own = CopiedServer(self.database.server, "standby", extra_settings=_STANDBY.format(conninfo=conninfo))
        try:
            own.start()
            self.database.administer("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            self.database.administer("SELECT pg_reload_conf()")
            until(lambda: self.database.value(_IN_STEP), "the standby is in step", PATIENCE)
            yield own
        finally:
            if self.database.server is not own:
                own.remove()

    def fail_over(self, standby: CopiedServer) -> None:
        """Go on with the standby; the primary was lost."""
        lost = self.database
        standby.promote()
        self._move_to(database_on(standby, lost.name))
        lost.close()
        self._remove(lost.server)

    def end(self) -> None:
        """Let go of where it lives now."""
        self.database.close()
        self._remove(self.database.server)
        shutil.rmtree(self.address)
        shutil.rmtree(self.signs)

    def _remove(self, server: Server) -> None:
        if server is not self._first:  # that is its maker's
            server.remove()

    def work(self) -> None:
        """Append a day's commands: to keys that are used every day, and to keys of this day alone."""
        hot = [f"hot-{number}" for number in range(_HOT_KEYS)] * 4
        new = [f"order-{self.day}-{number}" for number in range(_NEW_KEYS)] * 2
        for keys in (hot, new):
            self.append(*keys)

    def append(self, *keys: str, topic: str = TOPIC, name: str = "insert") -> None:
        self.database.execute(
            "SELECT inturn.append(%s, k.key, %s, jsonb_build_object('text', repeat(md5(n::text), 30)),"
            " idempotency_key => gen_random_uuid()::text) FROM unnest(%s::text[]) WITH ORDINALITY k (key, n)",
            [topic, name, list(keys)],
        )
        self.appended += len(keys)

    def give(self, seq: int) -> None:
        """Append a command whose number the caller gives, to one key: such keys are not forgotten."""
        self.database.execute("SELECT inturn.append('numbered', 'given', 'insert', seq => %s)", [seq])
        self.appended += 1
        self.given = max(self.given, seq)

    def send(self, topic: str, *keys: str) -> None:
        """Append commands whose effect is not written down."""
        self.append(*keys, topic=topic)
        self.appended -= len(keys)

    def skip_held(self) -> None:
        """Skip what has failed for good, as an operator does."""
        self.database.execute(
            "SELECT inturn.skip(topic, key, applied_seq + 1, 'it cannot be') FROM inturn.key_cursor"
            " WHERE held_at IS NOT NULL"
        )

    def wait_drained(self) -> None:
        """Wait until everything was applied by whoever is at work."""
        left = "SELECT EXISTS (SELECT FROM inturn.ticket) OR EXISTS (SELECT FROM inturn.wake_hint)"
        until(lambda: not self.database.value(left), f"drained on day {self.day}", PATIENCE)

    def pass_day(self) -> None:
        """Let the clock move on by a day; see the head of this file."""
        for (statement,) in self.database.execute(_TIMES, [DEFAULT_SCHEMA]):
            self.database.execute(statement)
        # Where passes began is known no more, as after a crash: nothing older than that would be looked for.
        self.database.execute("DELETE FROM inturn.saved_pass")
        self.day += 1

    def prune(self) -> None:
        """Do what cron does at night, as pg_cron would; and what autovacuum does until then."""
        ((_, _, _, done),) = self.database.execute("CALL inturn.prune(max_seconds => 3600)")
        assert done
        for (table,) in self.database.execute(_TABLES):
            self.database.execute(f"VACUUM {table}")

    def size(self) -> int:
        """Return how many bytes the tables of inturn take, with their indexes."""
        query = f"SELECT sum(pg_total_relation_size(t::regclass)) FROM ({_TABLES}) x (t)"
        return int(self.database.value(query))

    def rows(self) -> int:
        """Return how many rows there are in all of them."""
        return sum(
            int(self.database.value(f"SELECT count(*) FROM {table}"))
            for (table,) in self.database.execute(_TABLES)
        )

    def _served(self) -> Samples:
        try:
            return scrape(self.port)
        except OSError:
            return {}  # nobody answers

    def _printed(self) -> Samples:
        code, out, err = run_inturn(self.database.dsn, "metrics")
        assert (code, err) == (0, "")
        return read(out)
