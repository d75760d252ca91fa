from __future__ import annotations

from pathlib import Path

import pytest

from model_store.errors import ConfigError
from service.settings import Settings, load_settings


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


@pytest.mark.parametrize("url", ["localhost:6379", "http://:hunter2@host", "redis://:hunter2@host:port/0", "redis://"])
def test_a_wrong_redis_address_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="FIBERWALK_REDIS_URL") as caught:
        load_settings(redis_url=url)
    assert "hunter2" not in str(caught.value.as_dict())


def test_the_password_of_redis_is_not_shown() -> None:
    settings = load_settings(redis_url="redis://user:hunter2@host:6379/0")
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()
