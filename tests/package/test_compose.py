"""docker-compose.yml: by the Compose specification's schema, and its commands run by hand."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.database import Database
from support.place import ROOT

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
    assert services["upgrade"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    for name in ("applier", "demo"):
        after = services[name]["depends_on"]["upgrade"]["condition"]
        assert after == "service_completed_successfully"


def test_compose_commands_run_as_written(
    services: dict[str, Any], empty_database: Database, tmp_path: Path
) -> None:
    """Every command, with this machine's paths in the place of the containers'."""
    server = empty_database.server
    environment = {**os.environ, "INTURN_DSN": empty_database.dsn}
    healthy = services["postgres"]["healthcheck"]["test"]
    assert healthy[0] == "CMD"
    server.run(healthy[1], *healthy[2:], "--port", str(server.port))

    venv = tmp_path / "venv"
    script = services["upgrade"]["command"][-1]
    for container, here in (("/venv", venv), ("/tmp/project", tmp_path / "p"), ("/project", ROOT)):
        script = script.replace(container, shlex.quote(str(here)))
    script = script.replace("python -m venv", f"{sys.executable} -m venv")
    subprocess.run(["sh", "-euc", script], check=True, env=environment, timeout=110)

    empty_database.execute(
        "CREATE FUNCTION public.f(c inturn.command) RETURNS void LANGUAGE sql AS 'SELECT';"
        "SELECT inturn.create_topic('t', 'sql:public.f'); SELECT inturn.append('t', 'k', 'n')"
    )
    command = [part.replace("/venv", str(venv)) for part in services["applier"]["command"]]
    subprocess.run([*command, "--drain"], check=True, env=environment)
    assert empty_database.value("SELECT applied_seq FROM inturn.key_cursor") == 1
    demo = [part.replace("/venv", str(venv)) for part in services["demo"]["command"]]
    subprocess.run([*demo, "--orders", "20"], check=True, env=environment, capture_output=True)
