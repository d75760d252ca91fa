"""Redis in every condition: right, down, killed, slow, lying. Answers never depend on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import ConfigError
from model_store.store import ModelStore
from service.cache import WeightKey
from service.metrics import ServiceMetrics
from service.redis_link import RedisLink
from service.redis_tier import RedisTier, pack, unpack
from tests import bundles
from tests.servers import RedisServer, Server, serving, silent_listener, wait_until

BODY = {"inputs": [[1.0], [2.0], [9.0]]}
KEY = WeightKey("ab" * 32, "predict", 3, 7)
WEIGHTS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
VALUE = pack(KEY, WEIGHTS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    bundles.numeric_regression().publish(folder)
    return folder


@pytest.fixture(scope="module")
def expected(store: Path) -> Callable[[int], bytes]:
    """The answer that a server without Redis gives, by seed."""
    with serving(store) as server, server.client() as client:
        answers = [answer(client, seed) for seed in range(40)]
    return lambda seed: answers[seed]


def answer(client: httpx.Client, seed: int = 0) -> bytes:
    response = client.post("/predict", json=BODY | {"seed": seed})
    assert response.status_code == 200, response.text
    return response.content


def errors(server: Server, kind: str) -> float:
    return server.counter("fiberwalk_redis_errors_total", kind=kind)


def hits(server: Server) -> float:
    return server.counter("fiberwalk_cache_hits_total", tier="redis")


def decodes(server: Server) -> float:
    return server.counter("fiberwalk_decodes_total")


# ---- the value


def test_a_value_comes_back_bit_for_bit() -> None:
    assert str(KEY) == f"fiberwalk:{'ab' * 32}:predict:3:7"
    found = unpack(KEY, 5, VALUE)
    assert found.dtype == np.float32
    assert found.tobytes() == WEIGHTS.tobytes()


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_every_byte_of_a_value_counts(bit: int) -> None:
    for at in range(len(VALUE)):
        changed = bytearray(VALUE)
        changed[at] ^= 1 << bit
        with pytest.raises(ValueError, match=r"format|header|checksum"):
            unpack(KEY, 5, bytes(changed))


OTHERS = [
    WeightKey("cd" * 32, "predict", 3, 7),
    WeightKey("ab" * 32, "other", 3, 7),
    WeightKey("ab" * 32, "predict", 3, 8),
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_the_value_of_another_key_is_refused(other: WeightKey) -> None:
    with pytest.raises(ValueError, match=r"header|checksum"):
        unpack(other, 5, VALUE)


def test_another_shape_of_the_same_size_is_refused() -> None:
    with pytest.raises(ValueError, match="header"):
        unpack(WeightKey("ab" * 32, "predict", 5, 7), 3, VALUE)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(number: float) -> None:
    weights = WEIGHTS.copy()
    weights[1, 2] = number
    with pytest.raises(ValueError, match="numbers"):
        unpack(KEY, 5, pack(KEY, weights))


@given(st.binary(max_size=300) | st.integers(0, len(VALUE)).map(lambda n: VALUE[:n] + b"x"))
def test_rubbish_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"size|format|header|checksum"):
        unpack(KEY, 5, value)


# ---- the tier


def tier(url: str, **settings: float) -> tuple[RedisTier, ServiceMetrics]:
    metrics = ServiceMetrics()
    chosen = {"timeout": 0.25, "retry": 0.1} | settings
    link = RedisLink(url, metrics=metrics, log=structlog.get_logger(), **chosen)
    return RedisTier(link, ttl=60, max_bytes=1000), metrics


def test_what_is_put_is_found_and_expires(redis_server: RedisServer) -> None:
    made, _ = tier(redis_server.url)
    assert made.get(KEY, 5) is None
    made.put(KEY, 5, lambda: WEIGHTS)
    assert np.array_equal(made.get(KEY, 5), WEIGHTS)  # type: ignore[arg-type]
    large = WeightKey(KEY.digest, "predict", 400, 0)
    made.put(large, 5, lambda: pytest.fail("larger than any that is kept"))
    with redis_server.client() as client:
        assert 50 < client.ttl(str(KEY)) <= 60
        assert not client.exists(str(large))


def test_a_redis_that_failed_is_left_alone_until_it_is_back(redis_server: RedisServer) -> None:
    made, metrics = tier(redis_server.url, retry=0.3)
    made.put(KEY, 5, lambda: WEIGHTS)
    redis_server.kill()
    assert made.get(KEY, 5) is None
    failures = metrics.registry.get_sample_value("fiberwalk_redis_errors_total", {"kind": "connection"})
    assert failures == 1
    for _ in range(50):
        assert made.get(KEY, 5) is None
    assert metrics.registry.get_sample_value("fiberwalk_redis_errors_total", {"kind": "connection"}) == failures
    assert metrics.registry.get_sample_value("fiberwalk_redis_up") == 0
    redis_server.start()
    wait_until(lambda: metrics.registry.get_sample_value("fiberwalk_redis_up") == 1, what="the tier to come back")
    made.put(KEY, 5, lambda: WEIGHTS)
    assert np.array_equal(made.get(KEY, 5), WEIGHTS)  # type: ignore[arg-type]


def test_nothing_is_made_for_a_redis_that_is_down(redis_server: RedisServer) -> None:
    made, _ = tier(redis_server.url, retry=60)
    redis_server.kill()
    assert made.get(KEY, 5) is None
    made.put(KEY, 5, lambda: pytest.fail("nobody takes it"))


def test_another_type_under_a_key_is_no_failure_of_redis(redis_server: RedisServer) -> None:
    made, metrics = tier(redis_server.url, retry=60)
    with redis_server.client() as client:
        client.rpush(str(KEY), "a list")
    assert made.get(KEY, 5) is None
    assert metrics.registry.get_sample_value("fiberwalk_redis_errors_total", {"kind": "rubbish"}) == 1
    assert metrics.registry.get_sample_value("fiberwalk_redis_up") == 1
    made.put(KEY, 5, lambda: WEIGHTS)
    assert np.array_equal(made.get(KEY, 5), WEIGHTS)  # type: ignore[arg-type]


def test_of_a_value_that_is_too_long_no_more_comes_than_is_right(redis_server: RedisServer) -> None:
    made, metrics = tier(redis_server.url, timeout=5)
    with redis_server.client() as client:
        client.set(str(KEY), bytes(50_000_000), ex=30)
        before = client.info("stats")["total_net_output_bytes"]
        assert made.get(KEY, 5) is None
        assert client.info("stats")["total_net_output_bytes"] - before < 100_000
        assert metrics.registry.get_sample_value("fiberwalk_redis_errors_total", {"kind": "rubbish"}) == 1
        made.put(KEY, 5, lambda: WEIGHTS)
        client.expire(str(KEY), 30)
        assert np.array_equal(made.get(KEY, 5), WEIGHTS)  # type: ignore[arg-type]
        # What is used lives on.
        assert 50 < client.ttl(str(KEY)) <= 60


def test_one_slow_fetch_does_not_rule_redis_out_for_ever(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = tier(redis_server.url)
    usual = made.seconds(1000)
    made.put(KEY, 5, lambda: WEIGHTS)
    pipeline = made._link.client.pipeline
    monkeypatch.setattr(made._link.client, "pipeline", lambda **k: (time.sleep(0.1), pipeline(**k))[1])
    assert np.array_equal(made.get(KEY, 5), WEIGHTS)  # type: ignore[arg-type]
    slow = made.seconds(1000)
    assert usual is not None and slow is not None and slow > max(0.1, 2 * usual)
    monkeypatch.setattr("service.redis_tier._KNOWN_SECONDS", 0.0)
    again = made.seconds(1000)
    assert again is not None and again < slow / 2


def test_an_address_with_options_that_no_client_takes_is_refused() -> None:
    with pytest.raises(ConfigError, match="FIBERWALK_REDIS_URL") as e:
        tier("redis://:sesame@localhost/0?foo=1")
    assert "sesame" not in e.value.message


def test_a_redis_that_refuses_is_counted_as_such(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.config_set("requirepass", "sesame")
    made, metrics = tier(redis_server.url.replace("//", "//:wrong@"), retry=60)
    assert made.get(KEY, 5) is None
    assert metrics.registry.get_sample_value("fiberwalk_redis_errors_total", {"kind": "refused"}) == 1


# ---- servers on a Redis


def test_a_second_server_starts_from_the_cache(
    store: Path, redis_server: RedisServer, expected: Callable[[int], bytes]
) -> None:
    with serving(store, redis_weights="always", redis_url=redis_server.url) as first, first.client() as client:
        assert [answer(client, seed) for seed in range(3)] == [expected(s) for s in range(3)]
        assert decodes(first) == 3
        assert hits(first) == 0
        with serving(store, redis_weights="always", redis_url=redis_server.url) as second, second.client() as other:
            assert [answer(other, seed) for seed in range(3)] == [expected(s) for s in range(3)]
            assert decodes(second) == 0
            assert hits(second) == 3
    digest = ModelStore(store).open("sine").digest
    with redis_server.client() as client:
        keys = {k.decode() for k in client.keys(f"fiberwalk:{digest}:*")}
    assert keys == {f"fiberwalk:{digest}:predict:32:{s}" for s in range(3)}


def test_redis_killed_in_mid_load(store: Path, redis_server: RedisServer, expected: Callable[[int], bytes]) -> None:
    """Without a process cache each request needs its weights anew; every one is answered, and right."""
    answers: list[tuple[int, bytes]] = []
    slowest: list[float] = []
    stop = threading.Event()
    with serving(store, redis_weights="always", redis_url=redis_server.url, cache_bytes=0, redis_retry=0.2) as server:

        def ask(offset: int) -> None:
            with server.client() as client:
                turn = 0
                while not stop.is_set():
                    seed = (offset * 7 + turn) % 40
                    started = time.perf_counter()
                    answers.append((seed, answer(client, seed)))
                    slowest.append(time.perf_counter() - started)
                    turn += 1

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for t in threads:
            t.start()
        wait_until(lambda: hits(server) > 50, what="answers from Redis")
        redis_server.kill()
        wait_until(lambda: server.counter("fiberwalk_redis_up") == 0, what="the server to notice")
        seen = len(answers)
        wait_until(lambda: len(answers) > seen + 100, what="answers without Redis")
        redis_server.start()
        wait_until(lambda: server.counter("fiberwalk_redis_up") == 1, what="the server to come back")
        before = hits(server)
        wait_until(lambda: hits(server) > before + 20, what="answers from Redis again")
        stop.set()
        for t in threads:
            t.join()
        assert errors(server, "connection") >= 1
        wait_until(lambda: "redis_failed" in server.log)
        assert server.counter("fiberwalk_requests_total", route="/predict") == len(answers)
    assert all(content == expected(seed) for seed, content in answers)
    assert max(slowest) < 5


def test_no_redis_at_the_start(store: Path, redis_server: RedisServer, expected: Callable[[int], bytes]) -> None:
    redis_server.kill()
    with (
        serving(store, redis_weights="always", redis_url=redis_server.url, redis_retry=0.2) as server,
        server.client() as client,
    ):
        assert answer(client, 1) == expected(1)
        assert errors(server, "connection") == 1
        redis_server.start()
        wait_until(lambda: server.counter("fiberwalk_redis_up") == 1)
        assert answer(client, 2) == expected(2)
        with redis_server.client() as other:
            assert [k.decode().rsplit(":", 1)[1] for k in other.keys("*:predict:*")] == ["2"]


def test_rubbish_under_a_key_is_replaced(
    store: Path, redis_server: RedisServer, expected: Callable[[int], bytes]
) -> None:
    digest = ModelStore(store).open("sine").digest
    key, other = f"fiberwalk:{digest}:predict:32:5", f"fiberwalk:{digest}:predict:32:6"
    with (
        serving(store, redis_weights="always", redis_url=redis_server.url, cache_bytes=0) as server,
        server.client() as client,
        redis_server.client() as redis,
    ):
        answer(client, 5)
        answer(client, 6)
        right, another = redis.get(key), redis.get(other)
        assert isinstance(right, bytes) and isinstance(another, bytes)
        wrong = [b"hello", right[:-1], right + b"x", right[:-1] + bytes([right[-1] ^ 1]), another, b""]
        for count, value in enumerate(wrong, start=1):
            redis.set(key, value)
            before = decodes(server)
            assert answer(client, 5) == expected(5)
            assert decodes(server) == before + 1
            assert errors(server, "rubbish") == count
            assert redis.get(key) == right
            assert answer(client, 5) == expected(5)
            assert decodes(server) == before + 1
        wait_until(lambda: "redis_value_refused" in server.log)

        redis.delete(key)
        redis.rpush(key, "hello")  # Redis itself refuses to read a list as a value
        assert answer(client, 5) == expected(5)
        assert errors(server, "rubbish") == len(wrong) + 1 and errors(server, "refused") == 0


def test_a_redis_that_never_answers_costs_one_short_wait(store: Path, expected: Callable[[int], bytes]) -> None:
    with (
        silent_listener() as port,
        serving(
            store,
            redis_weights="always",
            redis_url=f"redis://:hunter2@127.0.0.1:{port}/0",
            cache_bytes=0,
            redis_timeout=0.2,
        ) as server,
        server.client() as client,
    ):
        started = time.perf_counter()
        for seed in range(40):
            assert answer(client, seed) == expected(seed)
        assert time.perf_counter() - started < 3
        assert 1 <= errors(server, "timeout") <= 2
        wait_until(lambda: "redis_failed" in server.log)
        assert "hunter2" not in server.log + server.get("/metrics").text
