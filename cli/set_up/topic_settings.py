"""The settings of a topic, as the command line names them, and what they are where they have no value."""

from __future__ import annotations

from typing import Any, TypeAlias

import click

from inturn.cli.terminal.whole import BIGINT, INTEGER

_TARGET = "What applies its commands: python, sql:SCHEMA.FUNCTION, or an http(s):// URL to post them to."
#: How a boolean is written.
NO, YES = "no", "yes"
Settings: TypeAlias = "tuple[tuple[str, str, Any, str, str], ...]"
#: Settled when the topic is created.
FIXED: Settings = (
    (
        "--numbering",
        "WHO",
        click.Choice(["assigned", "given", "arrival"]),
        "Who numbers commands: append (assigned), the callers (given), or appliers later (arrival).",
        "assigned",
    ),
    ("--first-seq", "N", BIGINT, "The first number of every key, where callers number.", "1"),
)
SETTINGS: Settings = (
    ("--target", "TARGET", str, _TARGET, "python"),
    ("--max-attempts", "N", INTEGER, "How many attempts a command gets.", "5"),
    ("--backoff-base", "INTERVAL", str, "The wait before the second attempt; then it doubles.", "1 second"),
    ("--backoff-cap", "INTERVAL", str, "The longest wait.", "5 minutes"),
    ("--max-payload-bytes", "N", INTEGER, "The largest payload.", "1048576"),
    ("--batch-commands", "N", INTEGER, "The most commands of a key in one turn.", "100"),
    (
        "--on-exhausted",
        "WHAT",
        click.Choice(["hold", "skip", "cancel-rest"]),
        "When attempts run out: hold the key, skip the command, or skip everything pending on the key.",
        "hold",
    ),
    ("--max-ahead", "N", BIGINT, "How far ahead of the last applied one a given number may be.", "10000"),
    ("--gap-timeout", "INTERVAL", str, "Hold a key that waits this long for a number; 0: never.", "never"),
    ("--lease", "INTERVAL", str, "How long an applier has a key outside without renewing.", "30 seconds"),
    ("--timeout", "INTERVAL", str, "A command that takes longer fails; 0: no limit.", "no limit"),
    ("--max-in-flight", "N", INTEGER, "How many keys an applier process works on outside at a time.", "100"),
    ("--max-pending", "N", BIGINT, "The most commands that a key may have pending; 0: no limit.", "no limit"),
    ("--retain", "INTERVAL", str, "How long to keep what was applied; 0: for ever.", "for ever"),
    (
        "--retain-idempotency",
        "INTERVAL",
        str,
        "The same for commands with an idempotency key; 0: as retain.",
        "as retain",
    ),
    ("--forget-idle-after", "INTERVAL", str, "Prune whole keys that were idle this long; 0: never.", "never"),
    (
        "--json-strings",
        "WHETHER",
        click.Choice([NO, YES]),
        "Whether payloads may be strings that hold a JSON object or array.",
        NO,
    ),
)

#: What it means that a setting has no value; each is given as 0.
NO_VALUE = {
    "gap_timeout": "never",
    "timeout": "no limit",
    "max_pending": "no limit",
    "retain": "for ever",
    "retain_idempotency": "as retain",
    "forget_idle_after": "never",
}
NONE_BY_0 = tuple(name for name in NO_VALUE if name != "max_pending")
INTERVALS = ("backoff_base", "backoff_cap", "lease", *NONE_BY_0)
