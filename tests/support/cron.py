"""A crontab, read and run as cron does it, in a folder that stands for the machine."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from support.forked import folder_of_inturn

_SETTING = re.compile(r"\s*(\w+)\s*=\s*(.*?)\s*")
_LINE = re.compile(r"((?:\S+\s+){5})(\S.*)")
_FIELD = re.compile(r"(\*|\d+(?:-\d+)?)(/\d+)?")
#: Minute, hour, day of the month, month, day of the week.
_BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
#: cron gives no more than these, beside HOME, and reads no profile.
_ENVIRONMENT = {"LOGNAME": "shop", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"}


@dataclass(frozen=True)
class Run:
    """What a run left behind: the mail is what cron would send."""

    mail: str
    code: int


@dataclass(frozen=True)
class Job:
    """A line of a crontab.

    Attributes:
        schedule: when it runs.
        command: what the shell is given.
        text: what the command reads.
        settings: of the lines above it.
    """

    schedule: str
    command: str
    text: str
    settings: Mapping[str, str]

    def changed(self, old: str, new: str) -> Self:
        """Return a job whose command has something else in the place of a part of it."""
        assert old in self.command, self.command
        return replace(self, command=self.command.replace(old, new))


def jobs(crontab: str) -> list[Job]:
    """Read a crontab, and refuse what cron does not take."""
    settings: dict[str, str] = {}
    found = []
    for line in crontab.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if setting := _SETTING.fullmatch(line):
            settings[setting[1]] = setting[2].strip("'\"")
            continue
        job = _LINE.fullmatch(line)
        assert job, f"no line of a crontab: {line}"
        _check_schedule(job[1])
        # The first bare percent sign ends the command; those that follow end lines of what it reads.
        command, *text = (part.replace("\\%", "%") for part in re.split(r"(?<!\\)%", job[2]))
        found.append(Job(job[1].strip(), command, "\n".join(text), {**settings}))
    return found


def _check_schedule(schedule: str) -> None:
    for field, (least, most) in zip(schedule.split(), _BOUNDS, strict=True):
        for part in field.split(","):
            known = _FIELD.fullmatch(part)
            assert known, f"no time of a crontab: {schedule}"
            assert all(least <= int(number) <= most for number in re.findall(r"\d+", known[1])), schedule


class Machine:
    """The machine of a crontab: what lies in /opt, /var and /backup there lies in a folder here.

    Args:
        root: the folder.
        binaries: of PostgreSQL, whose programs are the first in its PATH.
    """

    def __init__(self, root: Path, binaries: Path) -> None:
        self.root, self._binaries = root, binaries
        self.venv = root / "opt/shop/.venv"
        self.venv.mkdir(parents=True)
        (self.venv / "bin").symlink_to(folder_of_inturn())
        for folder in ("var/log/shop", "backup"):
            (root / folder).mkdir(parents=True)

    def name_services(self, **services: Mapping[str, object]) -> None:
        """Write ~/.pg_service.conf."""
        (self.root / ".pg_service.conf").write_text(
            "".join(
                f"[{service}]\n" + "".join(f"{name}={value}\n" for name, value in parameters.items())
                for service, parameters in services.items()
            )
        )

    def start(self, job: Job) -> subprocess.Popen[str]:
        """Start a job as cron does: by sh, with an environment that has next to nothing in it."""
        process = subprocess.Popen(
            ["/bin/sh", "-c", self.here(job.command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE,
            text=True,
            cwd=self.root,
            env=self.environment(job.settings),
        )
        assert process.stdin is not None
        process.stdin.write(job.text)
        process.stdin.close()
        process.stdin = None
        return process

    def here(self, command: str) -> str:
        """Return a command with this machine's folders."""
        return re.sub(r"(?<![\w./])/(?=(?:opt|var|backup)/)", f"{self.root}/", command)

    def environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Return what a job sees that has these settings."""
        found = {**_ENVIRONMENT, "HOME": str(self.root), **settings}
        return found | {
            "PATH": f"{self._binaries}:{found['PATH']}",
            # libpq asks the password database for the home folder, not HOME.
            "PGSERVICEFILE": str(self.root / ".pg_service.conf"),
        }

    def end(self, running: subprocess.Popen[str]) -> Run:
        """Wait for its end."""
        mail, _ = running.communicate(timeout=120)
        return Run(mail, running.returncode)

    def run(self, job: Job) -> Run:
        return self.end(self.start(job))
