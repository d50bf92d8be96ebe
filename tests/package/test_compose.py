"""docker-compose.yml: by the Compose specification's schema, and its commands run by hand."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.place import ROOT
from support.server import Server

INTURN = str(Path(sys.executable).parent / "inturn")


@pytest.fixture
def services() -> dict[str, Any]:
    from ruamel.yaml import YAML  # comes with check-jsonschema

    loaded: dict[str, Any] = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text())
    services: dict[str, Any] = json.loads(json.dumps(loaded["services"]))
    return services


def test_compose_file_meets_the_specification() -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            str(ROOT / "docker-compose.yml"),
        ],
        check=True,
        capture_output=True,
    )


def test_compose_waits_for_a_healthy_database_and_a_finished_upgrade(services: dict[str, Any]) -> None:
    assert services["logins"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    after_each = [
        ("upgrade", "logins"),
        *((name, "upgrade") for name in ("applier", "demo", "app", "operator")),
    ]
    for name, before in after_each:
        assert services[name]["depends_on"][before]["condition"] == "service_completed_successfully"


def test_compose_gives_each_service_a_login_of_its_own_and_none_a_superusers(
    services: dict[str, Any],
) -> None:
    logins = {
        name: conninfo_to_dict(service["environment"]["INTURN_DSN"])["user"]
        for name, service in services.items()
        if "INTURN_DSN" in service.get("environment", {})
    }
    assert logins == {
        "upgrade": "deployer",
        "applier": "worker",
        "demo": "demo",
        "app": "app",
        "operator": "operator",
    }
    # The superuser's password goes to the server and to what makes the logins.
    holders = {name for name, service in services.items() if "POSTGRES_PASSWORD" in str(service)}
    assert holders == {"postgres", "logins"}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, as the file makes logins in it."""
    server = Server(int(os.environ.get("INTURN_TEST_PG", "18")), logins=False)
    server.start()
    yield server
    server.remove()


@pytest.fixture
def venv(tmp_path: Path, empty: Path) -> Path:
    """Where the commands make an environment; to save time, with the pip of this one.

    What the wheel asks for without the extra `http` is there already, as the wheel's own tests have it.
    """
    venv = tmp_path / "venv"
    (there,) = (empty / "env").glob("lib/python*/site-packages")
    here = venv / there.relative_to(empty / "env")
    here.mkdir(parents=True)
    (here / "there.pth").write_text(f"{there}\n")
    pip = venv / "bin" / "pip"
    pip.parent.mkdir()
    pip.write_text(f'#!/bin/sh\nexec {sys.executable} -m pip --python {venv}/bin/python "$@"\n')
    pip.chmod(0o755)
    return venv


@pytest.mark.timeout(900)  # it builds and installs the project
def test_compose_commands_run_as_written(
    services: dict[str, Any], own: Server, venv: Path, tmp_path: Path
) -> None:
    """Every command, as the login that it names, with this machine's paths in place of the containers'."""
    superuser = own.dsn("postgres", user="postgres")
    healthy = services["postgres"]["healthcheck"]["test"]
    assert healthy[0] == "CMD"
    own.run(healthy[1], *healthy[2:], "--port", str(own.port))
    paths = (("/venv", venv), ("/tmp/project", tmp_path / "p"), ("/project", ROOT))

    def run(name: str, *more: str) -> subprocess.CompletedProcess[str]:
        service = services[name]
        command = [part.replace("$$", "$") for part in (*service.get("entrypoint", []), *service["command"])]
        for container, here in paths:
            command = [part.replace(container, shlex.quote(str(here))) for part in command]
        make = f"{sys.executable} -m venv --without-pip"
        command = [part.replace("python -m venv", make) for part in command]
        dsn = superuser
        if "INTURN_DSN" in service["environment"]:
            dsn = make_conninfo(
                superuser, user=conninfo_to_dict(service["environment"]["INTURN_DSN"])["user"]
            )
        environment = {**os.environ, "INTURN_DSN": dsn, "LOGIN_PASSWORD": "it's secret", "PIP_COMPILE": "0"}
        if name == "logins":
            known = conninfo_to_dict(superuser)
            environment |= {f"PG{name.upper()}": str(known[name]) for name in ("host", "port", "user")}
            environment |= {
                "PGDATABASE": "postgres",
                "PATH": f"{own.binaries}{os.pathsep}{os.environ['PATH']}",
            }
        command = [part for part in command if part != "--help"]
        return subprocess.run(
            [*command, *more], check=True, env=environment, timeout=800, capture_output=True, text=True
        )

    for _ in range(2):  # it may run again
        run("logins")
    run("upgrade")
    with own.connect() as admin:
        powers = "rolsuper OR rolcreaterole OR rolreplication OR rolbypassrls"
        logins = admin.execute(
            f"SELECT rolname::text, {powers} FROM pg_roles WHERE rolcanlogin AND oid >= 16384 ORDER BY 1"
        ).fetchall()
        assert logins == [(name, False) for name in ("app", "demo", "deployer", "operator", "worker")]
        owner = admin.execute("SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'inturn'")
        assert owner.fetchone() == ("deployer",)
    with psycopg.connect(make_conninfo(superuser, user="deployer"), autocommit=True) as deployer:
        deployer.execute("CREATE SCHEMA shop; GRANT USAGE ON SCHEMA shop TO worker")
        deployer.execute("CREATE FUNCTION shop.f(c inturn.command) RETURNS void LANGUAGE sql AS 'SELECT'")
        deployer.execute("SELECT inturn.create_topic('t', 'sql:shop.f')")
    run("app", "append", "t", "k", "n")
    applied = run("applier", "--drain")
    assert "superuser" not in applied.stderr
    (key,) = json.loads(run("operator", "keys", "--json").stdout)
    assert (key["key"], key["applied_seq"]) == ("k", 1)
    run("demo", "--orders", "20")
