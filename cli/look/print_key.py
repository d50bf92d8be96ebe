"""What `inturn show` prints as text: where the key stands, its commands, and its turns with actions."""

from __future__ import annotations

from datetime import UTC, datetime

from inturn.cli.terminal.key_text import shown
from inturn.cli.terminal.output import Column, age, duration, echo, first_line, print_table
from inturn.cli.terminal.rows import Row

#: How much of a payload stands in the table of commands.
PAYLOAD_CHARACTERS = 200


def print_key(key: Row, *, errors: bool, payload: bool | None) -> None:
    """Print a key.

    Args:
        key: what `read_key` read.
        errors: print errors whole, not their first line.
        payload: print payloads whole; False: not at all; None: their beginning.
    """
    now = key["now"]
    paused = key["topic_paused_at"] and _lasts(key["topic_paused_until"], now)
    echo(f"topic    {key['topic']}" + (f", {_paused(key, whole=True)}" if paused else ""))
    echo(f"key      {shown(key['key'])}")
    echo(f"state    {_state(key)}")
    if key["claimed_by"]:
        left = (key["lease_until"] - now).total_seconds()
        ends = f"for another {age(left)}" if left > 0 else f"ran out {age(-left)} ago"
        echo(f"lease    {key['claimed_by']} for {_since(key['claimed_at'], now)}, {ends}")
    lag = f", {key['pending']} pending" if key["pending"] else ""
    if key["oldest_pending_at"]:
        which = "first" if key["state"] == "waiting" else "next"
        lag += f", the {which} for {_since(key['oldest_pending_at'], now)}"
    echo(f"applied  {key['applied_seq']} of {key['last_seq']}{lag}")
    if key["history_seq"] is not None:
        echo(f"history  begins at {key['history_seq']}: what came before was pruned")
    if key["arrived"]:
        commands = "1 command has" if key["arrived"] == 1 else f"{key['arrived']:,} commands have"
        echo(f"arrived  {commands} no number yet, the first for {_since(key['arrived_at'], now)}")
    if key["last_error"]:
        _print_error("error    ", key["last_error"], whole=errors)
    if key["commands"] or key["gaps"]:
        echo()
        _print_commands(key, payload)
    if key["timeline"]:
        echo()
        _print_timeline(key, errors=errors)


def _state(key: Row) -> str:
    now, attempts = key["now"], f"{key['attempts']} of {key['max_attempts']} attempts"
    match key["state"]:
        case "held":
            if key["waiting_at"]:
                since = _since(key["held_at"], now)
                return f"held for {since}, because command {key['applied_seq'] + 1} was not appended"
            return f"held for {_since(key['held_at'], now)}, after {attempts}"
        case "waiting":
            since = key["waiting_at"] or key["oldest_pending_at"]  # the latter if only a hint tells of it
            text = f"waiting for {_since(since, now)} for command {key['applied_seq'] + 1}"
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
    text = f"paused for {_since(since, key['now'])}" + (f" by {_who(by)}" if by else "")
    if until is not None:
        text += f", until {until.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return text + (f": {by['reason']}" if by and by["reason"] else "")


def _lasts(until: datetime | None, now: datetime) -> bool:
    return until is None or until > now


def _who(action: Row) -> str:
    return str(action["acting_as"] or action["os_user"] or action["db_user"])


def _since(time: datetime, now: datetime) -> str:
    return age((now - time).total_seconds())


def _print_error(heading: str, error: str, *, whole: bool) -> None:
    lines = error.strip().splitlines() if whole else [first_line(error)]
    for line in lines:
        echo(heading + line)
        heading = " " * len(heading)


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
            *([_merged(command)] if command["merged_by"] else []),
            *(["amended"] if command["amended"] else []),
            *([f"replay of {command['replay_of']}"] if command["replay_of"] is not None else []),
            *([f"replayed as {command['replayed_as']}"] if command["replayed_as"] is not None else []),
        ]
    )


def _merged(command: Row) -> str:
    if command["merged_into"] is None:
        return "into nothing"
    own = command["merged_into"] == command["seq"]
    return f"merged from {command['merged_from']}" if own else f"into {command['merged_into']}"


def _start(payload: str) -> str:
    return payload if len(payload) <= PAYLOAD_CHARACTERS else payload[:PAYLOAD_CHARACTERS] + "…"


def _print_payloads(commands: list[Row]) -> None:
    """Print payloads whole, a line each, with the first one of an amended command below it."""
    echo()
    for command in commands:
        echo(f"{command['seq']} {command['name']} {command['payload']}")
        if command["merged_name"]:
            taken = f"{command['merged_name']} {command['merged_payload']}"
            echo(f"  as it was merged from {command['merged_from']}: {taken}")
        if command["amended"]:
            original = f"{command['original_name']} {command['original_payload']}"
            echo(f"  before it was amended: {original}")


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
                echo()
                echo(f"turn {entry['epoch']}:")
                _print_error("  ", entry["says"], whole=True)


def _entry(entry: Row, now: datetime) -> list[str]:
    if entry["kind"] == "action":
        about = "" if entry["from_seq"] is None else f" {entry['from_seq']}"
        return ["", "", entry["what"] + about, _who({**entry, "db_user": entry["done_by"]}),
                _since(entry["at"], now) + " ago", ""]  # fmt: skip
    if entry["kind"] == "history":
        return ["", "", f"history begins at {entry['from_seq']}", "", "", ""]
    first, last = entry["from_seq"], entry["to_seq"]
    if entry["kind"] == "merge":
        by = entry["done_by"]
        return [str(entry["epoch"]), _span(first, last), "merged", by, _since(entry["at"], now) + " ago", ""]
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
    if entry["kind"] == "merge":
        return f"{line}, by {entry['what']}"
    if not line or entry["kind"] != "turn":
        return line
    became = entry["what"] if entry["what"] in ("skipped", "cancelled") else "failed"
    return f"{entry['to_seq'] + 1} {became}: {line}"
