"""Clients that do not read their answers, and too many at once."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from fiberwalk.serve import _OPTIONS
from tests.servers import Server, serving, wait_until
from tests.service.test_connections import refusal, to_the_end
from tests.service.test_http import address

HURRIED = """
import service.crowd as crowd
crowd._LOOK_SECONDS = 0.1
crowd._SECONDS = 1.5
"""
PRESSED = """
import service.crowd as crowd
crowd._LOOK_SECONDS = 0.1
crowd._SHORT_SECONDS = 0.5
crowd._MOST_BYTES = 10 * 2**20
"""
CROWDED = """
import service.crowd as crowd
crowd._LOOK_SECONDS = 0.1
crowd._MANY = 3
crowd._IDLE_SECONDS = 0.5
"""
FEW_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
"""
ROWS = json.dumps({"inputs": [[1.0, 2.0]] * 2500, "model": "sine", "samples": 250, "return": ["samples"]}).encode()
LARGE = b"POST /predict HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(ROWS) + ROWS
"""Its answer is larger than what the systems of both sides hold, by more than 5 MB."""


def asking(server: Server) -> socket.socket:
    """A connection that a large answer waits for."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    s.settimeout(10)
    s.connect(address(server))
    s.sendall(LARGE)
    assert select.select([s], [], [], 10)[0]
    return s


def ended(s: socket.socket, seconds: float) -> bool:
    """Whether the other side ends the connection within some time, whatever there is to read."""
    ends = select.poll()
    ends.register(s, 0)  # errors alone
    return bool(ends.poll(seconds * 1000))


def held(server: Server) -> int:
    held: int = psutil.Process(server.process.pid).memory_info().rss
    return held


@pytest.fixture(scope="module")
def hurried(store: Path) -> Iterator[Server]:
    """A server of little patience."""
    with serving(store, before=HURRIED) as server:
        yield server


def test_who_reads_slowly_but_steadily_gets_the_whole_answer(hurried: Server) -> None:
    with asking(hurried) as s:
        found = b""
        for _ in range(50):
            found += s.recv(20_000)
            time.sleep(0.1)
        found += to_the_end(s)
    head, _, body = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") and len(json.loads(body)["mean"]) == 2500


def test_who_does_not_read_is_let_go_and_memory_is_free_again(hurried: Server) -> None:
    before = held(hurried)
    with ExitStack() as stack:
        started = time.monotonic()
        waiting = [stack.enter_context(asking(hurried)) for _ in range(4)]
        wait_until(lambda: held(hurried) > before + 20 * 2**20)
        assert all(ended(s, 10) for s in waiting)
        assert time.monotonic() - started > 1.5
        wait_until(lambda: held(hurried) < before + 10 * 2**20)
    wait_until(lambda: "did not read their answers" in hurried.log)
    assert hurried.get("/healthz").status_code == 200


def test_when_all_answers_together_are_too_large_who_waits_longest_is_let_go(store: Path) -> None:
    with serving(store, before=PRESSED) as server, asking(server) as first:
        assert not ended(first, 1)
        with asking(server) as second:
            assert ended(first, 10)
            assert not ended(second, 1)
            assert len(to_the_end(second)) > 5 * 2**20


def test_too_many_connections_are_refused_and_the_others_answered(store: Path) -> None:
    with serving(store, before=FEW_FILES) as server, ExitStack() as stack:
        client = stack.enter_context(server.client())
        assert client.get("/healthz").status_code == 200
        made = [stack.enter_context(socket.create_connection(address(server), timeout=10)) for _ in range(400)]
        answer = to_the_end(made[-1])
        assert refusal(answer) == (503, "overloaded") and b"\r\nretry-after: 1\r\n" in answer
        assert 90 <= sum(not select.select([s], [], [], 0)[0] for s in made) <= 96
        assert client.get("/readyz").json()["problems"] == []
        assert client.get("/models/sine").status_code == 200
        stack.close()
        wait_until(lambda: answers(server))
        assert server.log.count("connections are open") == 1


def test_a_connection_is_kept_for_the_next_request(server: Server) -> None:
    """Longer than balancers keep one, 60 s, and than the 5 s of uvicorn's own."""
    connection = used(server, 1)[0]
    time.sleep(5.5)
    assert not closed(connection) and asked_again(connection)
    connection.close()
    assert _OPTIONS["timeout_keep_alive"] > 60  # as a balancer would find out only after as long


def test_of_many_connections_those_that_ask_for_nothing_are_let_go(store: Path) -> None:
    with serving(store, before=CROWDED) as server:
        few = used(server, 3)
        time.sleep(1)
        assert all(asked_again(s) for s in few)
        more = used(server, 2)
        time.sleep(0.2)
        assert all(asked_again(s) for s in more)  # not idle for long
        wait_until(lambda: sum(closed(s) for s in (*few, *more)) >= 2, 5)
        for s in (*few, *more):
            s.close()


def used(server: Server, count: int) -> list[socket.socket]:
    """Connections of which each had a request answered."""
    made = [socket.create_connection(address(server), timeout=10) for _ in range(count)]
    assert all(asked_again(s) for s in made)
    return made


def asked_again(s: socket.socket) -> bool:
    """Whether a request is answered, to the answer's end."""
    s.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    found = b""
    while not found.endswith(b'{"status":"ok"}') and (part := s.recv(4096)):
        found += part
    return found.startswith(b"HTTP/1.1 200 ")


def closed(s: socket.socket) -> bool:
    return bool(select.select([s], [], [], 0)[0])


def answers(server: Server) -> bool:
    with suppress(httpx.HTTPError):
        return server.get("/healthz").status_code == 200
    return False
