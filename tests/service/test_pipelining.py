"""Clients that send further requests before they have the answer to the first."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from contextlib import suppress

import psutil

from tests.servers import Server
from tests.service.test_connections import to_the_end
from tests.service.test_http import address

GOOD = json.dumps({"inputs": [[1.0, 2.0]], "model": "sine"}).encode()
LAST = b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX-Request-ID: last\r\n\r\n"


def get(name: str) -> bytes:
    return b"GET /healthz HTTP/1.1\r\nHost: h\r\nX-Request-ID: %b\r\n\r\n" % name.encode()


def post(name: str, size: int) -> bytes:
    head = b"POST /predict HTTP/1.1\r\nHost: h\r\nX-Request-ID: %b\r\nContent-Length: %d\r\n\r\n" % (
        name.encode(),
        size,
    )
    return head + GOOD.ljust(size)


def answered(data: bytes) -> list[str]:
    """Of which requests these are the answers, none of them a refusal."""
    assert data.count(b"HTTP/1.1 200 ") == data.count(b"HTTP/1.1 ")
    return [name.decode() for name in re.findall(rb"\r\nx-request-id: (.*?)\r\n", data)]


def test_many_at_once_are_answered_in_their_order(server: Server) -> None:
    requests = {f"r{i}": get(f"r{i}") if i % 5 else post(f"r{i}", 100 + 6 * i) for i in range(1000)}
    with socket.create_connection(address(server), timeout=30) as s:
        sender = threading.Thread(target=s.sendall, args=(b"".join(requests.values()) + LAST,))
        sender.start()
        found = to_the_end(s)
        sender.join()
    assert answered(found) == [*requests, "last"]


def test_many_in_small_pieces_are_answered_in_their_order(server: Server) -> None:
    requests = {f"r{i}": get(f"r{i}") if i % 3 else post(f"r{i}", 100) for i in range(100)}
    sent = b"".join(requests.values()) + LAST
    with socket.create_connection(address(server), timeout=30) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(sent), 11):
            s.sendall(sent[start : start + 11])
        found = to_the_end(s)
    assert answered(found) == [*requests, "last"]


def test_a_connection_goes_on_after_many(server: Server) -> None:
    requests = {f"r{i}": get(f"r{i}") for i in range(500)}
    with socket.create_connection(address(server), timeout=30) as s:
        s.sendall(b"".join(requests.values()) + LAST[:30])
        found = b""
        while b"r499" not in found:
            found += s.recv(65536)
        time.sleep(0.1)
        s.sendall(LAST[30:])
        found += to_the_end(s)
    assert answered(found) == [*requests, "last"]


def test_requests_whose_answers_nobody_reads_are_not_gathered(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    large = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: h\r\n\r\n" * 8
    sent = large + b"GET /healthz HTTP/1.1\r\n\r\n" * 100_000
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(address(server))
        before = process.memory_info().rss
        s.settimeout(1)
        with suppress(TimeoutError):
            s.sendall(sent)
        grown = []
        for _ in range(20):
            grown.append(process.memory_info().rss - before)
            time.sleep(0.1)
        assert max(grown) < 20 * 2**20
    # Nor does an answer fail that nobody waits for any more.
    time.sleep(0.5)
    assert "request_failed" not in server.log
