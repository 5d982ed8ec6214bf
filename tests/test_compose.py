"""docker-compose.yml against the program, since no engine builds it here."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tinsmith_server.cli.main import app
from tinsmith_server.client_config import health
from tinsmith_server.settings import Settings as ServerSettings
from tinsmith_worker.settings import Settings as WorkerSettings

ROOT = Path(__file__).parents[1]
OURS = ("api", "worker", "background")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])


def test_every_command_is_one_of_ours(services: dict[str, Any]) -> None:
    commands = {
        command.callback.__name__ for command in app.registered_commands if command.callback
    }
    for name in OURS:
        assert services[name]["command"][0] in commands


def test_every_variable_is_read_by_the_process_that_gets_it(services: dict[str, Any]) -> None:
    sources = "".join(path.read_text() for path in ROOT.glob("*/tinsmith_*/settings.py"))
    for name in OURS:
        for variable in services[name]["environment"]:
            assert variable.removeprefix("TINSMITH_") in sources, variable


def test_the_variables_are_enough_for_each_process(
    services: dict[str, Any], tmp_path: Path
) -> None:
    given = dict.fromkeys(services["worker"]["environment"], "x=y")
    assert WorkerSettings.from_environment(given).models == {"x": "y"}
    given = dict(services["api"]["environment"]) | {"TINSMITH_DATA_DIR": str(tmp_path)}
    settings = ServerSettings.from_environment(given)
    assert settings.database_url.startswith("postgresql+psycopg://")
    assert not (tmp_path / "key_pepper").exists()


def test_the_health_check_asks_a_route_that_there_is(services: dict[str, Any]) -> None:
    [route] = [route.path for route in health.routes]  # type: ignore[attr-defined]
    assert f"8000{route}'" in services["api"]["healthcheck"]["test"][-1]


def test_every_setting_is_documented() -> None:
    documented = (ROOT / "docs" / "settings.md").read_text()
    for settings in (ServerSettings, WorkerSettings):
        for name in settings.__dataclass_fields__:
            assert f"TINSMITH_{name.upper()}" in documented, name
