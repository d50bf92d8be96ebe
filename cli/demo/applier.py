"""The applier of the demo that posts to service B: a process, `python -m inturn.cli.demo.applier`.

Reads on stdin, in one line of JSON, the database and its topics; writes a line when it is ready; ends when
stdin does.
"""

from __future__ import annotations

import json
import logging
import os
import sys

from inturn.applier import Fleet


def main() -> None:
    """Be an applier until stdin ends."""
    # What it warns of is what the demo does to it.
    logging.getLogger("inturn.applier").setLevel(logging.ERROR)
    start = json.loads(sys.stdin.readline())
    Fleet(start["dsn"], topics=start["topics"]).start()
    print("ready", flush=True)  # noqa: T201 - the demo reads it
    sys.stdin.read()
    os._exit(0)  # whatever is in hand: the demo is over


if __name__ == "__main__":
    main()
