"""Servers that watch a model together through Redis, and alone where it does not answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
from numpy.typing import NDArray

from model_store.store import ModelStore
from service.metrics import ServiceMetrics
from service.monitor import LEVELS, Labelled, Monitor
from service.redis_link import RedisLink
from service.redis_monitor import RedisMonitor
from service.remembered import Prediction, Remembered
from tests import bundles
from tests.servers import RedisServer, Server, serving, silent_listener, wait_until
from tests.service.test_feedback import ROWS, health, tell
from tests.service.test_requests import refused

DIGEST = "ab" * 32
CLASSES = Prediction("flowers@3", DIGEST, np.array([[0.25, 0.75], [0.5, 0.5]]), None)
NUMBERS = Prediction("sine@1", DIGEST, np.array([1.0, 2.0]), np.array([0.5, 0.25]))
HELD = "fiberwalk:predictions2:held"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    bundles.numeric_regression(columns=("x", "t")).publish(folder)
    return folder


@dataclass
class Member:
    """One process's part of what is shared."""

    link: RedisLink
    remembered: Remembered
    monitor: RedisMonitor
    metrics: ServiceMetrics

    def predict(self, request_id: str, prediction: Prediction) -> None:
        self.remembered.put(request_id, prediction)
        self.monitor.remember(request_id)

    @property
    def rubbish(self) -> float | None:
        """Values that were refused."""
        return self.metrics.registry.get_sample_value("fiberwalk_redis_errors_total", {"kind": "rubbish"})

    def value(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)


@contextmanager
def member(url: str, limit: int = 2**20, ttl: int = 60, timeout: float = 0.5) -> Iterator[Member]:
    metrics = ServiceMetrics()
    link = RedisLink(url, timeout=timeout, retry=60, metrics=metrics, log=structlog.get_logger())
    remembered = Remembered(2**24)
    made = RedisMonitor(link, remembered, ttl=ttl, limit=limit, metrics=metrics)
    try:
        yield Member(link, remembered, made, metrics)
    finally:
        made.close()
        link.close()


def known(process: Member, *, classes: bool = False) -> dict[str, Any]:
    """What all know of a model, in the words of `Monitor.health`."""
    found = process.monitor.health(DIGEST, 0.05, classes=classes)
    assert found is not None
    return found


def rows(count: int, rate: float, seed: int) -> Labelled:
    rng = np.random.default_rng(seed)
    missed = rng.uniform(size=(count, 1)) < rate * np.array([[2.0, 1.0, 0.5]])
    return Labelled(missed, rng.normal(size=count), rng.uniform(size=count), (rng.uniform(size=count) < 0.5) * 1.0)


def all_missed(count: int) -> Labelled:
    nothing: NDArray[np.float64] = np.full(count, np.nan)
    return Labelled(np.ones((count, len(LEVELS)), dtype=np.bool_), np.zeros(count), nothing, nothing)


# ---- what is known together


def test_threads_that_wait_for_each_other_do_not_take_redis_for_down(redis_server: RedisServer) -> None:
    with member(redis_server.url, timeout=0.5) as one:
        tell, asked = one.monitor._tell, []

        def slow(*arguments: Any, **more: Any) -> Any:
            asked.append(arguments)
            time.sleep(0.2)
            return tell(*arguments, **more)

        one.monitor._tell = slow  # type: ignore[assignment]
        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(lambda _: one.monitor.tell(DIGEST, all_missed(1), None, b""), range(6)))
        # Nobody else was faster.
        assert len(asked) == 6
        assert known(one)["rows"] == 6


def test_a_prediction_of_another_bundle_of_that_name_is_not_known(redis_server: RedisServer, tmp_path: Path) -> None:
    for folder, seed in (("one", 0), ("other", 1)):
        bundles.numeric_regression(seed=seed).publish(tmp_path / folder)
    settings = {"redis_url": redis_server.url}
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(stack.enter_context(serving(tmp_path / name, **settings)).client())
            for name in ("one", "other")
        )
        request_id = one.post("/predict", json={"inputs": [[1.0]]}).headers["X-Request-ID"]
        client = stack.enter_context(redis_server.client())
        wait_until(lambda: bool(client.hexists(HELD, request_id)))
        told = {"request_id": request_id, "targets": [1.0]}
        assert refused(other.post("/feedback", json=told), 404)["code"] == "unknown_request"
        assert one.post("/feedback", json=told).status_code == 200


def test_what_is_larger_than_all_may_be_takes_nobodys_place(redis_server: RedisServer) -> None:
    large = Prediction("sine@1", DIGEST, np.zeros(1000), np.ones(1000))
    with member(redis_server.url, limit=4000) as one, redis_server.client() as client:
        one.predict("small", NUMBERS)
        one.predict("large", large)
        one.predict("last", NUMBERS)
        wait_until(lambda: bool(client.hexists(HELD, "last")))
        assert client.hexists(HELD, "small") and not client.hexists(HELD, "large")


def test_the_figures_are_those_of_one_process(redis_server: RedisServer) -> None:
    """Batches of many sizes, told by turns to two processes; more of them than are kept, through an alarm."""
    own = Monitor(0.05)
    with member(redis_server.url) as one, member(redis_server.url) as other:
        for seed, (count, rate) in enumerate([(1, 0.1), (700, 0.1), (9_500, 0.1), (150, 0.6), (12_000, 0.1), (3, 1.0)]):
            batch, p = rows(count, rate, seed), np.random.default_rng(seed).uniform(size=count) ** 2
            own.add(batch)
            own.add_scores(p)
            monitor = (one, other)[seed % 2].monitor
            assert monitor.tell(DIGEST, batch, None, b"") is True
            monitor.add_scores(DIGEST, p <= 0.05)
            expected = own.health()
            wait_until(lambda n=expected["ood"]["rows"]: known(other, classes=True)["ood"]["rows"] == n)  # type: ignore[misc]
            assert known(one, classes=True) == known(other, classes=True) == expected
        assert expected["state"] == "broken" and expected["alarm_at_row"] > 10_000
        assert other.monitor.health("cd" * 32, 0.05, classes=True) == Monitor(0.05).health()
    with redis_server.client() as client:
        sizes = {k.decode().rsplit(":", 1)[1]: client.strlen(k) for k in client.keys("*:rows") + client.keys("*:flags")}
        assert sizes == {"rows": 240_000, "flags": 10_000}
        assert all(50 < client.ttl(k) <= 60 for k in client.keys("fiberwalk:*"))


def test_rows_told_to_many_at_once_all_count(redis_server: RedisServer) -> None:
    with member(redis_server.url, timeout=5) as one, member(redis_server.url, timeout=5) as other:

        def one_row(i: int) -> bool | None:
            return (one, other)[i % 2].monitor.tell(DIGEST, all_missed(1), None, b"")

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(one_row, range(200))) == {True}
        own = Monitor(0.05)
        own.add(all_missed(200))
        found = known(one)
        assert found["rows"] == 200 and found["alarm_at_row"] == own.health()["alarm_at_row"]
        assert found["evidence"] == pytest.approx(own.health()["evidence"])


def test_a_prediction_is_told_once_by_whoever_is_first(redis_server: RedisServer) -> None:
    with member(redis_server.url, timeout=5) as one, member(redis_server.url, timeout=5) as other:
        for turn in range(20):
            request_id = f"r{turn}"
            one.predict(request_id, NUMBERS)
            wait_until(lambda name=request_id: other.monitor.recall(name) is not None)  # type: ignore[misc]
            ways = []
            for process in (one, other, one, other):
                found = process.monitor.recall(request_id)
                assert found is not None
                ways.append(partial(process.monitor.tell, DIGEST, all_missed(2), request_id, found.token))
            with ThreadPoolExecutor(4) as pool:
                told = [answer.result() for answer in [pool.submit(way) for way in ways]]
            assert sorted(map(str, told)) == ["False", "False", "False", "True"]
            assert one.monitor.recall(request_id) is None and other.monitor.recall(request_id) is None
        assert known(one)["rows"] == 40


def test_what_is_told_before_it_was_written_stays_told(redis_server: RedisServer) -> None:
    with member(redis_server.url) as one, member(redis_server.url) as other:
        one.remembered.put("r", NUMBERS)
        assert other.monitor.recall("r") is None
        assert one.monitor.recall("r") is NUMBERS
        assert one.monitor.tell(DIGEST, all_missed(2), "r", NUMBERS.token) is True
        one.monitor.remember("r")
        one.predict("later", CLASSES)
        wait_until(lambda: other.monitor.recall("later") is not None)
        assert one.monitor.recall("r") is None and other.monitor.recall("r") is None
        # A client may use an id again, for another prediction.
        again = Prediction("sine@1", DIGEST, np.zeros(1), np.ones(1))
        other.predict("r", again)
        wait_until(lambda: one.monitor.recall("r") is not None)
        assert one.monitor.tell(DIGEST, all_missed(1), "r", again.token) is True


def test_ids_without_end_stay_within_bounds(redis_server: RedisServer) -> None:
    """What Redis itself says they take, told ones among them, is below the limit."""
    with member(redis_server.url, limit=50_000) as one, redis_server.client() as client:
        for i in range(3_000):
            one.predict(f"{i:032d}", NUMBERS)
            if i % 500 == 499:
                wait_until(lambda name=f"{i:032d}": one.link.client.hexists(HELD, name))  # type: ignore[misc]
                one.monitor.tell(DIGEST, all_missed(2), f"{i:032d}", NUMBERS.token)
        kept = client.hlen(HELD) - 1
        size = client.memory_usage(HELD, samples=0) + client.memory_usage(HELD.replace("held", "order"), samples=0)
        assert 50 < kept < 150 and size < 50_000
        assert client.zcard(HELD.replace("held", "order")) == kept
        assert one.monitor.recall(f"{0:032d}") is None
    assert (one.value("fiberwalk_redis_dropped_total") or 0) == 0


def test_old_predictions_go_and_so_does_what_lost_its_parts(redis_server: RedisServer) -> None:
    with member(redis_server.url, ttl=1) as one, redis_server.client() as client:
        one.predict("old", NUMBERS)
        wait_until(lambda: bool(client.hexists(HELD, "old")))
        time.sleep(0.6)
        one.predict("new", NUMBERS)
        wait_until(lambda: bool(client.hexists(HELD, "new")))
        time.sleep(0.6)
        one.predict("newer", NUMBERS)
        wait_until(lambda: not client.hexists(HELD, "old"))
        assert client.hexists(HELD, "newer")
        # Redis makes room by dropping whole keys: it all starts anew.
        one.monitor.tell(DIGEST, all_missed(30), None, b"")
        client.delete(f"fiberwalk:{DIGEST}:monitor2:rows")
        assert known(one)["rows"] == 0
        assert one.monitor.tell(DIGEST, all_missed(2), None, b"") is True
        assert known(one)["rows"] == 2


def test_a_full_queue_drops_and_counts_and_never_waits() -> None:
    with silent_listener() as port, member(f"redis://127.0.0.1:{port}/0", timeout=1) as one:
        started = time.perf_counter()
        for i in range(6_000):
            one.predict(str(i), NUMBERS)
        assert time.perf_counter() - started < 1
        assert one.value("fiberwalk_redis_dropped_total") >= 1_500  # type: ignore[operator]
        assert one.monitor.recall("0") is NUMBERS


# ---- servers


@contextmanager
def two(store: Path, url: str, **settings: object) -> Iterator[tuple[tuple[Server, httpx.Client], ...]]:
    with (
        serving(store, redis_url=url, **settings) as a,
        serving(store, redis_url=url, **settings) as b,
        a.client() as first,
        b.client() as second,
    ):
        yield (a, first), (b, second)


def asked(client: httpx.Client) -> str:
    return client.post("/predict", json={"inputs": ROWS, "model": "sine"}).headers["X-Request-ID"]


def gauges(server: Server) -> dict[str, float]:
    names = ("coverage", "nll", "calibration_broken", "ood_share", "monitor_shared")
    return {name: server.counter(f"fiberwalk_{name}") for name in names}


def test_any_server_takes_targets_of_any_others_predictions(store: Path, redis_server: RedisServer) -> None:
    with two(store, redis_server.url) as ((a, first), (b, second)), redis_server.client() as redis:
        request_id = asked(first)
        wait_until(lambda: bool(redis.hexists(HELD, request_id)))
        content = {"request_id": request_id, "targets": [0.0, 1e6, 1e6]}
        told = tell(second, **content)
        assert (told["rows"], told["scope"], told["warning"]) == (3, "shared", None)
        for client in (first, second):
            assert refused(client.post("/feedback", json=content), 404)["code"] == "unknown_request"
        assert health(first, "sine") == health(second, "sine") == {k: v for k, v in told.items() if k != "taken"}
        first.post("/ood", json={"inputs": [[v, v] for v in range(40)], "model": "sine"})
        tell(first, inputs=[[float(i), 1.0] for i in range(60)], model="sine", targets=[1e6] * 60)
        wait_until(lambda: health(second, "sine")["ood"]["rows"] == 40)
        assert health(second, "sine")["state"] == "broken"
        assert gauges(a) == gauges(b)
        assert gauges(b)["calibration_broken"] == gauges(b)["monitor_shared"] == 1
        digest = ModelStore(store).open("sine").digest
        assert {k.decode() for k in redis.keys("*monitor*")} == {
            f"fiberwalk:{digest}:monitor2:{part}" for part in ("state", "rows", "flags")
        }


def test_a_dead_redis_leaves_each_server_its_own_monitor(store: Path, redis_server: RedisServer) -> None:
    with two(store, redis_server.url, redis_retry=0.2) as ((a, first), (b, second)), redis_server.client() as redis:
        known, waiting = asked(first), asked(first)
        wait_until(lambda: bool(redis.hexists(HELD, waiting)))
        tell(first, request_id=known, targets=[0.0] * 3)
        redis_server.kill()
        # It is told where it was predicted, once.
        content = {"request_id": waiting, "targets": [0.0] * 3}
        assert refused(second.post("/feedback", json=content), 404)["code"] == "unknown_request"
        told = tell(first, **content)
        assert (told["rows"], told["scope"]) == (6, "process") and "Redis" in told["warning"]
        assert refused(first.post("/feedback", json=content), 404)["code"] == "unknown_request"
        assert (health(second, "sine")["rows"], gauges(b)["monitor_shared"]) == (0, 0)
        lost = asked(first)
        wait_until(lambda: a.counter("fiberwalk_redis_dropped_total") >= 1)
        redis_server.start()
        wait_until(lambda: a.counter("fiberwalk_redis_up") == b.counter("fiberwalk_redis_up") == 1)
        told = tell(first, request_id=lost, targets=[0.0] * 3)
        assert (told["rows"], told["scope"]) == (3, "shared")
        assert health(second, "sine")["rows"] == 3


def test_a_stalled_redis_does_not_stall_predictions(store: Path) -> None:
    with (
        silent_listener() as port,
        serving(store, redis_url=f"redis://127.0.0.1:{port}/0", redis_timeout=0.5, redis_retry=60) as server,
        server.client() as client,
    ):
        started = time.perf_counter()
        ids = [asked(client) for _ in range(50)]
        assert time.perf_counter() - started < 5
        told: dict[str, Any] = tell(client, request_id=ids[-1], targets=[0.0] * 3)
        assert (told["rows"], told["scope"]) == (3, "process")
