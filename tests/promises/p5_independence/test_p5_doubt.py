"""P5: whoever starts knows the dead of its host, of whom the database has not noticed that they are gone."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support import roles, shop
from support.database import Database, until
from support.process import inturn_apply
from support.proxy import Proxy

from inturn.applier import pacing
from inturn.applier.process.doubt import Doubt
from inturn.applier.process.pids import is_gone

pytestmark = pytest.mark.needs_session("through a pooler no number names a session")

#: A number above every limit for those of processes.
_NO_PROCESS = 2**31 - 1


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "CHOOSE_SECONDS", 0.01)
    monkeypatch.setattr("inturn.applier.process.doubt.NOTICED_SECONDS", 0.05)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is there until its input ends."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_p5_a_process_is_gone_whose_number_is_another_ones_or_nobodys(
    child: subprocess.Popen[bytes],
) -> None:
    """As in a container that was started again, whose numbers are few; or before its parent has asked."""
    assert is_gone(_NO_PROCESS, 0.0)
    assert not is_gone(child.pid, 0.0)
    assert not is_gone(os.getppid(), 0.0)
    assert not is_gone(1, 0.0)
    assert is_gone(child.pid, 3600.0), "so long ago it was not there"
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(child.pid, 0.0), "it has ended, and its number is still there"
    assert not is_gone(2**80, 0.0)


def test_p5_the_doubt_about_a_process_ends_that_announces_itself_again(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """It was one of another host of this name, or of another container of this host."""
    shop.open_shop(database)
    host = socket.gethostname()
    announce = "SELECT inturn.announce_applier(%s, '{shop}', %s, %s, '0001')"
    with database.connect(user=roles.APPLIER) as other:
        other.execute(announce, [f"{host}:{_NO_PROCESS}:1", host, _NO_PROCESS])
        with shop.at_work(database, steady=False) as fleet:
            assert fleet._chooser.careful_keys(shop.TOPIC) == math.inf
            other.execute(announce, [f"{host}:{_NO_PROCESS}:1", host, _NO_PROCESS])
            until(lambda: fleet._chooser.careful_keys(shop.TOPIC) == 0, "that it is alive is noticed")
            assert f"another host or container is called {host} too" in caplog.text
            other.close()
            assert fleet._chooser.careful_keys(shop.TOPIC) == 0


def test_p5_a_doubt_does_not_last_for_ever(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.open_shop(database)
    host = socket.gethostname()
    with database.connect(user=roles.APPLIER) as other, database.connect(user=roles.APPLIER) as asking:
        other.execute("SELECT inturn.announce_applier('dead', '{shop}', %s, %s, '0001')", [host, _NO_PROCESS])
        doubt = Doubt("inturn")
        doubt.find(asking)
        assert (doubt.is_about(shop.TOPIC), doubt.was_about(shop.TOPIC)) == (True, False)
        monkeypatch.setattr("inturn.applier.process.doubt.MOST_SECONDS", 0.0)
        doubt.look(asking)
        assert (doubt.is_about(shop.TOPIC), doubt.was_about(shop.TOPIC)) == (False, True)


def test_p5_a_process_that_is_stopped_is_alive_and_one_that_was_killed_unnoticed_is_not(
    database: Database,
) -> None:
    """What is between acknowledges everything: its session stays, with its key in hand; the others go on."""
    shop.open_shop(database)
    with Proxy(database.server) as proxy, shop.gate_shut(database) as gate:
        with inturn_apply(proxy.dsn(database.name, roles.APPLIER)) as process:
            shop.append(database, "bad", "before")
            (backend,) = shop.wait_at_gate(database)
            process.send(signal.SIGSTOP)
            with shop.at_work(database, steady=False) as fleet:
                assert fleet._chooser.careful_keys(shop.TOPIC) < math.inf, "it is there"
                shop.append(database, "good", "insert")
                shop.wait_applied(database, "good")
            proxy.swallow()
            process.kill()
        with shop.at_work(database, steady=False) as fleet:
            assert fleet._chooser.careful_keys(shop.TOPIC) == math.inf
            gate.rollback()
            database.execute("SELECT pg_terminate_backend(%s, 10000)", [backend])
            until(lambda: fleet._chooser.careful_keys(shop.TOPIC) == 20, "the end of its session")
            shop.wait_applied(database, "bad", "before")


def test_p5_through_a_pooler_a_process_is_careful_after_another_one_of_its_number(database: Database) -> None:
    """As in a container that was started again: there no session tells that the one before is gone."""
    shop.open_shop(database)
    with database.connect(user=roles.APPLIER) as session:
        announce = "SELECT inturn.announce_applier('box:1-aaaaaa:1', '{shop}', 'box', 1, '0001', true)"
        session.execute(announce)  # through a pooler
        for applier, careful in (
            ("box:1-aaaaaa:2", 0),  # a worker of the same process
            ("box:2-bbbbbb:1", 0),
            ("bo:1-bbbbbb:1", 0),
            ("box:1-bbbbbb:1", 20),
        ):
            row = session.execute("SELECT inturn._careful_keys('{shop}', %s, 20)", [applier]).fetchone()
            assert row == ([careful],), applier
