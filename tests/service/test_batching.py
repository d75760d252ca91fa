"""Requests that wait go through the network together: what they are answered, in which turn, and how many may wait."""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import service.scheduler
from service.app import create_app
from service.settings import Settings
from service.together import Run
from tests import bundles
from tests.servers import Server, serving, wait_until

LONG = {"inputs": [[1.0, 2.0]] * 4096, "model": "sine", "samples": 512}
"""Keeps a worker busy for a second or so."""

PRICES = [[5, 80, "Bonn"], [2, 30, "Köln"], [9, 200.5, "Aachen"]]
TOGETHER: list[tuple[str, dict[str, Any]]] = [
    ("/predict", {"inputs": PRICES[:1]}),
    ("/predict", {"inputs": PRICES[1:2]}),
    ("/predict", {"inputs": PRICES, "level": 0.5, "quantiles": [0.05, 0.5]}),
    ("/predict", {"inputs": PRICES[1:], "ood": True}),
    ("/predict", {"inputs": PRICES[:2], "return": ["samples"]}),
    ("/ood", {"inputs": PRICES[2:]}),
    ("/ood", {"inputs": PRICES, "false_alarm_rate": 0.2}),
    ("/predict", {"inputs": PRICES[2:], "level": 0.5}),
]


@contextmanager
def busy(server: Server) -> Iterator[Future[httpx.Response]]:
    """Keeps the server's only worker busy when the block begins."""
    with ThreadPoolExecutor(1) as pool, server.client() as client:
        begun = server.counter("fiberwalk_batch_requests_count", model="sine")
        running = pool.submit(client.post, "/predict", json=LONG)
        wait_until(lambda: server.counter("fiberwalk_batch_requests_count", model="sine") > begun)
        yield running
        assert running.result().status_code == 200


def assert_alike(found: Any, expected: Any) -> None:
    """Equal, but for the last bits of numbers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_alike(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    else:
        assert found == expected


@pytest.mark.parametrize("model", ["prices", "behind_a_trunk"])
def test_answers_are_those_of_lone_requests(store: Path, model: str) -> None:
    asked = [(path, body | {"model": model}) for path, body in TOGETHER]
    with serving(store, concurrency=1) as server, server.client() as client:
        expected = [client.post(path, json=body).json() for path, body in asked]
        alone = server.counter("fiberwalk_batch_requests_count", model=model)
        assert server.counter("fiberwalk_batch_requests_sum", model=model) == alone == len(asked)
        with busy(server), ThreadPoolExecutor(len(asked)) as pool:
            posts = [pool.submit(client.post, path, json=body) for path, body in asked]
            found = [post.result() for post in posts]
        # All of them in one run.
        assert server.counter("fiberwalk_batch_requests_count", model=model) == alone + 1
        assert server.counter("fiberwalk_batch_requests_bucket", model=model, le="4.0") == alone
        rows = sum(len(body["inputs"]) for _, body in asked)
        assert server.counter("fiberwalk_batch_rows_sum", model=model) == 2 * rows
        assert server.counter("fiberwalk_queue_seconds_count", model=model) == 2 * len(asked)
        assert server.counter("fiberwalk_waiting_requests") == 0
        # What was predicted together is remembered for each.
        for request, post in zip(asked, found, strict=True):
            if request[0] == "/predict":
                told = {"request_id": post.headers["X-Request-ID"], "targets": [1.0] * len(request[1]["inputs"])}
                assert client.post("/feedback", json=told).status_code == 200
    for one, other in zip(found, expected, strict=True):
        assert one.status_code == 200
        assert_alike(one.json(), other)


def test_classes_are_those_of_lone_requests(store: Path) -> None:
    bodies = [{"inputs": [[x, 4.0]], "model": "flowers", "return": ["samples"]} for x in range(40)]
    with serving(store, concurrency=1, batch_rows=7) as server, server.client() as client:
        expected = [client.post("/predict", json=body).json() for body in bodies]
        with busy(server), ThreadPoolExecutor(len(bodies)) as pool:
            found = list(pool.map(lambda b: client.post("/predict", json=b).json(), bodies))
        # As many rows a run as the setting allows, if only those that come in time: six runs at best.
        runs = server.counter("fiberwalk_batch_rows_count", model="flowers")
        assert 40 + 6 <= runs < 40 + 20
        assert server.counter("fiberwalk_batch_rows_bucket", model="flowers", le="8.0") == runs
    assert_alike(found, expected)


@pytest.mark.parametrize("trunk", [False, True])
def test_features_are_those_of_lone_requests(tmp_path: Path, trunk: bool) -> None:
    bundles.numeric_regression(columns=("x", "t")).publish(tmp_path)
    bundles.image_classification(trunk=trunk).publish(tmp_path)
    images = np.random.default_rng(0).uniform(0, 16, size=(80, 16)).tolist()
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/predict", {"inputs": images[:2]}),
        ("/predict", {"inputs": images[2:3], "ood": True}),
        ("/ood", {"inputs": images[3:8]}),
        ("/predict", {"inputs": images[8:], "ood": True, "level": 0.5}),  # more than one run of the network takes
    ]
    asked = [(path, body | {"model": "digits"}) for path, body in asked]
    with serving(tmp_path, concurrency=1, batch_rows=200) as server, server.client() as client:
        expected = [client.post(path, json=body).json() for path, body in asked]
        with busy(server), ThreadPoolExecutor(len(asked)) as pool:
            found = list(pool.map(lambda one: client.post(one[0], json=one[1]).json(), asked))
        assert server.counter("fiberwalk_batch_requests_count", model="digits") == len(asked) + 1
    assert_alike(found, expected)
    assert "features" not in found[0]
    assert "nearest_features" in found[1]["ood"]["detectors"] and "nearest_features" in found[2]["detectors"]


def test_other_weights_go_in_other_runs(store: Path) -> None:
    plans = [{}, {"seed": 1}, {"samples": 7}, {"seed": 1, "samples": 7}]
    bodies = [{"inputs": [PRICES[i % 3]], "model": "prices", **plan} for plan in plans for i in range(3)]
    with serving(store, concurrency=1) as server, server.client() as client:
        expected = [client.post("/predict", json=body).json() for body in bodies]
        with busy(server), ThreadPoolExecutor(len(bodies)) as pool:
            found = list(pool.map(lambda b: client.post("/predict", json=b).json(), bodies))
        assert server.counter("fiberwalk_batch_requests_count", model="prices") == len(bodies) + len(plans)
    assert_alike(found, expected)


def test_a_request_that_is_wrong_fails_alone(tmp_path: Path) -> None:
    bundles.numeric_regression(columns=("x", "t")).publish(tmp_path)
    bundles.numeric_regression("waves", columns=("x", "t"), trunk=True).publish(tmp_path)
    right = [{"inputs": [[x, 1.0]], "model": "waves"} for x in range(3)]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"inputs": [[1.0, "far"]], "model": "waves"}, "inputs[0][1]"),
        ({"inputs": [[1.0, 2.0], [3.3e38, 3.3e38]], "model": "waves"}, "inputs[1]"),  # found by the run itself
        ({"inputs": [[1.0, 2.0]], "model": "waves", "level": 2}, "level"),
    ]
    with serving(tmp_path, concurrency=1) as server, server.client() as client:
        alone = [client.post("/predict", json=body) for body in [*right, *(body for body, _ in wrong)]]
        with busy(server), ThreadPoolExecutor(6) as pool:
            bodies = [*right, *(body for body, _ in wrong)]
            found = list(pool.map(lambda b: client.post("/predict", json=b), bodies))
    assert [r.status_code for r in found] == [r.status_code for r in alone] == [200] * 3 + [422] * 3
    for one, other in zip(found, alone, strict=True):
        assert_alike(one.json(), other.json())
    assert [r.json()["error"]["field"] for r in found[3:]] == [field for _, field in wrong]


def test_what_no_check_foresaw_fails_alone(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request is known to make a run fail, so a fault is planted."""
    sizes = []
    together, alone = service.scheduler.run_together, service.scheduler.run_alone

    def fail_together(weights: Any, runs: list[Run]) -> Any:
        sizes.append(len(runs))
        if any(len(run.x) == 2 for run in runs):
            raise RuntimeError("planted")
        return together(weights, runs)

    def fail_alone(weights: Any, run: Run) -> Any:
        if len(run.x) == 2:
            raise RuntimeError("planted")
        return alone(weights, run)

    monkeypatch.setattr("service.scheduler.run_together", fail_together)
    monkeypatch.setattr("service.scheduler.run_alone", fail_alone)

    async def ask() -> list[int]:
        app = create_app(Settings(store=store, concurrency=1, log_level="error"))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
                bodies = [{"inputs": PRICES[: 2 if i == 5 else 1], "model": "prices", "seed": 77} for i in range(12)]
                answers = await asyncio.gather(
                    client.post("/predict", json=LONG), *(client.post("/predict", json=body) for body in bodies)
                )
                return [a.status_code for a in answers]

    assert asyncio.run(ask()) == [200] * 6 + [500] + [200] * 6
    assert max(sizes) > 1


def test_models_take_turns(store: Path) -> None:
    """A model that many ask does not keep the others from being asked."""
    many = {"inputs": [[1.0, 2.0]] * 400, "model": "sine", "samples": 256}
    one = {"inputs": PRICES[:1], "model": "prices"}
    with serving(store, concurrency=1) as server, server.client() as client, ThreadPoolExecutor(42) as pool:
        client.post("/predict", json=many)
        with busy(server):
            answered: list[str] = []

            def ask(body: dict[str, Any]) -> int:
                answer = client.post("/predict", json=body)
                answered.append(answer.json()["model"])
                return answer.status_code

            posts = [pool.submit(ask, many) for _ in range(40)]
            wait_until(lambda: server.counter("fiberwalk_waiting_requests") == len(posts))
            posts.append(pool.submit(ask, one))
            wait_until(lambda: server.counter("fiberwalk_waiting_requests") == len(posts))
        assert {post.result() for post in posts} == {200}
    assert answered.index("prices") < 10


def test_more_requests_than_may_wait_are_refused(store: Path) -> None:
    body = {"inputs": PRICES[:1], "model": "prices"}
    with serving(store, concurrency=1, max_waiting=3) as server, server.client() as client:
        with busy(server), ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(client.post, "/predict", json=body) for _ in range(3)]
            wait_until(lambda: server.counter("fiberwalk_waiting_requests") == 3)
            refused = [client.post("/predict", json=body) for _ in range(5)]
            assert client.get("/healthz").status_code == 200
        for response in refused:
            assert response.status_code == 503
            assert response.headers["Retry-After"] == "1"
            error = response.json()["error"]
            assert (error["code"], error["expected"]) == ("overloaded", "at most 3 requests that wait")
            assert error.keys() == {"code", "message", "field", "expected", "got"}
        assert [w.result().status_code for w in waiting] == [200] * 3
        assert client.post("/predict", json=body).status_code == 200
        assert server.counter("fiberwalk_overloads_total") == 5
        assert server.counter("fiberwalk_requests_total", route="/predict", status="503") == 5


def test_large_bodies_are_refused_where_they_would_fill_the_memory(store: Path) -> None:
    """Neither a small one is, nor one that is alone, however large."""
    body = json.dumps({"inputs": PRICES[:1], "model": "prices"}).encode()
    large, alone = body + b" " * 80_000, body + b" " * 250_000
    with serving(store, concurrency=1, max_waiting_bytes=200_000) as server, server.client() as client:

        def post(content: bytes | Iterator[bytes]) -> httpx.Response:
            return client.post("/predict", content=content)

        assert post(alone).status_code == 200
        with busy(server), ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(post, large)]
            wait_until(lambda: server.counter("fiberwalk_waiting_requests") == 1)
            # A body whose length is not told is counted as it comes.
            refused = [post(large), post(iter([b" " * 50_000] * 3))]
            waiting.append(pool.submit(post, body))
        for response in refused:
            assert response.status_code == 503 and response.headers["Retry-After"] == "1"
            error = response.json()["error"]
            assert error["code"] == "overloaded"
            assert error["expected"] == "at most 200000 bytes of all requests that wait"
        assert [w.result().status_code for w in waiting] == [200] * 2
        # What was refused, answered or wrong counts no longer.
        assert post(alone[1:]).status_code == 400
        assert post(alone).status_code == 200
        assert server.counter("fiberwalk_overloads_total") == 2


def test_clients_that_go_away_leave_their_place(store: Path) -> None:
    body = {"inputs": PRICES[:1], "model": "prices"}
    data = json.dumps(body).encode()
    head = (
        f"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with (
        serving(store, concurrency=1, max_waiting=4) as server,
        server.client() as client,
        ThreadPoolExecutor(4) as pool,
    ):
        port = int(server.url.rpartition(":")[2])
        with busy(server) as running:
            first = pool.submit(client.post, "/predict", json=body)
            wait_until(lambda: server.counter("fiberwalk_waiting_requests") == 1)
            gone = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
            for connection in gone:
                connection.sendall(head.encode() + data)
            wait_until(lambda: server.counter("fiberwalk_waiting_requests") == 4)
            for connection in gone:
                connection.close()
            wait_until(lambda: server.counter("fiberwalk_waiting_requests") == 1)
            assert not running.done()
            others = [pool.submit(client.post, "/predict", json=body) for _ in range(3)]
        answers = [f.result() for f in [first, *others]]
        assert [a.status_code for a in answers] == [200] * 4
        assert_alike(answers[0].json(), client.post("/predict", json=body).json())
        # Nobody's rows were worked on.
        assert server.counter("fiberwalk_rows_total", model="prices") == 5
        assert server.counter("fiberwalk_requests_total", route="/predict", status="499") == 3


def test_a_client_that_goes_away_during_the_run_hurts_nobody(store: Path) -> None:
    body = {"inputs": [[1.0, 2.0]], "model": "sine", "seed": 3}
    with serving(store) as server, server.client() as client, ThreadPoolExecutor(8) as pool:
        expected = client.post("/predict", json=body).json()
        stop = threading.Event()

        def leave() -> None:
            data = json.dumps(body).encode()
            head = f"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            while not stop.is_set():
                with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
                    connection.sendall(head + data)

        leaving = [pool.submit(leave) for _ in range(2)]
        answers = list(pool.map(lambda _: client.post("/predict", json=body), range(100)))
        stop.set()
        for each in leaving:
            each.result()
        for answer in answers:
            assert_alike(answer.json(), expected)
        wait_until(lambda: server.counter("fiberwalk_waiting_requests") == 0)


def test_a_lone_client_is_not_delayed(store: Path) -> None:
    """No request waits for company. A loose bound, for the sake of busy machines; benchmarks.serving.http measures."""
    body = {"inputs": PRICES[:1], "model": "prices"}
    with serving(store) as one, serving(store, batch_rows=1) as other:
        times: dict[str, list[float]] = {one.url: [], other.url: []}
        with httpx.Client() as client:
            for _ in range(150):
                for url, taken in times.items():
                    started = time.perf_counter()
                    assert client.post(f"{url}/predict", json=body).status_code == 200
                    taken.append(time.perf_counter() - started)
        assert one.counter("fiberwalk_batch_requests_count") == one.counter("fiberwalk_batch_requests_sum") == 150
    assert statistics.median(times[one.url]) < 1.5 * statistics.median(times[other.url])
