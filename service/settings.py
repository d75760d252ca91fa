"""The server's settings: from the environment (`FIBERWALK_...`), each with a help text."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model_store.errors import ConfigError

LogLevel = Literal["debug", "info", "warning", "error"]


class Settings(BaseSettings):
    """Everything that can be set; the environment variable of `port` is `FIBERWALK_PORT`."""

    model_config = SettingsConfigDict(env_prefix="FIBERWALK_", env_ignore_empty=True, extra="ignore", frozen=True)

    store: Annotated[Path, Field(description="Folder of the model store that is served.")] = Path("models")
    host: Annotated[str, Field(description="Address to listen on; 0.0.0.0 is every interface.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")] = 8000

    samples: Annotated[
        int | None,
        Field(
            ge=1, description="Posterior samples of a request that names none; unset, the bundle's latent plan says."
        ),
    ] = None
    max_rows: Annotated[int, Field(ge=1, description="Most rows in one request.")] = 4096
    max_samples: Annotated[int, Field(ge=1, description="Most posterior samples a request may ask for.")] = 1024
    remember_bytes: Annotated[
        int,
        Field(
            ge=0,
            description="Memory for predictions that wait for feedback by their request's id, in bytes: in each "
            "process, and as much again in Redis for all processes together.",
        ),
    ] = 16 * 2**20
    max_values: Annotated[
        int,
        Field(
            ge=1,
            description="Most numbers of a kind in one prediction, also where /feedback predicts anew: for each row "
            "its classes (1 for a number), times samples where those are returned, and its quantiles. An answer takes "
            "some 50 bytes of memory for each.",
        ),
    ] = 1_000_000
    max_body_bytes: Annotated[int, Field(ge=1024, description="Largest request body, in bytes.")] = 32 * 2**20
    max_set_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="Largest decoded weight set that a request may ask for, in bytes: samples x weights x 4.",
        ),
    ] = 2**30

    workers: Annotated[int, Field(ge=1, description="Server processes that answer at the address, side by side.")] = 1
    concurrency: Annotated[
        int, Field(ge=1, description="Threads of a process that compute answers; other requests wait their turn.")
    ] = max(2, os.cpu_count() or 1)
    batch_rows: Annotated[
        int,
        Field(
            ge=1,
            description="Most rows of waiting requests for one model and one set of weights that go through the "
            "network together; more are hardly cheaper a row. 1 runs every request by itself.",
        ),
    ] = 32
    max_waiting: Annotated[
        int, Field(ge=1, description="Most requests of a process that wait their turn; more are answered 503 at once.")
    ] = 1024
    max_waiting_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="Most bytes that the bodies of all requests of a process take, from their arrival to their "
            "answers. Beyond that, bodies of more than 64 KiB are answered 503, but never one that is alone.",
        ),
    ] = 256 * 2**20
    threads: Annotated[
        int, Field(ge=0, description="Threads ONNX Runtime uses within one operator; 0 is one a core.")
    ] = 1
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Field(
            description="Where networks are computed: cuda (with onnxruntime-gpu), cpu, or auto: the first of both "
            "that works."
        ),
    ] = "auto"
    run_size: Annotated[
        int,
        Field(
            ge=1,
            description="Samples x rows in one run of the network; larger requests are cut into several runs, to bound "
            "memory.",
        ),
    ] = 8192

    cache_bytes: Annotated[
        int, Field(ge=0, description="Memory for decoded weight sets kept in the process, in bytes; 0 keeps none.")
    ] = 512 * 2**20
    spare_models: Annotated[
        int, Field(ge=0, description="Versions kept loaded beside those that a name or an alias means.")
    ] = 8

    redis_url: Annotated[
        SecretStr | None,
        Field(
            description="Redis through which servers share decoded weight sets, predictions that wait for feedback, "
            "and what became known of models (redis://host:6379/0); unset, none."
        ),
    ] = None
    redis_timeout: Annotated[
        float, Field(gt=0, le=10, description="Seconds to wait for Redis before answering without it.")
    ] = 0.25
    redis_retry: Annotated[
        float,
        Field(
            gt=0,
            description="Seconds to the first attempt to reach a Redis that failed; each later one waits twice as "
            "long, up to 30 s.",
        ),
    ] = 2.0
    redis_ttl: Annotated[
        int, Field(ge=1, description="Seconds that anything stays in Redis after it was last written.")
    ] = 7 * 24 * 3600
    redis_weights: Annotated[
        Literal["auto", "always", "never"],
        Field(
            description="Whether weight sets are kept in Redis: always, never, or auto: where fetching one was "
            "measured to take less time than decoding it, and it was asked for before."
        ),
    ] = "auto"
    redis_max_bytes: Annotated[
        int, Field(ge=1, description="Largest weight set put into Redis, in bytes; larger ones are decoded again.")
    ] = 64 * 2**20

    log_level: Annotated[LogLevel, Field(description="Least level that is logged.")] = "info"
    log_format: Annotated[
        Literal["console", "json"], Field(description="Log lines for a person (console) or a machine (json).")
    ] = "console"

    @field_validator("port", mode="before")
    @classmethod
    def _no_address_of_a_service(cls, value: Any) -> Any:
        """Kubernetes sets FIBERWALK_PORT to `tcp://ADDRESS:PORT` where a service has our name; nobody chose that."""
        link = isinstance(value, str) and value.startswith("tcp://")
        return cls.model_fields["port"].default if link else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_any_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value


def load_settings(**given: Any) -> Settings:
    """Settings from the environment; `given` values that are not None come first.

    Raises:
        ConfigError: a value is not usable; the message names its environment variable.
    """
    try:
        settings = Settings(**{k: v for k, v in given.items() if v is not None})
    except ValidationError as e:
        first = e.errors(include_input=False, include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        raise ConfigError(
            f"The setting {name} (FIBERWALK_{name.upper()}) is not usable: {first['msg']}.", field=name
        ) from e
    if settings.redis_url is not None:
        _check_redis_url(settings.redis_url.get_secret_value())
    return settings


def misspelt() -> dict[str, str]:
    """Variables of the environment that are named much like one of a setting, and that setting's.

    Others that begin so are left alone: Kubernetes and compose files have some of their own.
    """
    found = {}
    for variable in os.environ:
        name = variable.lower().removeprefix("fiberwalk_")
        if variable.lower() == name or name in Settings.model_fields:
            continue
        for meant in get_close_matches(name, Settings.model_fields, n=1, cutoff=0.85):
            found[variable] = f"FIBERWALK_{meant.upper()}"
    return found


def _check_redis_url(url: str) -> None:
    expected = "redis://HOST:PORT/DB, rediss://... or unix:///PATH"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"redis", "rediss", "unix"} and parts.port != 0 and bool(parts.netloc or parts.path)
    except ValueError:
        usable = False
    if not usable:  # the value may hold a password, so it is not repeated
        raise ConfigError("FIBERWALK_REDIS_URL is no Redis address.", field="redis_url", expected=expected)
