"""Where weights come from: Redis where fetching takes less time than decoding, or where a setting says so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import structlog

from model_store.store import ModelStore
from service.metrics import ServiceMetrics
from service.model import ServedModel
from service.redis_link import RedisLink
from service.settings import Settings
from service.weights import PLAN, WeightSource
from tests import bundles
from tests.servers import RedisServer

SAMPLES = 32
SLOW = 0.05


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    store = ModelStore(tmp_path_factory.mktemp("store"))
    bundles.numeric_regression().publish(store)
    return ServedModel(store.open("sine"))


@pytest.fixture
def slow_model(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> ServedModel:
    """The same, taking as long to decode as one of many columns does."""
    decode = model.engine.decode

    def slowly(*latents: Any) -> Any:
        time.sleep(SLOW)
        return decode(*latents)

    monkeypatch.setattr(model.engine, "decode", slowly)
    return model


class Source:
    """A source of weights with metrics of its own."""

    def __init__(self, url: str, weights: str, **settings: int) -> None:
        self.metrics = ServiceMetrics()
        self.link = RedisLink(url, timeout=0.5, retry=60, metrics=self.metrics, log=structlog.get_logger())
        chosen = Settings(cache_bytes=0, redis_weights=weights, **settings)  # type: ignore[arg-type]
        self._source = WeightSource(chosen, self.metrics, self.link)

    def get(self, model: ServedModel, seed: int) -> bytes:
        found = self._source.get(model, PLAN, SAMPLES, seed)
        return b"".join(np.ascontiguousarray(a).tobytes() for a in found.arrays.values())

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"fiberwalk_{name}_total", labels) or 0.0

    @property
    def hits(self) -> float:
        return self.count("cache_hits", tier="redis")


@pytest.fixture
def made(redis_server: RedisServer) -> Iterator[Any]:
    sources: list[Source] = []

    def make(weights: str, **settings: int) -> Source:
        sources.append(Source(redis_server.url, weights, **settings))
        return sources[-1]

    yield make
    for source in sources:
        source.link.close()


def keys(redis_server: RedisServer) -> int:
    with redis_server.client() as client:
        return len(client.keys("*"))


def test_what_is_decoded_sooner_than_fetched_is_decoded(
    made: Any, model: ServedModel, redis_server: RedisServer
) -> None:
    source = made("auto")
    assert source.get(model, 3) == source.get(model, 3)
    assert source.count("redis_left_out") == 2 and source.count("decodes", model="sine") == 2
    assert source.hits == 0 and keys(redis_server) == 0  # the probe is gone as well


def test_what_is_fetched_sooner_than_decoded_is_fetched(made: Any, slow_model: ServedModel) -> None:
    first, second = made("auto"), made("auto")
    found = first.get(slow_model, 3)
    first.get(slow_model, 3)
    second.get(slow_model, 4)  # measures
    started = time.perf_counter()
    assert second.get(slow_model, 3) == found
    assert time.perf_counter() - started < SLOW / 2
    assert second.hits == 1 and second.count("redis_left_out") == 0


def test_sets_that_nobody_asks_for_again_do_not_fill_redis(
    made: Any, slow_model: ServedModel, redis_server: RedisServer
) -> None:
    first, second, third = (made("auto") for _ in range(3))
    for seed in range(1, 9):
        first.get(slow_model, seed)
    with redis_server.client() as client:
        names = client.keys("fiberwalk:*")
        assert len(names) == 8 and all(client.strlen(n) < 10 and 0 < client.ttl(n) <= 3600 for n in names)
        # Another server counts as well, and the one after that is spared decoding.
        found = second.get(slow_model, 5)
        assert third.get(slow_model, 5) == found
        assert (second.hits, third.hits, third.count("decodes", model="sine")) == (0, 1, 0)
        (kept,) = (n for n in client.keys("fiberwalk:*") if client.strlen(n) >= 10)
        assert kept.endswith(b":5") and client.ttl(kept) > 3600
        # What servers start with they share at once.
        client.flushall()
    first.get(slow_model, 0)
    assert second.get(slow_model, 0) == first.get(slow_model, 0)
    assert second.hits == 1
    for source in (first, second, third):
        assert source.count("redis_errors", kind="rubbish") == 0


def test_what_servers_start_with_is_shared_at_once_where_limits_bound_it(made: Any, slow_model: ServedModel) -> None:
    first, second = (made("auto", samples=2 * SAMPLES, max_samples=SAMPLES) for _ in range(2))
    assert first.get(slow_model, 0) == second.get(slow_model, 0)
    assert second.hits == 1


@pytest.mark.parametrize(("weights", "hits"), [("always", 1), ("never", 0)])
def test_a_setting_comes_first(
    made: Any, slow_model: ServedModel, redis_server: RedisServer, weights: str, hits: int
) -> None:
    source = made(weights)
    assert source.get(slow_model, 3) == source.get(slow_model, 3)
    assert source.hits == hits == keys(redis_server)


def test_sets_too_large_for_redis_are_decoded_without_asking_it(made: Any, slow_model: ServedModel) -> None:
    source = made("auto", redis_max_bytes=100)
    source.get(slow_model, 3)
    assert source.count("redis_left_out") == 0
    assert source.count("cache_misses", tier="redis") == 0 and source.count("decodes", model="sine") == 1


def test_a_redis_that_is_down_is_not_waited_for(made: Any, slow_model: ServedModel, redis_server: RedisServer) -> None:
    source = made("auto")
    redis_server.kill()
    assert source.get(slow_model, 3) == source.get(slow_model, 3)
    assert source.count("decodes", model="sine") == 2
    assert source.count("redis_errors", kind="connection") == 1


def test_what_is_used_does_not_expire(made: Any, slow_model: ServedModel, redis_server: RedisServer) -> None:
    source = made("always", redis_ttl=1000)
    source.get(slow_model, 3)
    with redis_server.client() as client:
        (key,) = client.keys("*")
        client.expire(key, 5)
        source.get(slow_model, 3)
        assert client.ttl(key) > 900
    assert source.hits == 1
