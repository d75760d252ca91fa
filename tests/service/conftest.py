from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, settings

from tests import bundles
from tests.servers import RedisServer, Server, redis_running, serving

# A machine that is busy with other tests must not decide whether these pass.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one model of each kind; not to be changed."""
    folder = tmp_path_factory.mktemp("store")
    for parts in (
        bundles.mixed_regression(),
        bundles.numeric_regression(columns=("x", "t")),
        bundles.classification(),
        bundles.image_classification(),
        bundles.mixed_regression("behind_a_trunk", trunk=True),
    ):
        parts.publish(folder)
    return folder


@pytest.fixture(scope="session")
def server(store: Path) -> Iterator[Server]:
    """A running server of `store` with low limits."""
    with serving(
        store, max_rows=100, max_samples=64, max_values=2_000, max_body_bytes=20_000, log_level="debug"
    ) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of `server`."""
    with server.client() as client:
        yield client


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis server of the test's own."""
    with redis_running() as server:
        yield server
