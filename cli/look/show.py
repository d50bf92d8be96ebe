"""`inturn show`: one key, its commands, its turns, and what operators did to it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click
from psycopg import Connection, sql

from inturn.cli.database import Database, pass_database
from inturn.cli.errors import Failure
from inturn.cli.look.keys import require_topic
from inturn.cli.terminal.key_text import KEY, TOPIC, resolve, shown
from inturn.cli.terminal.output import (
    Column,
    age,
    duration,
    escape,
    first_line,
    json_option,
    load_payload,
    print_json,
    print_table,
)
from inturn.cli.terminal.rows import Row, fetch

_PAYLOAD_CHARACTERS = 200

# The key's rows are found by their primary keys, topic by topic.
_KEYS = """
SELECT c.topic, c.key, {schema}.key_state(c) AS state,
       c.applied_seq, l.last_seq, coalesce(g.first_at, o.created_at) AS oldest_pending_at,
       CASE t.numbering WHEN 'given' THEN g.pending ELSE l.last_seq - c.applied_seq END AS pending,
       c.epoch, c.attempts, t.max_attempts, c.ready_at, c.failed_at, c.held_at, c.last_error,
       c.paused_at, c.paused_until, t.paused_at AS topic_paused_at, t.paused_until AS topic_paused_until,
       t.first_seq, c.waiting_at, c.waiting_at + t.gap_timeout AS held_from,
       c.claimed_by, c.claimed_at, c.lease_until,
       clock_timestamp() AS now
FROM {schema}.topic t
JOIN {schema}.key_cursor c ON c.topic = t.name
CROSS JOIN LATERAL (
    SELECT greatest(c.applied_seq, (SELECT max(l.seq) FROM {schema}.command_log l
                                    WHERE l.topic = c.topic AND l.key = c.key)) AS last_seq) l
LEFT JOIN {schema}.command_log o ON o.topic = c.topic AND o.key = c.key AND o.seq = c.applied_seq + 1
CROSS JOIN LATERAL (
    SELECT count(*) AS pending, min(l.created_at) AS first_at FROM {schema}.command_log l
    WHERE t.numbering = 'given' AND l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq) g
WHERE c.key = %(key)s AND (%(topic)s::text IS NULL OR t.name = %(topic)s)
ORDER BY c.topic
"""

# most: the most characters of a payload; payloads are large, and not everybody may see them on a screen.
_COMMANDS = """
SELECT l.seq, l.name, left(l.payload::text, %(most)s) AS payload, l.idempotency_key, l.created_at,
       k.skipped_by, k.reason AS skipped_because, k.skipped_at,
       o.before IS NOT NULL AS amended, o.before ->> 'name' AS original_name,
       left((o.before -> 'payload')::text, %(most)s) AS original_payload, a.replay_of, a.replayed_as
FROM {schema}.command_log l
LEFT JOIN {schema}.skip k ON k.topic = l.topic AND k.key = l.key AND k.seq = l.seq
LEFT JOIN LATERAL (
    SELECT a.before FROM {schema}.operator_action a
    WHERE a.topic = l.topic AND a.key = l.key AND a.action = 'amend' AND a.seq = l.seq
    ORDER BY a.id LIMIT 1) o ON true
CROSS JOIN LATERAL (
    SELECT max(a.seq) FILTER (WHERE a.after -> 'seq' = to_jsonb(l.seq)) AS replay_of,
           (array_agg(a.after -> 'seq') FILTER (WHERE a.seq = l.seq))[1] AS replayed_as
    FROM {schema}.operator_action a
    WHERE a.topic = l.topic AND a.key = l.key AND a.action = 'replay') a
WHERE l.topic = %(topic)s AND l.key = %(key)s
  AND l.seq > %(applied_seq)s - %(limit)s AND l.seq <= coalesce((
      SELECT max(n.seq) FROM (
          SELECT n.seq FROM {schema}.command_log n
          WHERE n.topic = %(topic)s AND n.key = %(key)s AND n.seq > %(applied_seq)s
          ORDER BY n.seq LIMIT %(limit)s) n),
      %(applied_seq)s)
ORDER BY l.seq
"""

# Numbers in payloads may be out of Python's range: they come as text.
_TIMELINE = """
SELECT at, kind, epoch, from_seq, to_seq, what, done_by, os_user, acting_as, started_at, says,
       before::text AS before, after::text AS after
FROM {schema}.timeline(%(topic)s, %(key)s, %(limit)s)
"""

# Of the key, and of its topic: its key is the empty one.
_PAUSES = """
SELECT a.key = '' AS whole, a.reason, a.db_user, a.os_user, a.acting_as
FROM unnest(ARRAY['', %(key)s]) k (key) CROSS JOIN LATERAL (
    SELECT a.* FROM {schema}.operator_action a
    WHERE a.topic = %(topic)s AND a.key = k.key AND a.action = 'pause' ORDER BY a.id DESC LIMIT 1) a
"""


@click.command(
    epilog="""\b
Example:
  inturn show order-42
  inturn show order-42 --topic orders --limit 20 --error --payload"""
)
@click.argument("key", type=KEY)
@click.option(
    "--topic", type=TOPIC, metavar="NAME", help="In this topic; else in every one that has the key."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    default=5,
    show_default=True,
    help="The last N commands applied, the next N, the last N turns and actions.",
)
@click.option("--error", "errors", is_flag=True, help="Print errors whole, not their first line.")
@click.option(
    "--payload/--no-payload",
    "payload",
    default=None,
    help="Print payloads whole, or not at all; else their beginning.",
)
@json_option
@pass_database
def show(
    database: Database,
    key: str,
    *,
    topic: str | None,
    limit: int,
    errors: bool,
    payload: bool | None,
    as_json: bool,
) -> None:
    """Show where a key stands, its commands, its turns and what operators did.

    Commands are the ones around the cursor; turns and actions come newest first.
    """
    most = 0 if payload is False else None if payload or as_json else _PAYLOAD_CHARACTERS + 1
    with database.connect() as connection:
        if topic is not None:
            require_topic(connection, database.schema, topic)
        key = resolve(connection, database.schema, key, topic)
        found = _read(connection, database.schema, key, topic, limit, most)
    if not found:
        where = f"in topic '{topic}'" if topic is not None else "in any topic"
        raise Failure(f"there is no key {shown(key)} {where}", hint="List keys with: inturn keys")
    if as_json:
        print_json([_document(each, payloads=payload is not False) for each in found])
        return
    for number, each in enumerate(found):
        if number:
            click.echo()
        _print(each, errors=errors, payload=payload)


def _read(
    connection: Connection[Any], schema: str, key: str, topic: str | None, limit: int, most: int | None
) -> list[Row]:
    def rows(query: str, parameters: Row) -> list[Row]:
        composed = sql.SQL(query).format(schema=sql.Identifier(schema))
        return fetch(connection, composed, parameters)

    # One snapshot, or the commands might not fit the cursor.
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    found = rows(_KEYS, {"key": key, "topic": topic})
    for each in found:
        parameters = {**each, "limit": limit, "most": 2**31 - 1 if most is None else most}
        each["pauses"] = {row.pop("whole"): row for row in rows(_PAUSES, parameters)}
        each["commands"] = [
            {**row, "state": _command_state(row, each)} for row in rows(_COMMANDS, parameters)
        ]
        each["gaps"] = list(_gaps(each, limit))
        each["timeline"] = rows(_TIMELINE, parameters)
    connection.execute("COMMIT")
    return found


def _command_state(command: Row, key: Row) -> str:
    if command["skipped_by"]:
        return "skipped"
    if command["seq"] <= key["applied_seq"]:
        return "applied"
    if command["seq"] > key["applied_seq"] + 1:
        return "pending"
    return "held" if key["held_at"] else "retrying" if key["attempts"] else "next"


def _gaps(key: Row, limit: int) -> Iterator[Row]:
    """Yield the numbers, among the commands that are shown, that nobody has appended."""
    applied = key["applied_seq"]
    number = max(key["first_seq"], applied - limit + 1)
    for seq in [*(command["seq"] for command in key["commands"]), max(applied, number - 1) + 1]:
        for first, last, state in (
            (number, min(seq - 1, applied), "skipped"),
            (max(number, applied + 1), seq - 1, "missing"),
        ):
            if first <= last:
                yield {"from_seq": first, "to_seq": last, "state": state}
        number = max(number, seq + 1)


def _document(key: Row, *, payloads: bool) -> Row:
    def facts(text: str | None) -> Any:
        """Return what an action recorded, without a payload that nobody asked for."""
        found = load_payload(text) if text is not None else None
        return (
            found
            if payloads or not isinstance(found, dict)
            else {k: found[k] for k in found if k != "payload"}
        )

    commands = []
    for row in key["commands"]:
        command = {name: value for name, value in row.items() if payloads or not name.endswith("payload")}
        for name in ("payload", "original_payload"):
            if command.get(name) is not None:
                command[name] = load_payload(command[name])
        commands.append(command)
    timeline = [
        {**row, "before": facts(row["before"]), "after": facts(row["after"])} for row in key["timeline"]
    ]
    document = {name: value for name, value in key.items() if name not in ("now", "pauses")}
    return document | {
        "pause": key["pauses"].get(False) if key["paused_at"] else None,
        "topic_pause": key["pauses"].get(True) if key["topic_paused_at"] else None,
        "commands": commands,
        "timeline": timeline,
    }


# -- as text


def _print(key: Row, *, errors: bool, payload: bool | None) -> None:
    now = key["now"]
    paused = key["topic_paused_at"] and _lasts(key["topic_paused_until"], now)
    click.echo(f"topic    {escape(key['topic'])}" + (f", {_paused(key, whole=True)}" if paused else ""))
    click.echo(f"key      {shown(key['key'])}")
    click.echo(f"state    {_state(key)}")
    if key["claimed_by"]:
        left = (key["lease_until"] - now).total_seconds()
        ends = f"for another {age(left)}" if left > 0 else f"ran out {age(-left)} ago"
        click.echo(f"lease    {escape(key['claimed_by'])} for {_since(key['claimed_at'], now)}, {ends}")
    lag = f", {key['pending']} pending" if key["pending"] else ""
    if key["oldest_pending_at"]:
        lag += f", the {'first' if key['waiting_at'] else 'next'} for {_since(key['oldest_pending_at'], now)}"
    click.echo(f"applied  {key['applied_seq']} of {key['last_seq']}{lag}")
    if key["last_error"]:
        _print_error("error    ", key["last_error"], whole=errors)
    if key["commands"] or key["gaps"]:
        click.echo()
        _print_commands(key, payload)
    if key["timeline"]:
        click.echo()
        _print_timeline(key, errors=errors)


def _state(key: Row) -> str:
    now, attempts = key["now"], f"{key['attempts']} of {key['max_attempts']} attempts"
    match key["state"]:
        case "held":
            if key["waiting_at"]:
                since = _since(key["held_at"], now)
                return f"held for {since}, for command {key['applied_seq'] + 1} was not appended"
            return f"held for {_since(key['held_at'], now)}, after {attempts}"
        case "waiting":
            text = f"waiting for {_since(key['waiting_at'], now)} for command {key['applied_seq'] + 1}"
            wait = (key["held_from"] - now).total_seconds() if key["held_from"] else 0
            return text + (f", held in {age(wait)}" if wait > 0 else "")
        case "paused":
            return _paused(key, whole=False)
        case "retrying":
            wait = (key["ready_at"] - now).total_seconds()
            return f"retrying {'in ' + age(wait) if wait > 0 else 'now'}, after {attempts}"
    return str(key["state"])


def _paused(key: Row, *, whole: bool) -> str:
    since, until = (key[("topic_" if whole else "") + name] for name in ("paused_at", "paused_until"))
    by = key["pauses"].get(whole)
    text = f"paused for {_since(since, key['now'])}" + (f" by {escape(_who(by))}" if by else "")
    if until is not None:
        text += f", until {until.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return text + (f": {escape(by['reason'])}" if by and by["reason"] else "")


def _lasts(until: datetime | None, now: datetime) -> bool:
    return until is None or until > now


def _who(action: Row) -> str:
    return str(action["acting_as"] or action["os_user"] or action["db_user"])


def _since(time: datetime, now: datetime) -> str:
    return age((now - time).total_seconds())


def _print_error(heading: str, error: str, *, whole: bool) -> None:
    lines = error.strip().splitlines() if whole else [first_line(error)]
    click.echo(heading + ("\n" + " " * len(heading)).join(map(escape, lines)))


def _print_commands(key: Row, payload: bool | None) -> None:
    commands = key["commands"]
    marks = [_mark(command) for command in commands]
    gaps = [gap for gap in key["gaps"] if gap["state"] == "skipped"]
    noted = any(marks) or bool(gaps)
    columns = [
        Column("seq", right=True),
        Column("command", cut="middle"),
        Column("state"),
        *([Column("note")] if noted else []),
        Column("appended", right=True),
        *([Column("payload", cut="end")] if payload is None else []),
    ]
    rows = []
    for command, mark in zip(commands, marks, strict=True):
        row = [str(command["seq"]), command["name"], command["state"], *([mark] if noted else [])]
        row.append(_since(command["created_at"], key["now"]) + " ago")
        rows.append((command["seq"], [*row, _start(command["payload"])] if payload is None else row))
    for gap in key["gaps"]:
        seqs = _span(gap["from_seq"], gap["to_seq"])
        mark = "never appended" if gap["state"] == "skipped" else ""
        rows.append((gap["from_seq"], [seqs, "", gap["state"], *([mark] if noted else [])]))
    rows.sort()
    print_table(columns, [row + [""] * (len(columns) - len(row)) for _, row in rows])
    if payload:
        _print_payloads(commands)


def _mark(command: Row) -> str:
    return ", ".join(
        [
            *(["amended"] if command["amended"] else []),
            *([f"replay of {command['replay_of']}"] if command["replay_of"] is not None else []),
            *([f"replayed as {command['replayed_as']}"] if command["replayed_as"] is not None else []),
        ]
    )


def _start(payload: str) -> str:
    return payload if len(payload) <= _PAYLOAD_CHARACTERS else payload[:_PAYLOAD_CHARACTERS] + "…"


def _print_payloads(commands: list[Row]) -> None:
    """Print payloads whole, a line each, with the first one of an amended command below it."""
    click.echo()
    for command in commands:
        click.echo(f"{command['seq']} {escape(command['name'])} {escape(command['payload'])}")
        if command["amended"]:
            original = f"{command['original_name']} {command['original_payload']}"
            click.echo(f"  before it was amended: {escape(original)}")


def _print_timeline(key: Row, *, errors: bool) -> None:
    print_table(
        [
            Column("turn", right=True),
            Column("applied", right=True),
            Column("outcome"),
            Column("by", cut="middle"),
            Column("started", right=True),
            Column("took", right=True),
        ],
        [_entry(entry, key["now"]) for entry in key["timeline"]],
        [_says(entry) for entry in key["timeline"]],
        notes_heading="error or reason",
    )
    if errors:
        for entry in key["timeline"]:
            if entry["kind"] == "turn" and entry["says"]:
                click.echo()
                click.echo(f"turn {entry['epoch']}:")
                _print_error("  ", entry["says"], whole=True)


def _entry(entry: Row, now: datetime) -> list[str]:
    if entry["kind"] == "action":
        about = "" if entry["from_seq"] is None else f" {entry['from_seq']}"
        return ["", "", entry["what"] + about, _who({**entry, "db_user": entry["done_by"]}),
                _since(entry["at"], now) + " ago", ""]  # fmt: skip
    first, last = entry["from_seq"], entry["to_seq"]
    return [
        str(entry["epoch"]),
        _span(first, last),
        entry["what"],
        entry["done_by"],
        _since(entry["started_at"], now) + " ago",
        duration((entry["at"] - entry["started_at"]).total_seconds()),
    ]


def _span(first: int, last: int) -> str:
    return "" if last < first else str(first) if last == first else f"{first}-{last}"


def _says(entry: Row) -> str:
    line = first_line(entry["says"])
    if not line or entry["kind"] == "action":
        return line
    became = entry["what"] if entry["what"] in ("skipped", "cancelled") else "failed"
    return f"{entry['to_seq'] + 1} {became}: {line}"
