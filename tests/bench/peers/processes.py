"""Running the peers' programs, each to its end and no longer than it may take."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from bench.peers.peer import Unavailable

#: Where `python -m bench.peers...` finds itself.
_TESTS = Path(__file__).parents[2]


def run(command: list[str], seconds: float, folder: Path = _TESTS) -> str:
    """Run a program to its end and return what it printed.

    Raises:
        Unavailable: it failed, or took longer; then it was killed.
    """
    program = Path(command[0]).name
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=True
        )
    except OSError as error:
        raise Unavailable(f"{program} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{program} took more than {seconds:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{program} failed: {last_words(error.stderr)}") from error
    return done.stdout


def last_words(said: str) -> str:
    """Return what a program that failed said of the reason: npm's code, otherwise its last message."""
    if code := re.search(r"^npm error code (\S+)", said, re.MULTILINE):
        return code[1]
    # Neither where it happened, which is indented, nor which Node it was.
    messages = re.findall(r"^(?!Node\.js v)(?:/\S+: )?([A-Za-z].*)$", said, re.MULTILINE)
    return str(messages[-1]).strip() if messages else "without a word"
