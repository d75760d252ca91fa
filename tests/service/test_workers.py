"""Several workers at one address."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.servers import RedisServer, Server, serving, wait_until
from tests.service.test_http import address

BODY = {"inputs": [[1.0, 2.0], [0.5, 0.1]], "model": "sine"}
ASKED = 24


@pytest.fixture(scope="module")
def two(store: Path) -> Iterator[Server]:
    """A server of two workers and without a Redis, whichever workers these are by now."""
    with serving(store, workers=2) as server:
        yield server


def ask(server: Server) -> httpx.Response:
    """Over a connection of its own, so that any worker may get it."""
    answer = server.post("/predict", json=BODY)
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
            wait_until(lambda told=told: server.post("/feedback", json=told).status_code == 200)  # type: ignore[misc]
        health = server.get("/models/sine/health").json()
        assert health["rows"] == 2 * len(ids) and health["scope"] == "shared"

        os.kill(first[0], signal.SIGKILL)
        wait_until(lambda: len(workers(server)) == 2 and workers(server) != first)
        assert len({ask(server).content for _ in range(8)} | {answers[0].content}) == 1
        # What the one that ended had counted is not lost, and its models are no longer counted.
        assert server.counter("fiberwalk_rows_total", route="/predict", model="sine") == 2 * (ASKED + 8)
        wait_until(lambda: server.counter("fiberwalk_models_loaded") >= 1)
        assert server.stop() in {0, -15}


def test_workers_without_a_redis_are_told_what_they_do_not_share(two: Server) -> None:
    wait_until(lambda: "--redis-url" in two.log)
    assert len({ask(two).content for _ in range(8)}) == 1


def test_an_answer_of_a_worker_goes_out_whole(two: Server) -> None:
    taken = []
    with two.client() as client:
        for _ in range(10):
            started = time.perf_counter()
            assert client.post("/predict", json=BODY).status_code == 200
            taken.append(time.perf_counter() - started)
    # Where its parts go out one by one, each but the first waits 40 ms for the client's system.
    assert min(taken) < 0.03


def test_a_hangup_restarts_workers_one_after_another(two: Server) -> None:
    first, told = workers(two), two.log.count("worker_ended")
    assert len(first) == 2
    two.send_signal(signal.SIGHUP)
    end = time.monotonic() + 120
    while len(set(workers(two)) - set(first)) < 2 or set(workers(two)) & set(first):
        ask(two)
        assert time.monotonic() < end
        time.sleep(0.02)
    assert len(workers(two)) == 2 and two.log.count("worker_ended") == told


def test_a_worker_that_ends_is_told_of(two: Server) -> None:
    first, told = workers(two), two.log.count("worker_ended")
    os.kill(first[0], signal.SIGKILL)
    wait_until(lambda: two.log.count("worker_ended") > told)
    *_, line = (line for line in two.log.splitlines() if "worker_ended" in line)
    assert re.search(rf" \[warning\] worker_ended exit_code=-9 pid={first[0]} restarted_as=\d+$", line)


def test_a_worker_that_does_not_start_ends_the_server(store: Path) -> None:
    code = """
import io, service.redis_link
service.redis_link.make_client = lambda *_: io.BytesIO()  # the parent does not see what is wrong
from fiberwalk.cli import app
app(["serve", "--port", "0", "--workers", "2", "--redis-url", "redis://:hunter2@127.0.0.1:7001/0?foo=1"])
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FIBERWALK_")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"FIBERWALK_STORE": str(store)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert "[error] worker_failed pid=" in run.stderr and "FIBERWALK_REDIS_URL has an option (foo)" in run.stderr
    assert "fiberwalk serve: A worker did not start; the log says why.\n" in run.stderr
    assert "hunter2" not in run.stderr


def test_workers_end_with_their_parent(store: Path) -> None:
    with serving(store, workers=2) as server:
        orphans = [psutil.Process(pid) for pid in workers(server)]
        assert len(orphans) == 2
        server.process.kill()
        _, alive = psutil.wait_procs(orphans, 20)
        assert alive == []
        with socket.create_server(address(server)):
            pass  # the port is free


def test_once_a_server_stops_connections_are_refused(store: Path) -> None:
    body = json.dumps(BODY).encode()
    with serving(store, workers=2) as server, socket.create_connection(address(server), timeout=30) as s:
        s.sendall(b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:-1])
        time.sleep(0.3)
        server.send_signal(signal.SIGTERM)
        time.sleep(1.5)  # until the workers have heard of it
        for _ in range(4):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address(server), timeout=5)
        s.sendall(body[-1:])
        assert s.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert server.wait() == 0
