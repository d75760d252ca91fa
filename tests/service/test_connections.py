"""Clients that do not send what they began."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from tests.servers import Server, serving, wait_until
from tests.service.test_http import address

HURRIED = """
import service.bodies, service.connections
service.connections._HEAD_SECONDS = 1.5
service.bodies._SECONDS = 1.5
"""
HEAD = b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
GOOD = json.dumps({"inputs": [[1.0, 2.0]], "model": "sine"}).encode()


@pytest.fixture(scope="module")
def hurried(store: Path) -> Iterator[Server]:
    """A server of little patience, and of little memory for bodies."""
    with serving(store, before=HURRIED, max_waiting_bytes=200_000) as server:
        yield server


def to_the_end(s: socket.socket) -> bytes:
    found = b""
    while part := s.recv(65536):
        found += part
    return found


def refusal(answer: bytes) -> tuple[int, str]:
    """Status and code of the only answer on a connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    if b"chunked" in head.lower():
        body = body.split(b"\r\n")[1]
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def dripped(s: socket.socket, data: bytes) -> float:
    """Sends a byte every 0.2 s, and says when the other side had enough of it."""
    started = time.monotonic()
    for i in range(len(data)):
        try:
            s.sendall(data[i : i + 1])
            s.settimeout(0.2)
            if s.recv(1, socket.MSG_PEEK) is not None:
                break
        except TimeoutError:
            continue
        except OSError:
            break
    s.settimeout(10)
    return time.monotonic() - started


def test_who_sends_nothing_is_let_go(hurried: Server) -> None:
    with socket.create_connection(address(hurried), timeout=10) as s:
        started = time.monotonic()
        assert to_the_end(s) == b""
        assert 1 < time.monotonic() - started < 5


@pytest.mark.parametrize("first", [b"", b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"], ids=["first", "second"])
def test_a_head_that_drips_is_refused(hurried: Server, first: bytes) -> None:
    with socket.create_connection(address(hurried), timeout=10) as s:
        if first:
            s.sendall(first)
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                answer += s.recv(65536)
        assert 1 < dripped(s, b"GET /healthz HTTP/1.1\r\nHost: " + b"h" * 1000) < 5
        assert refusal(to_the_end(s)) == (408, "request_timeout")


def test_empty_lines_are_no_request(hurried: Server) -> None:
    with socket.create_connection(address(hurried), timeout=10) as s:
        assert dripped(s, b"\r\n" * 100) < 5


def test_a_connection_that_is_kept_is_not_held_to_the_heads_deadline(hurried: Server) -> None:
    with hurried.client() as client:
        for pause in (2.5, 0):
            assert client.get("/healthz").status_code == 200
            (connection,) = client._transport._pool.connections  # type: ignore[attr-defined]
            time.sleep(pause)
        assert [connection] == client._transport._pool.connections  # type: ignore[attr-defined]


@pytest.mark.parametrize("line", [b"X-More: " + b"x" * 990 + b"\r\n", b"x" * 1000], ids=["many", "long"])
def test_a_head_without_end_is_refused(server: Server, line: bytes) -> None:
    before = psutil.Process(server.process.pid).memory_info().rss
    with socket.create_connection(address(server), timeout=10) as s:
        s.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\nX-First: ")
        with suppress(OSError):
            for _ in range(50_000):
                s.sendall(line)
    assert psutil.Process(server.process.pid).memory_info().rss - before < 20 * 2**20


@pytest.mark.parametrize(("size", "status"), [(60_000, 200), (90_000, 431), (400_000, 431)])
def test_the_bound_of_a_head(server: Server, size: int, status: int) -> None:
    with socket.create_connection(address(server), timeout=10) as s:
        s.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX-Long: " + b"x" * size + b"\r\n\r\n")
        answer = to_the_end(s)
    assert int(answer.split()[1]) == status
    if status == 431:
        assert refusal(answer) == (431, "headers_too_large")


def test_trailers_are_bounded_as_heads_are(server: Server) -> None:
    with socket.create_connection(address(server), timeout=10) as s:
        s.sendall(b"POST /predict HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n")
        with pytest.raises(OSError):
            for _ in range(10_000):
                s.sendall(b"X-More: " + b"x" * 1000 + b"\r\n")


def test_what_is_no_http_gets_an_error_of_the_usual_shape(server: Server) -> None:
    with socket.create_connection(address(server), timeout=10) as s:
        s.sendall(b"what is this\r\n\r\n")
        assert refusal(to_the_end(s)) == (400, "invalid_http")


def test_large_bodies_come_through_whole(server: Server) -> None:
    rows = [[i / 100, 0.5] for i in range(60)]
    padded = json.dumps({"inputs": rows, "model": "sine"}).encode().ljust(19_000)
    answer = server.post("/predict", content=padded)
    assert answer.status_code == 200 and len(answer.json()["mean"]) == 60


@pytest.mark.parametrize("path", ["/predict", "/ood", "/feedback"])
def test_a_body_that_stops_is_given_up(hurried: Server, path: str) -> None:
    before = hurried.counter("fiberwalk_requests_total", route=path, status="408")
    with socket.create_connection(address(hurried), timeout=10) as s:
        started = time.monotonic()
        s.sendall(HEAD.replace(b"/predict", path.encode()) % 1000 + GOOD)
        assert refusal(to_the_end(s)) == (408, "request_timeout")
        assert 1 < time.monotonic() - started < 8
    wait_until(lambda: hurried.counter("fiberwalk_requests_total", route=path, status="408") == before + 1)


def test_a_body_that_drips_is_given_up(hurried: Server) -> None:
    with socket.create_connection(address(hurried), timeout=10) as s:
        s.sendall(HEAD % 10_000)
        assert 1 < dripped(s, b" " * 1000) < 5
        assert refusal(to_the_end(s)) == (408, "request_timeout")


def test_a_body_that_comes_slowly_but_steadily_is_taken(hurried: Server) -> None:
    size = 4 * 70_000
    with socket.create_connection(address(hurried), timeout=10) as s:
        s.sendall(HEAD.replace(b"Host", b"Connection: close\r\nHost") % size + GOOD)
        left = size - len(GOOD)
        for _ in range(4):
            time.sleep(0.8)  # together longer than the patience for one part
            sent = min(left, 70_000)
            s.sendall(b" " * sent)
            left -= sent
        assert to_the_end(s).startswith(b"HTTP/1.1 200 ")


def test_bodies_that_stop_keep_others_out_for_a_while_only(hurried: Server) -> None:
    large = GOOD.ljust(100_000)
    with ExitStack() as stack:
        for _ in range(3):
            s = stack.enter_context(socket.create_connection(address(hurried), timeout=10))
            s.sendall(HEAD % 70_000 + b" " * 60_000)
        wait_until(lambda: hurried.post("/predict", content=large).status_code == 503)
        wait_until(lambda: hurried.post("/predict", content=large).status_code == 200)
