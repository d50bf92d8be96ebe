"""The appliers that the documentation shows, in Node and in a shell: killed, stopped, and still in order."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.database import Database, until
from support.place import DOCS
from support.receiving import SCHEMA, free_port, receiving
from support.roles import APPLIER, OWNER

from inturn.schema.receiver import upgrade_receiver

PAGE = DOCS / "how-to" / "write-an-applier-in-any-language.md"
KEYS, COMMANDS = 8, 10


def example(name: str) -> str:
    """Return a file of the page."""
    found = re.search(
        rf"^<!-- file: {re.escape(name)} -->\n```\w+\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found is not None
    return found[1]


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the applier for Node, and pg from npm."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("NOT TESTED: the applier for Node, there is no node and npm on this machine")
    folder = tmp_path_factory.mktemp("node")
    (folder / "applier.mjs").write_text(example("applier.mjs"))
    (folder / "package.json").write_text('{"private": true}')
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "pg@8"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def shell_folder(tmp_path: Path) -> Path:
    (tmp_path / "applier.sh").write_text(example("applier.sh"))
    return tmp_path


@pytest.fixture
def sender(database: Database) -> Database:
    """A's database, with commands, of which some fail at first."""
    database.execute("""
        SELECT inturn.create_topic('orders', max_attempts => 1000, lease => '1 second',
                                   backoff_base => '10 ms', backoff_cap => '50 ms', batch_commands => 4)
    """)
    database.execute(
        "SELECT inturn.append('orders', 'order-' || n,"
        " CASE WHEN (n + seq) %% 7 = 0 THEN 'flaky' ELSE 'set it' END,"
        " jsonb_build_object('text', E'a\\tb\\n\"c\"', 'seq', seq))"
        " FROM generate_series(1, %s::bigint) seq, generate_series(1, %s) n",
        [COMMANDS, KEYS],
    )
    return database


@pytest.fixture
def service(empty_database: Database) -> Iterator[tuple[Database, str]]:
    """B's database, and its address."""
    upgrade_receiver(empty_database.dsn)
    empty_database.execute(SCHEMA)
    port = free_port()
    with receiving(empty_database.dsn, port, signed=False):
        yield empty_database, f"http://127.0.0.1:{port}/"


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(sender: Database, service: tuple[Database, str], tmp_path: Path) -> Iterator[Start]:
    """Start an applier; at the end it is killed, with its children."""
    path = f"{sender.server.binaries}{os.pathsep}{os.environ['PATH']}"
    info = sender.connect(user=OWNER).info
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "INTURN"))}
    environment |= {"PATH": path, "INTURN_DSN": sender.applier_dsn, "WORKER_DSN": sender.applier_dsn}
    environment |= {"SERVICE": service[1], "RENEW_MS": "300"}
    environment |= {"PGHOST": info.host, "PGPORT": str(info.port)}
    environment |= {"PGUSER": APPLIER, "PGDATABASE": info.dbname}
    with ExitStack() as stack:

        def run(*command: str, folder: Path) -> subprocess.Popen[str]:
            output = stack.enter_context((tmp_path / f"output-{command[0]}").open("a"))
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
            )
            stack.callback(process.wait)
            stack.callback(kill, process)
            return process

        yield run


def kill(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Signal a process and its children, as far as there are any."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def run_through(
    sender: Database, service: Database, start: Callable[[], subprocess.Popen[str]]
) -> subprocess.Popen[str]:
    """Let two appliers work, kill one and stop one in the middle; return the one that was stopped."""

    def wait_effects(count: int) -> None:
        until(lambda: service.value("SELECT count(*) FROM effect") >= count, f"{count} effects", 60)

    one, two = start(), start()
    wait_effects(10)
    kill(one)
    wait_effects(20)
    until(
        lambda: sender.value("SELECT count(*) FROM inturn.key_cursor WHERE lease_until IS NOT NULL"),
        "a lease",
    )
    kill(two, signal.SIGSTOP)
    start()
    wait_effects(KEYS * COMMANDS - 5)
    kill(two, signal.SIGCONT)
    wait_effects(KEYS * COMMANDS)
    until(
        lambda: sender.execute("SELECT 1 FROM inturn.key_cursor WHERE ready_at IS NOT NULL") == [],
        "all keys idle",
        60,
    )
    return two


def check(sender: Database, service: Database) -> None:
    """Every effect is there once, in order, as it was appended; what failed was tried again."""
    done = dict(service.execute("SELECT key, array_agg(seq ORDER BY id) FROM effect GROUP BY key"))
    assert done == {f"order-{n}": list(range(1, COMMANDS + 1)) for n in range(1, KEYS + 1)}
    assert set(service.execute("SELECT key, seq, name, payload::text FROM effect")) == set(
        sender.execute("SELECT key, seq, name, payload::text FROM inturn.command_log")
    )
    failed = "SELECT 1 FROM inturn.turn WHERE outcome = 'retrying' AND error LIKE %s"
    assert sender.execute(failed, ["%503%"])
    assert sender.execute("SELECT 1 FROM inturn.key_cursor WHERE claimed_by IS NOT NULL") == []


def test_the_applier_for_node(
    node_folder: Path, sender: Database, service: tuple[Database, str], start: Start, tmp_path: Path
) -> None:
    stopped = run_through(sender, service[0], lambda: start("node", "applier.mjs", folder=node_folder))
    check(sender, service[0])
    assert stopped.poll() is None, (tmp_path / "output-node").read_text()
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(30) == 0
    drained = start("node", "applier.mjs", "--drain", folder=node_folder)
    assert drained.wait(30) == 0
    assert (tmp_path / "output-node").read_text() == ""


def test_the_applier_in_a_shell(
    shell_folder: Path, sender: Database, service: tuple[Database, str], start: Start, tmp_path: Path
) -> None:
    again = "while :; do bash applier.sh; sleep 0.05; done"
    run_through(sender, service[0], lambda: start("bash", "-c", again, folder=shell_folder))
    check(sender, service[0])
    said = set((tmp_path / "output-bash").read_text().splitlines())
    assert said <= {"ERROR:  IT030"}, "nothing but being fenced off"
