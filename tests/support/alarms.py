"""A fleet in whose database everything goes wrong that the alert rules look for, and is put right."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from support.b_server import B
from support.database import Database, until
from support.monitoring import FEWER
from support.process import InturnProcess, inturn_apply
from support.server import free_port

#: Of the alerts that fire when everything is wrong: what their label says that is not the job.
WRONG = {
    ("InturnNoApplier", "alone"),
    ("InturnNoApplier", "alone-hot"),
    ("InturnBehind", "slow"),
    ("InturnBehind", "hot"),
    ("InturnKeysHeld", "held"),
    ("InturnKeysWaiting", "given"),
    ("InturnTargetDown", "down"),
    ("InturnFailing", "failing"),
    ("InturnLeasesLost", "lost"),
    ("InturnHandlersAbandoned", ""),
    ("InturnSnapshotHeld", "session"),
    ("InturnDeadRows", "ticket"),
}
_TOPICS = {
    "well": "",
    "paused": "",
    "held": ", max_attempts => 1",
    "failing": ", max_attempts => 1000000, backoff_base => '20 ms', backoff_cap => '20 ms'",
    "stuck": ", max_attempts => 1, timeout => '100 ms'",
    "slow": ", max_in_flight => 1",
    "lost": ", lease => '1 second'",
    "given": ", numbering => 'given'",
    "hot": ", numbering => 'arrival'",
    "alone": "",
    "alone-hot": ", numbering => 'arrival'",
}
#: Nothing that is about the topic hot can be written into the log.
_REFUSE_HOT = """
    CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'refused'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON inturn.command_log FOR EACH ROW WHEN (NEW.topic = 'hot')
        EXECUTE FUNCTION public.refuse()
"""
#: As if the lease had run out: another applier claims the key.
_TAKE_OVER = """
    DO $$ BEGIN
        UPDATE inturn.key_cursor SET ready_at = clock_timestamp(), lease_until = clock_timestamp()
        WHERE topic = 'lost';
        PERFORM inturn.claim('{lost}'::text[], 1, '1 second', 'another');
    END $$
"""
#: More than the shortened rules want: in transactions; and in rows, of which statistics leave some out.
_TRANSACTIONS, _ROWS = 10_000_000 // FEWER, 3_000_000 // FEWER


class Alarms:
    """What is wrong in a database, and the processes that serve it. Leaving its block ends them.

    Attributes:
        port: where the fleet serves its metrics, also after it was started again.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self._database, self._folder = database, folder
        self._ends, self._snapshot = ExitStack(), database.session()
        self._service = B(port=free_port())
        self._fleet: InturnProcess | None = None
        self.port = free_port()

    def __enter__(self) -> Alarms:
        for topic, settings in _TOPICS.items():
            self._database.execute(f"SELECT inturn.create_topic('{topic}', 'python'{settings})")
        self._database.execute("SELECT inturn.create_topic('down', %s)", [self._service.url])
        self._database.execute("SELECT inturn.pause_topic('paused', 'a test')")
        try:
            self.start_fleet()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._fleet is not None:
            self._fleet.kill()
        self._ends.close()

    def start_fleet(self) -> None:
        """Start what serves all topics but two, and is scraped."""
        fleet = inturn_apply(
            self._database.dsn,
            *("--metrics-port", str(self.port), "--workers", "2"),
            app="support.alarm_app:applier",
            ALARMS=str(self._folder),
        )
        self._fleet = self._ends.enter_context(fleet)
        until(lambda: "serving metrics" in fleet.err, "the fleet serves metrics")

    def kill_fleet(self) -> None:
        assert self._fleet is not None
        self._fleet.kill()

    def go_wrong(self) -> None:
        """Have every alert a reason, but those of scrapes."""
        append = self._append
        self._snapshot.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        self._snapshot.execute("SELECT count(*) FROM pg_class")
        self._database.execute(_REFUSE_HOT)
        for topic in ("alone", "alone-hot", "held", "failing", "stuck", "lost", "hot"):
            append(topic, "a")
        for key in ("a", "b"):  # the fleet takes one of them at a time
            append("slow", key)
        self._database.execute("SELECT inturn.append('given', 'a', 'insert', seq => 2)")
        for number in range(6):
            append("down", f"k{number}")
        self._database.execute(
            "SELECT inturn.append_many('well', array_agg('k' || n), array_agg('insert'::text))"
            " FROM generate_series(1, %s) n",
            [_ROWS],
        )
        self._database.administer(
            f"DO $$ BEGIN FOR i IN 0..{_TRANSACTIONS} LOOP"
            " PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
        )
        leased = "SELECT count(*) FROM inturn.key_cursor WHERE topic = 'lost' AND claimed_by IS NOT NULL"
        until(lambda: self._database.value(leased), "the key that is lost is in hand")
        self._database.execute(_TAKE_OVER)

    def put_right(self) -> None:
        """Do for each what its alert says, or what is at its root."""
        execute = self._database.execute
        self._snapshot.rollback()
        execute("DROP FUNCTION public.refuse() CASCADE")
        execute("SELECT inturn.cancel_rest(topic, 'a', 'a test') FROM unnest('{held,stuck}'::text[]) topic")
        execute("SELECT inturn.append('given', 'a', 'insert', seq => 1)")
        for topic in ("failing", "slow", "lost"):
            (self._folder / topic).touch()
        another = inturn_apply(
            self._database.dsn, "--topic", "alone", "--topic", "alone-hot",
            app="support.alarm_app:another", ALARMS=str(self._folder),
        )  # fmt: skip
        self._ends.enter_context(another)
        self._ends.enter_context(self._service)
        execute("VACUUM inturn.ticket")

    def hide_topics(self) -> None:
        """Take away what a scrape of the topics needs, as a restore without privileges does."""
        self._database.execute("REVOKE EXECUTE ON FUNCTION inturn.topic_metrics() FROM inturn_applier")

    def show_topics(self) -> None:
        self._database.execute("GRANT EXECUTE ON FUNCTION inturn.topic_metrics() TO inturn_applier")

    def _append(self, topic: str, key: str) -> None:
        self._database.execute("SELECT inturn.append(%s, %s, 'insert')", [topic, key])
