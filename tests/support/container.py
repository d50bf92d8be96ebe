"""The handlers of support.shop, in a process that takes itself for the first of a container called box."""

from __future__ import annotations

import os
import socket

from support import shop

applier = shop.applier
setattr(os, "getpid", lambda: 1)  # noqa: B010 - mypy
setattr(socket, "gethostname", lambda: "box")  # noqa: B010
