"""What the exit status of `inturn` says."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of every command; scripts may rely on them."""

    OK = 0
    #: Refused or failed; the line on stderr says why.
    ERROR = 1
    #: The command line was wrong.
    USAGE = 2
    #: The work is done as far as it can be, but some keys are held.
    HELD = 3
    #: The database could not be reached, or went away.
    UNREACHABLE = 4
    #: The schema is not installed, or older or newer than this inturn serves.
    SCHEMA = 5
    #: Stopped before the work in hand was done: the grace ran out.
    UNFINISHED = 6
    #: `keys --check` found keys that match.
    FOUND = 7
    #: `verify` found a promise broken.
    VIOLATED = 8
    #: `status --check` found a topic with something wrong, or `doctor` an error.
    UNHEALTHY = 9
    #: `apply`: too many handlers did not return within their topic's timeout.
    STUCK = 10
    #: `wait`: the time is over.
    TIMED_OUT = 11
    #: Ctrl-C.
    INTERRUPTED = 130
