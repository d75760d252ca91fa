"""Several workers at one address."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from tests.servers import RedisServer, Server, serving, wait_until

BODY = {"inputs": [[1.0, 2.0], [0.5, 0.1]], "model": "sine"}
ASKED = 24


def ask(server: Server) -> httpx.Response:
    """Over a connection of its own, so that any worker may get it."""
    answer = httpx.post(f"{server.url}/predict", json=BODY)
    assert answer.status_code == 200
    return answer


def workers(server: Server) -> list[int]:
    """Ids of the processes that answer."""
    found = []
    for child in psutil.Process(server.process.pid).children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            found += [child.pid] if any("spawn_main" in part for part in child.cmdline()) else []
    return sorted(found)


def test_workers_answer_alike_and_tell_of_all(store: Path, redis_server: RedisServer) -> None:
    with serving(store, workers=2, redis_url=redis_server.url) as server:
        first = workers(server)
        assert len(first) == 2
        answers = [ask(server) for _ in range(ASKED)]
        assert len({a.content for a in answers}) == 1
        for _ in range(4):  # whichever worker is asked
            assert server.counter("fiberwalk_rows_total", route="/predict", model="sine") == 2 * ASKED
        # Each takes targets of what another predicted.
        ids = [a.headers["X-Request-ID"] for a in answers[:8]]
        for i in ids:
            told = {"request_id": i, "targets": [0.0, 0.1]}
            wait_until(lambda told=told: httpx.post(f"{server.url}/feedback", json=told).status_code == 200)  # type: ignore[misc]
        health = httpx.get(f"{server.url}/models/sine/health").json()
        assert health["rows"] == 2 * len(ids) and health["scope"] == "shared"

        os.kill(first[0], signal.SIGKILL)
        wait_until(lambda: len(workers(server)) == 2 and workers(server) != first)
        assert len({ask(server).content for _ in range(8)} | {answers[0].content}) == 1
        # What the one that ended had counted is not lost, and its models are no longer counted.
        assert server.counter("fiberwalk_rows_total", route="/predict", model="sine") == 2 * (ASKED + 8)
        wait_until(lambda: server.counter("fiberwalk_models_loaded") >= 1)
        assert server.stop() in {0, -15}


def test_workers_without_a_redis_are_told_what_they_do_not_share(store: Path) -> None:
    with serving(store, workers=2) as server:
        wait_until(lambda: "--redis-url" in server.log)
        assert len({ask(server).content for _ in range(8)}) == 1


def test_an_answer_of_a_worker_goes_out_whole(store: Path) -> None:
    with serving(store, workers=2) as server, server.client() as client:
        taken = []
        for _ in range(10):
            started = time.perf_counter()
            assert client.post("/predict", json=BODY).status_code == 200
            taken.append(time.perf_counter() - started)
    # Where its parts go out one by one, each but the first waits 40 ms for the client's system.
    assert min(taken) < 0.03
