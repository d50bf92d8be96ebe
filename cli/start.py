"""The program `inturn`: a Ctrl-C while it is still being imported is one line too."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn

_INTERRUPTED = 130  # as in exit_codes, which is not imported yet; nor is what prints


def main() -> NoReturn:
    """Run the command line and exit."""
    try:
        from inturn.cli.main import main as run

        run()
    except KeyboardInterrupt:
        with suppress(OSError):
            os.write(2, b"\ninturn: interrupted\n")
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
