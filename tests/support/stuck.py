"""An application whose only handler works outside the database, and never returns."""

from __future__ import annotations

import threading

from inturn.applier import Applier, Command

applier = Applier()


@applier.handler("posts", outside=True)
def hang(command: Command) -> None:
    print("stuck", flush=True)
    threading.Event().wait()
