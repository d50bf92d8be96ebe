"""The peers for Node: their packages in a temporary folder, and the small programs beside this file."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from bench.peers.peer import Job, Mode, Peer, Unavailable
from bench.peers.processes import run

_HERE = Path(__file__).parent
_INSTALL_SECONDS = 180.0
#: A Node that is too old for a package is refused. Nothing but the packages' own files is run or kept.
_INSTALL = "install --engine-strict --omit=dev --ignore-scripts --no-package-lock --no-audit --no-fund"


class NodeFolder:
    """A temporary folder with the programs and the packages that they import; removed by `close`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="inturn-peers-")
        self.path = Path(self._folder.name)
        self._found: dict[str, str] | Unavailable | None = None

    def close(self) -> None:
        self._folder.cleanup()

    def versions(self) -> dict[str, str]:
        """Install, the first time; return the versions of Node and of the packages.

        Raises:
            Unavailable: Node or npm is not there, or npm does not give the packages.
        """
        if self._found is None:
            try:
                self._found = self._install()
            except Unavailable as error:
                self._found = error
        if isinstance(self._found, Unavailable):
            raise self._found
        return self._found

    def _install(self) -> dict[str, str]:
        for file in [_HERE / "package.json", *_HERE.glob("*.mjs")]:
            shutil.copy(file, self.path)
        run([program("npm"), *_INSTALL.split()], _INSTALL_SECONDS, self.path)
        versions = {"Node": run([program("node"), "--version"], 10, self.path).strip().removeprefix("v")}
        for name in json.loads((_HERE / "package.json").read_text())["dependencies"]:
            described = (self.path / "node_modules" / name / "package.json").read_text()
            versions[name] = json.loads(described)["version"]
        return versions


class NodePeer(Peer):
    """A peer whose program is a file of the folder."""

    def __init__(self, folder: NodeFolder, package: str) -> None:
        self.name = package
        self._folder = folder
        self._program = folder.path / (package.replace("-", "_") + ".mjs")

    def versions(self) -> dict[str, str]:
        versions = self._folder.versions()
        return {name: versions[name] for name in ("Node", "pg", self.name)}

    def command(self, mode: Mode, job: Job) -> list[str]:
        return [program("node"), str(self._program), mode, job.as_json()]


def program(name: str) -> str:
    """Return the path of node or npm: that of this environment, otherwise the machine's.

    Raises:
        Unavailable: there is none.
    """
    own = Path(sys.executable).with_name(name)
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        raise Unavailable(f"{name} is not installed")
    return found
