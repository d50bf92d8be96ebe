"""No step of the protocol reads a whole table, however small, nor what others left in an index."""

from __future__ import annotations

import re

import pytest
from support.database import Database
from support.plans import buffers, explain
from support.race import replace_in
from support.roles import APPLIER, CALLER, OWNER

#: In order: each finds what those before it have left.
STEPS = (
    "SELECT inturn.append('orders', 'a', 'insert')",
    "SELECT inturn.append('orders', 'a', 'insert', '{}', 'once')",
    "SELECT inturn.append('given', 'a', 'insert', seq => 1)",
    "SELECT inturn.append('arrival', 'a', 'insert')",
    "SELECT inturn.append_many('orders', '{b,c}', '{insert,insert}')",
    "SELECT * FROM inturn.apply_batch('orders', '-infinity', 10, 'me')",
    "SELECT inturn.append('orders', 'a', 'insert')",
    "SELECT * FROM inturn.claim('{given}'::text[], 1, '1 hour', 'me')",
    "SELECT inturn.renew('given', 'a', 1)",
    "SELECT inturn.advance('given', 'a', 1, 1)",
    "SELECT inturn.release('given', 'a', 1)",
    "SELECT inturn.progress('orders', 'a')",
)


@pytest.mark.parametrize("analyzed", [True, False])
def test_p5_no_step_reads_a_whole_table(witness: Database, analyzed: bool) -> None:
    """Where the planner sees no other way, 17 and older also compile the plan: 30 ms an append."""
    witness.execute(
        "SELECT inturn.create_topic('given', 'python', numbering => 'given'),"
        " inturn.create_topic('arrival', 'python', numbering => 'arrival')"
    )
    if analyzed:
        witness.execute("ANALYZE")
    with witness.connect(autocommit=False, user=OWNER) as connection:
        read = {}
        for step in STEPS:
            connection.execute(step)
            found = connection.execute(
                "SELECT relname FROM pg_stat_xact_user_tables"
                # Of topics there are few here, and some functions leave the planner free to read them all.
                " WHERE schemaname = 'inturn' AND seq_scan > 0 AND relname <> 'topic' ORDER BY 1"
            ).fetchall()
            if found:
                read[step] = [name for (name,) in found]
            connection.commit()
    assert read == {}


LISTENS = "RETURNING EXISTS (SELECT FROM inturn.listener l WHERE "
#: Each looks whether an applier of all topics sleeps: for a new key, for an idle one, and on arrival.
_APPENDS = (
    "SELECT inturn.append('orders', 'new', 'insert')",
    "SELECT inturn.append('orders', 'idle', 'insert')",
    "SELECT inturn.append('arrival', 'new', 'insert')",
)


def _walked_beside_sleeps(database: Database) -> int:
    """Return how many blocks more these read after many sleeps, each a version that a held snapshot keeps."""
    database.execute("SELECT inturn.create_topic('arrival', 'python', numbering => 'arrival')")
    database.execute("SELECT inturn.append('orders', 'idle', 'insert')")
    database.execute("CALL inturn.apply()")
    report = database.session()
    report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    report.execute("SELECT count(*) FROM inturn.ticket")
    database.execute("SELECT inturn.announce_sleep(ARRAY[''])")
    before = _read_by_appends(database)
    database.execute("""
        DO $$
        DECLARE
            place tid := (SELECT l.ctid FROM inturn.listener l);
        BEGIN
            FOR n IN 1..3000 LOOP
                UPDATE inturn.listener SET asleep_until = clock_timestamp() - n % 2 * interval '1 s'
                WHERE ctid = place RETURNING ctid INTO place;
            END LOOP;
        END $$""")
    return _read_by_appends(database) - before


def _read_by_appends(database: Database) -> int:
    read = 0
    with database.connect(user=CALLER, autocommit=False) as connection:
        for append in _APPENDS:
            for _ in range(3):  # the first ones plan
                plan = explain(connection, append)
                connection.rollback()
            read += buffers(plan)
    return read


def test_p5_an_append_walks_over_no_sleep_that_was_announced_before(witness: Database) -> None:
    """Each idle second leaves a version of a row."""
    assert _walked_beside_sleeps(witness) < 8


@pytest.mark.parametrize(
    ("function", "after"),
    [
        ("append", f"clock_timestamp()) {LISTENS}"),
        ("append", f"append.payload) {LISTENS}"),
        ("_wake_key", ""),
    ],
)
@pytest.mark.parametrize("form", ["of its time", "of its topic"])
def test_p5_without_its_form_a_look_at_sleeping_appliers_walks_over_them(
    witness: Database, function: str, after: str, form: str
) -> None:
    """A time that is the statement's bounds the index; one topic or another bounds it on 18 alone."""
    topics = rf"l\.topic \S+ ANY \(ARRAY\[{function}\.topic, ''\]\)"
    edits = {
        "of its time": (
            rf"{topics} AND l\.asleep_until \S+ \S*statement_timestamp\(\)",
            f"l.topic = ANY (ARRAY[{function}.topic, ''])",
        ),
        "of its topic": (topics, f"(l.topic = {function}.topic OR l.topic = '')"),
    }
    pattern, new = edits[form]
    replace_in(witness, function, (re.escape(after).replace("\\ ", " ") + pattern, after + new))
    walks = form == "of its time" or witness.server.version < 18
    assert (_walked_beside_sleeps(witness) > 8) == walks


def _walked_by_a_lease(database: Database, turns: int) -> int:
    """Return how many entries of tickets' index a lease reads, after so many turns beside a held snapshot."""
    database.execute("SELECT inturn.create_topic('outside')")
    report = database.session()
    report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    report.execute("SELECT count(*) FROM inturn.ticket")
    for number in range(1, turns + 2):
        database.execute("SELECT inturn.append('outside', 'a', 'x')")
        database.execute("SELECT * FROM inturn.claim('{outside}'::text[], 1, '1 hour', 'me')")
        if number <= turns:
            database.execute("SELECT inturn.advance('outside', 'a', %s, %s)", [number, number])
            database.execute("SELECT inturn.release('outside', 'a', %s)", [number])
    counter = "SELECT pg_stat_get_xact_tuples_returned('inturn.ticket_pkey'::regclass)"
    read = f"SELECT seq FROM inturn._turn_commands('outside', '{{a}}', '{{{turns + 1}}}', '{{{turns}}}', 9)"
    with database.connect(user=OWNER, autocommit=False) as connection:
        walked = [connection.execute(query).fetchall()[0][0] for query in (counter, read, counter)]
    report.rollback()
    before, seq, after = walked
    assert seq == turns + 1
    return int(after - before)


def test_p5_a_lease_reads_nothing_that_earlier_turns_of_its_key_have_left(witness: Database) -> None:
    assert _walked_by_a_lease(witness, 100) <= 3


def test_p5_a_lease_would_read_it_if_the_ticket_were_not_found_by_its_epoch(witness: Database) -> None:
    replace_in(witness, "_held_keys", (r"\n\s+AND c\.epoch OPERATOR\(pg_catalog\.>=\)[^\n]*", ""))
    assert _walked_by_a_lease(witness, 100) > 100


#: What is done to a key that is named, in order, beside dead tickets of other keys of its topic.
KEY_STEPS = (
    "SELECT key FROM inturn.claim('{orders}'::text[], 1, '1 hour', 'me')",
    "SELECT inturn.renew('orders', 'a', 1)",
    "SELECT inturn.advance('orders', 'a', 1, 1)",
    "SELECT * FROM inturn._record_progress('{orders}', '{a}', '{1}', '{2}', '{false}')",
    "SELECT inturn.pause('orders', 'a', 'test')",
    "SELECT inturn.resume('orders', 'a', 'test')",
    "SELECT inturn.release('orders', 'a', 1)",
    "SELECT key FROM inturn.claim('{orders}'::text[], 1, '1 hour', 'me')",
    "SELECT inturn.fail('orders', 'a', 2, 3, 'test')",
    "SELECT inturn.retry('orders', 'a')",
    "SELECT inturn.cancel_rest('orders', 'a', 'test')",
    "SELECT inturn.append('orders', 'a', 'insert')",
    "SELECT FROM inturn.why('orders', 'a')",
    "SELECT inturn.wait_state('orders', 'a', 5)",
)
#: So many dead entries of the topic there are, and so many a step may read.
_DEAD, _FEW = 2000, 50


@pytest.mark.parametrize("analyzed", [True, False])
def test_p5_no_step_walks_over_what_other_keys_left_in_the_index_of_ready_tickets(
    witness: Database, analyzed: bool
) -> None:
    """With the statistics of a few tickets, the smaller index seems the cheaper one to find a key by."""
    for topic in ("orders", "second", "third"):
        if topic != "orders":
            witness.execute(f"SELECT inturn.create_topic('{topic}', 'python')")
        witness.execute(f"SELECT inturn.append('{topic}', 'a', 'insert') FROM generate_series(1, 4)")
    witness.execute("SELECT FROM inturn.claim('{orders}'::text[], 0, '1 hour', 'me')")
    report = witness.session()
    report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    report.execute("SELECT FROM inturn.topic")
    witness.execute(
        "INSERT INTO inturn.ticket SELECT 'orders', 'k' || n, 0, 0, clock_timestamp() + '1 hour'"
        " FROM generate_series(1, %s) n",
        [_DEAD],
    )
    witness.execute("DELETE FROM inturn.ticket WHERE key <> 'a'")
    if analyzed:
        witness.execute("ANALYZE")
    read = {}
    for number, step in enumerate(KEY_STEPS):
        with witness.connect(user=OWNER, autocommit=False) as connection:
            connection.execute(step)
            ((entries,),) = connection.execute(
                "SELECT pg_stat_get_xact_tuples_returned('inturn.ticket_ready'::regclass)"
            )
            if entries > _FEW:
                read[number, step] = entries
    assert read == {}


#: What looks up a key in key_sequence, and how many of its entries it may read there.
_LOOKS = (
    ("SELECT inturn.append('orders', 'a', 'insert')", 1),
    ("SELECT FROM inturn.apply_batch('orders', '-infinity', 1, 'me')", 1),
    (
        (
            "SELECT FROM inturn._cut_history('orders',"
            " ARRAY[ROW('a', 1, 0, 2, 1, 1, false, NULL, NULL, false)::inturn._cut], now(), now())"
        ),
        1,
    ),
)


def _leave_versions(database: Database, *, analyzed: bool) -> None:
    """Leave of every key what many prunes leave beside a snapshot, which is held to the end."""
    report = database.session()
    report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    report.execute("SELECT FROM inturn.topic")
    database.execute("""DO $$ BEGIN
        FOR i IN 1 .. 3000 LOOP
            UPDATE inturn.key_sequence SET kept_seq = NULL;
        END LOOP;
    END $$""")
    if analyzed:
        database.execute("ANALYZE")


_ENTRIES = "SELECT pg_stat_get_xact_tuples_returned('inturn.key_sequence_pkey'::regclass)"
#: Reads every version; a step that does is nowhere near this few.
_PLAIN, _FEW_ENTRIES = "SELECT FROM inturn.key_sequence WHERE topic = 'orders' AND key = 'a'", 5


@pytest.mark.parametrize("analyzed", [True, False])
def test_p5_no_step_walks_over_the_versions_that_prunes_leave_of_a_key(
    witness: Database, analyzed: bool
) -> None:
    """A held snapshot keeps one for each prune that took something of the key."""
    witness.execute("SELECT inturn.append('orders', 'a', 'insert')")
    _leave_versions(witness, analyzed=analyzed)
    read = {}
    with witness.connect(user=OWNER, autocommit=False) as connection:
        connection.execute("SET enable_seqscan = off")
        connection.execute("SET enable_bitmapscan = off")
        before = 0
        for step in (_PLAIN, *(look for look, _ in _LOOKS)):
            connection.execute(step)
            ((now,),) = connection.execute(_ENTRIES)
            read[step], before = now - before, now
    assert read.pop(_PLAIN) > 10, "the versions are not there: this proves nothing"
    assert {step: found for step, found in read.items() if found > dict(_LOOKS)[step]} == {}


def test_p5_a_turn_does_not_walk_over_those_who_have_waited_for_other_keys(witness: Database) -> None:
    """Planned while few waited, the other index seems as good to find out whether anybody waits at all."""
    witness.execute("SELECT inturn.set_topic('orders', batch_commands => 1)")
    witness.execute("SELECT inturn.append('orders', 'a', 'insert') FROM generate_series(1, 9)")
    waits = (
        "INSERT INTO inturn.waiter (topic, key, until)"
        " SELECT 'orders', n || repeat('k', 400), now() + %s::interval FROM generate_series(1, %s) n"
    )
    witness.execute(waits, ["1 hour", 5])
    witness.execute("ANALYZE inturn.waiter")
    turn = "SELECT FROM inturn.apply_batch('orders', '-infinity', 1, 'me')"
    with witness.connect(user=APPLIER) as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        few = min(buffers(explain(connection, turn)) for _ in range(4))
        witness.execute("DELETE FROM inturn.waiter")
        witness.execute(waits, ["-1 hour", 5000])
        assert min(buffers(explain(connection, turn)) for _ in range(2)) < few + 50


#: Besides: what callers that number do, what numbers, and what looks at a key for a caller that could not.
_MORE_STEPS = (
    "SELECT inturn.append('given', 'a', 'insert', seq => 1)",
    "SELECT inturn.append('given', 'a', 'insert', seq => 3)",
    "SELECT inturn._number_arrivals('{arrival}')",
    "INSERT INTO inturn.wake_hint (topic, key, left_at) VALUES ('orders', 'a', now())",
    "SELECT inturn._take_hints('{orders}')",
    "SELECT inturn.replay('orders', 'a', 1, 'test')",
    "SELECT inturn.progress('orders', 'a')",
    "SELECT inturn._claim_alone('orders', '-infinity', 'me')",
)


@pytest.mark.parametrize("analyzed", [True, False])
def test_p5_nothing_that_is_done_to_a_key_walks_over_its_versions(witness: Database, analyzed: bool) -> None:
    """Leases, operators, retries, hints and numbering; what only looks at keys, as why does, may."""
    witness.execute(
        "SELECT inturn.create_topic('given', 'python', numbering => 'given'),"
        " inturn.create_topic('arrival', 'python', numbering => 'arrival')"
    )
    witness.execute("SELECT inturn.append('orders', 'a', 'insert') FROM generate_series(1, 4)")
    witness.execute("SELECT inturn.append('given', 'a', 'insert', seq => 2)")
    witness.execute("SELECT inturn.append('arrival', 'a', 'insert')")
    witness.execute("SELECT inturn._number_arrivals('{arrival}')")
    _leave_versions(witness, analyzed=analyzed)
    witness.execute("SELECT inturn.append('arrival', 'a', 'insert')")
    read = {}
    for number, step in enumerate((_PLAIN, *KEY_STEPS, *_MORE_STEPS)):
        with witness.connect(user=OWNER, autocommit=False) as connection:
            connection.execute("SET enable_seqscan = off" if step == _PLAIN else "SELECT")
            connection.execute(step)
            ((entries,),) = connection.execute(_ENTRIES)
            if entries > _FEW_ENTRIES and "inturn.why" not in step:
                read[number, step] = entries
    assert read.pop((0, _PLAIN)) > 10, "the versions are not there: this proves nothing"
    assert read == {}


@pytest.mark.parametrize("analyzed", [True, False])
def test_p5_an_applier_does_not_walk_over_the_hints_of_topics_that_nobody_serves(
    witness: Database, analyzed: bool
) -> None:
    """They stay until somebody does; every applier that goes to sleep looks for its own."""
    witness.execute(
        "INSERT INTO inturn.wake_hint SELECT 'nobody', 'k' || n, clock_timestamp()"
        " FROM generate_series(1, %s) n",
        [_DEAD],
    )
    if analyzed:
        witness.execute("ANALYZE inturn.wake_hint")
    walked = (
        "SELECT sum(pg_stat_get_xact_tuples_returned(indexrelid)) FROM pg_index"
        " WHERE indrelid = 'inturn.wake_hint'::regclass"
    )
    with witness.connect(user=OWNER, autocommit=False) as connection:
        connection.execute("SELECT inturn.announce_sleep('{orders}')")
        ((entries,),) = connection.execute(walked)
        assert entries <= _FEW
        connection.execute("SELECT inturn._take_hints('{nobody}')")
        ((entries,),) = connection.execute(walked)
        assert entries > 100, "its own are found so"


#: What an applier does with one key.
_OF_ONE_KEY = (
    "SELECT * FROM inturn.claim('orders')",
    (
        "SELECT inturn.finish('orders', array_agg(c.key), array_agg(c.epoch), array_agg(c.applied_seq + 1),"
        " array_agg(c.applied_seq + 1), 'me') FROM inturn.claim('orders') c"
    ),
)


def _reads(database: Database, step: str, plans: str) -> int:
    """Return how many blocks a step reads in a session that has done it often, planning included."""
    with database.connect(user=OWNER, autocommit=False) as connection:
        connection.execute(f"SET SESSION plan_cache_mode = {plans}")
        connection.commit()
        read = []
        for _ in range(10):
            read.append(buffers(explain(connection, step)))
            connection.rollback()
        # From the sixth on, the server may keep the plan.
        return min(read[6:])


@pytest.mark.parametrize("step", _OF_ONE_KEY)
def test_p5_nothing_is_planned_anew_for_each_key_however_many_are_ready(witness: Database, step: str) -> None:
    """A plan for one key of so many, at this time, would always seem cheaper than one for any number."""
    witness.execute("SELECT inturn.append('orders', 'a', 'insert')")
    witness.execute(
        "INSERT INTO inturn.ticket SELECT 'orders', 'k' || n, 0, 0, clock_timestamp()"
        " FROM generate_series(1, 20000) n"
    )
    witness.execute("ANALYZE")
    assert _reads(witness, step, "auto") == _reads(witness, step, "force_generic_plan")


@pytest.mark.parametrize("merges", [False, True])
def test_p5_a_claim_reads_the_commands_of_all_its_keys_by_one_call(witness: Database, merges: bool) -> None:
    """A call for each took three times as long as the reading, which halved what Python targets apply."""
    witness.execute("CREATE SEQUENCE app.calls; GRANT USAGE ON SEQUENCE app.calls TO PUBLIC")
    replace_in(witness, "_turn_commands", ("\nBEGIN", "\nBEGIN PERFORM nextval('app.calls');"))
    witness.execute("SELECT inturn.create_topic('python')")
    if merges:
        witness.execute("SELECT inturn.merge_rule('python', 'insert', 'delete', 'nothing')")
    for key in ("a", "b", "c"):
        witness.execute("SELECT inturn.append_many('python', %s, '{update,update}')", [[key, key]])
    with witness.connect(autocommit=False, user=APPLIER) as connection:
        found = connection.execute("SELECT key, seq FROM inturn.claim_commands('python', max_keys => 9)")
        assert found.fetchall() == [(key, seq) for key in ("a", "b", "c") for seq in (1, 2)]
    assert witness.value("SELECT last_value FROM app.calls") == 1
