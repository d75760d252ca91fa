from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model_store.errors import ConfigError
from service.settings import Settings, load_settings, misspelt


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_what_it_is(name: str) -> None:
    description = Settings.model_fields[name].description
    assert description is not None and len(description) > 15 and description.endswith(".")


def test_environment_then_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIBERWALK_PORT", "1234")
    monkeypatch.setenv("FIBERWALK_STORE", "/somewhere")
    assert load_settings().port == 1234
    monkeypatch.setenv("FIBERWALK_REDIS_URL", "")  # as compose files pass what is not set
    assert load_settings().redis_url is None
    settings = load_settings(port=4321, store=None)
    assert (settings.port, settings.store) == (4321, Path("/somewhere"))


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "99999"), ("MAX_ROWS", "0"), ("LOG_LEVEL", "loud"), ("REDIS_TIMEOUT", "soon")]
)
def test_an_unusable_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"FIBERWALK_{name}", value)
    with pytest.raises(ConfigError, match=f"FIBERWALK_{name}"):
        load_settings()


def test_what_is_misspelt_is_found_and_what_others_set_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORKER", "MAX_ROW", "LOGLEVEL", "redis_urls"):
        monkeypatch.setenv(f"FIBERWALK_{name}", "1")
    for name in (
        "WORKERS",
        "port",
        "SERVICE_HOST",
        "SERVICE_PORT",
        "PORT_8000_TCP_ADDR",
        "REDIS_PORT",
        "REDIS_SERVICE_HOST",
    ):
        monkeypatch.setenv(f"FIBERWALK_{name}", "1")
    for name in ("MODELS", "DATA", "PUBLISH", "UID", "GID", "IMAGE", "BUILD_NETWORK"):
        monkeypatch.setenv(f"FIBERWALK_{name}", "1")
    monkeypatch.setenv("WORKER", "1")
    assert misspelt() == {
        "FIBERWALK_WORKER": "FIBERWALK_WORKERS",
        "FIBERWALK_MAX_ROW": "FIBERWALK_MAX_ROWS",
        "FIBERWALK_LOGLEVEL": "FIBERWALK_LOG_LEVEL",
        "FIBERWALK_redis_urls": "FIBERWALK_REDIS_URL",
    }


def test_the_address_of_a_service_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes sets it for every pod beside a service that is called fiberwalk."""
    monkeypatch.setenv("FIBERWALK_PORT", "tcp://10.0.0.1:80")
    assert load_settings().port == 8000
    assert load_settings(port=4321).port == 4321


@pytest.mark.parametrize(("given", "asked"), [("tcp://10.0.0.1:80", 8000), ("4321", 4321)])
def test_the_image_looks_for_its_health_where_it_serves(given: str, asked: int) -> None:
    text = (Path(__file__).parents[2] / "docker" / "server.Dockerfile").read_text()
    (line,) = (line for line in text.splitlines() if line.strip().startswith("CMD [") and "readyz" in line)
    code = json.loads(line.strip().removeprefix("CMD "))[2]
    show = "import urllib.request; urllib.request.urlopen = lambda url, timeout: print(url)\n"
    run = subprocess.run(
        [sys.executable, "-c", show + code],
        env=os.environ | {"FIBERWALK_PORT": given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == f"http://127.0.0.1:{asked}/readyz\n"


@pytest.mark.parametrize("level", ["INFO", "Info", "info"])
def test_a_level_may_be_written_in_any_case(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setenv("FIBERWALK_LOG_LEVEL", level)
    assert load_settings().log_level == "info"


@pytest.mark.parametrize("url", ["localhost:6379", "http://:hunter2@host", "redis://:hunter2@host:port/0", "redis://"])
def test_a_wrong_redis_address_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="FIBERWALK_REDIS_URL") as caught:
        load_settings(redis_url=url)
    assert "hunter2" not in str(caught.value.as_dict())


def test_the_password_of_redis_is_not_shown() -> None:
    settings = load_settings(redis_url="redis://user:hunter2@host:6379/0")
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()
