"""Many processes that install at the same moment.

Run as a program of its own, which has one thread, so that it can fork: the modules are imported once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Sequence


def upgrade_at_once(dsns: Sequence[str], *, schema: str, receiver: bool = False) -> None:
    """Run `upgrade` in one process a DSN, all released together; every one has to succeed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, "receiver" if receiver else "schema", schema, *dsns],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr


def _main(what: str, schema: str, dsns: Sequence[str]) -> int:
    from inturn.schema.install import upgrade
    from inturn.schema.receiver import upgrade_receiver

    run = upgrade_receiver if what == "receiver" else upgrade
    gate, release = os.pipe()
    children = []
    for dsn in dsns:
        child = os.fork()
        if child == 0:
            os.close(release)
            os.read(gate, 1)  # returns when the parent closes its end
            try:
                run(dsn, schema=schema)
            except BaseException:  # noqa: BLE001 - reported, and the process ends
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    os.close(release)
    return max([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], sys.argv[2], sys.argv[3:]))
