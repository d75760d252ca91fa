"""Servers on a Redis that holds what nobody wrote, or somebody else did: no answer fails for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from model_store.store import ModelStore
from service.redis_values import pack_prediction
from service.remembered import Prediction
from tests import bundles
from tests.servers import Server, redis_running, serving, wait_until
from tests.service.test_feedback import ROWS, health, tell
from tests.service.test_redis_monitor import HELD
from tests.service.test_redis_values import state
from tests.service.test_requests import refused

SPECIES = ["setosa", "versicolor", "virginica"]
Served = tuple[Server, httpx.Client, redis.Redis]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    bundles.numeric_regression(columns=("x", "t")).publish(folder)
    bundles.classification().publish(folder)
    return folder


@pytest.fixture(scope="module")
def running(store: Path) -> Iterator[tuple[Server, httpx.Client, redis.Redis]]:
    with (
        redis_running() as redis_server,
        serving(store, redis_url=redis_server.url) as server,
        server.client() as client,
        redis_server.client() as shared,
    ):
        yield server, client, shared


@pytest.fixture
def served(running: Served) -> Iterator[Served]:
    """A server, a client of it, and one of its Redis, which is empty and for which it is up to the end."""
    server, _, shared = running
    shared.flushall()
    yield running
    assert server.counter("fiberwalk_redis_up") == 1
    assert server.counter("fiberwalk_redis_errors_total", kind="refused") == 0


def rubbish(server: Server) -> float:
    return server.counter("fiberwalk_redis_errors_total", kind="rubbish")


def keys(store: Path, model: str) -> list[str]:
    digest = ModelStore(store).open(model).digest
    return [f"fiberwalk:{digest}:monitor2:{part}" for part in ("state", "rows", "flags")]


@pytest.mark.parametrize(
    ("model", "inputs", "targets"),
    [("sine", ROWS, [0.0, 1e6, -1e308]), ("flowers", [[5, 4], [0, 0], [1e5, -1e5]], SPECIES)],
)
def test_what_servers_themselves_write_is_right(
    served: Served, model: str, inputs: list[Any], targets: list[Any]
) -> None:
    server, client, shared = served
    before = rubbish(server)
    for turn in range(1, 4):
        answered = client.post("/predict", json={"model": model, "inputs": inputs, "ood": True})
        request_id = answered.headers["X-Request-ID"]
        wait_until(lambda name=request_id: bool(shared.hexists(HELD, name)))  # type: ignore[misc]
        told = tell(client, request_id=request_id, targets=targets)
        assert (told["rows"], told["scope"]) == (3 * turn, "shared")
    wait_until(lambda: health(client, model)["ood"]["rows"] == 9)
    assert rubbish(server) == before


def test_rows_of_wrong_content_fail_no_answer(store: Path, served: Served) -> None:
    server, client, shared = served
    before = rubbish(server)
    key, ring, _ = keys(store, "flowers")
    shared.hset(key, "test", state(1))
    shared.set(ring, np.array([0, 0, 0, 1, -1.0, 1], dtype="<f4").tobytes())
    found = health(client, "flowers")
    assert (found["rows"], found["scope"], found["warning"]) == (0, "shared", None)
    assert client.get("/metrics").status_code == 200
    shared.hset(key, "test", state(2**63 - 1))
    shared.set(ring, bytes(240_000))
    told = tell(client, model="flowers", inputs=[[5, 4]], targets=["setosa"])
    assert (told["rows"], told["scope"]) == (1, "shared")
    assert rubbish(server) == before + 2


@pytest.mark.parametrize(
    ("model", "mean", "variance"),
    [
        ("flowers", [[0.5, 0.5]], None),
        ("flowers", [0.5], [1.0]),
        ("sine", [[0.5, 0.5]], None),
    ],
)
def test_a_prediction_that_its_model_does_not_make_is_not_known(
    store: Path, served: Served, model: str, mean: list[Any], variance: list[float] | None
) -> None:
    server, client, shared = served
    before = rubbish(server)
    digest = ModelStore(store).open(model).digest
    forged = Prediction(f"{model}@1", digest, np.array(mean), None if variance is None else np.array(variance))
    shared.hset(HELD, "forged", pack_prediction(forged))
    told = {"request_id": "forged", "targets": ["virginica" if model == "flowers" else 1.0]}
    assert refused(client.post("/feedback", json=told), 404)["code"] == "unknown_request"
    assert not shared.hexists(HELD, "forged")
    # The number of bytes was missing too.
    assert rubbish(server) == before + 2
    wait_until(lambda: "task or classes" in server.log)


def test_counters_that_are_no_numbers_do_not_turn_redis_off(store: Path, served: Served) -> None:
    server, client, shared = served
    before = rubbish(server)

    def predicted() -> str:
        answered = client.post("/predict", json={"model": "sine", "inputs": ROWS, "ood": True})
        request_id = answered.headers["X-Request-ID"]
        wait_until(lambda: bool(shared.hexists(HELD, request_id)))
        return str(request_id)

    predicted()
    shared.hset(HELD, "#bytes", "notanumber")
    shared.hset(keys(store, "sine")[0], "scored", "abc")
    request_id = predicted()
    assert tell(client, request_id=request_id, targets=[0.0] * 3)["scope"] == "shared"
    wait_until(lambda: health(client, "sine")["ood"]["rows"] == 3)
    assert rubbish(server) == before + 2


@pytest.mark.parametrize("request_id", ["#bytes", "", "a b", "\u00fc", "x" * 129, "x" * 8_000_000])
def test_redis_is_asked_for_no_id_that_no_request_has(served: Served, request_id: str) -> None:
    server, client, shared = served
    before = rubbish(server)
    client.post("/predict", json={"model": "sine", "inputs": ROWS})
    wait_until(lambda: bool(shared.exists(HELD)))
    received = shared.info("stats")["total_net_input_bytes"]
    error = refused(client.post("/feedback", json={"request_id": request_id, "targets": [1.0]}), 404)
    assert error["code"] == "unknown_request" and len(error["got"]) < 200
    assert shared.info("stats")["total_net_input_bytes"] - received < 1000
    assert rubbish(server) == before
