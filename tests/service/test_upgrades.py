"""Requests that offer another protocol, which this server leaves aside: they are answered like any others."""

from __future__ import annotations

import json
import socket
import time

import pytest

from tests.servers import Server, wait_until
from tests.service.test_connections import refusal, to_the_end
from tests.service.test_http import address

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\nUpgrade: h2c\r\n"
"""As curl with --http2 and Java's own client put it into each first request of a connection."""
POST = b"POST /predict HTTP/1.1\r\n" + OFFER + b"Host: h\r\nX-Empty:\r\nContent-Type: application/json\r\n"
GOOD = json.dumps({"inputs": [[1.0, 2.0]], "model": "sine"}).encode()
LENGTH = b"Content-Length: %d\r\n\r\n" % len(GOOD)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (9, GOOD[:9], len(GOOD) - 9, GOOD[9:])
LAST = b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
HIDDEN = b"GET /models HTTP/1.1\r\nHost: h\r\n\r\n"
"""Bytes of a body that are a request by themselves: those who take the body for the next one answer it."""


def answers(data: bytes) -> list[tuple[int, dict[str, object]]]:
    """Status and content of each answer on a connection, all of which say how long they are."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        size = int(lines[b"content-length"])
        found.append((int(head.split()[1]), json.loads(data[:size])))
        data = data[size:]
    return found


def talk(server: Server, *parts: bytes, pause: float = 0.0) -> list[tuple[int, dict[str, object]]]:
    """Every answer on a connection that these bytes go to, part by part, and that a last request ends."""
    with socket.create_connection(address(server), timeout=10) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in [*parts, LAST]:
            s.sendall(part)
            time.sleep(pause)
        found = answers(to_the_end(s))
    assert found.pop() == (200, {"status": "ok"})
    return found


def single(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize(
    ("parts", "pause"),
    [
        ([POST + LENGTH + GOOD], 0.0),
        ([POST + LENGTH, GOOD], 0.1),
        (single(POST + LENGTH + GOOD), 0.001),
        ([POST + CHUNKED + CHUNKS], 0.0),
        ([POST + CHUNKED, CHUNKS[:20], CHUNKS[20:]], 0.1),
        (single(POST + CHUNKED + CHUNKS), 0.001),
    ],
    ids=["whole", "apart", "bytes", "chunked", "chunked apart", "chunked bytes"],
)
def test_the_body_is_read(server: Server, parts: list[bytes], pause: float) -> None:
    ((status, content),) = talk(server, *parts, pause=pause)
    assert status == 200 and content["model"] == "sine"


def test_requests_that_follow_each_other_are_each_answered(server: Server) -> None:
    found = talk(server, (POST + LENGTH + GOOD) * 2 + POST + CHUNKED + CHUNKS + POST + LENGTH, GOOD, pause=0.05)
    assert [status for status, _ in found] == [200] * 4


def test_a_connection_goes_on_after_an_offer(server: Server) -> None:
    with socket.create_connection(address(server), timeout=10) as s:
        for _ in range(3):
            s.sendall(POST + LENGTH + GOOD)
            answer = s.recv(65536)
            while not answer.endswith(b"}"):
                answer += s.recv(65536)
            ((status, content),) = answers(answer)
            assert status == 200 and content["model"] == "sine"


@pytest.mark.parametrize("pause", [0.0, 0.1])
def test_a_body_is_never_taken_for_a_request(server: Server, pause: float) -> None:
    ((status, content),) = talk(server, POST + b"Content-Length: %d\r\n\r\n" % len(HIDDEN), HIDDEN, pause=pause)
    assert status == 400 and "error" in content


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0, h2c", b"h2c\r\nUpgrade: websocket"])
def test_no_protocol_is_taken_and_none_is_worth_a_line_in_the_log(server: Server, protocol: bytes) -> None:
    before = len(server.log)
    offer = b"Connection: keep-alive, upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n"
    ((status, _),) = talk(server, b"GET /models HTTP/1.1\r\nHost: h\r\n" + offer)
    assert status == 200
    with socket.create_connection(address(server), timeout=10) as s:
        s.sendall(b"what is this\r\n\r\n")
        to_the_end(s)
    wait_until(lambda: "Invalid HTTP request" in server.log[before:])
    assert "upgrade" not in server.log[before:].lower() and "websocket" not in server.log[before:].lower()


def test_an_offer_in_a_large_head_is_bounded_as_other_heads_are(server: Server) -> None:
    long = b"X-Long: " + b"x" * 30_000 + b"\r\n"
    ((status, _),) = talk(server, POST + long + LENGTH + GOOD)
    assert status == 200
    with socket.create_connection(address(server), timeout=10) as s:
        s.sendall(POST + long * 3 + LENGTH + GOOD)
        assert refusal(to_the_end(s)) == (431, "headers_too_large")


@pytest.mark.parametrize("offer", [b"", OFFER], ids=["plain", "offer"])
@pytest.mark.parametrize("target", [b"elsewhere:443", b"/predict"])
def test_no_tunnel_is_opened(server: Server, target: bytes, offer: bytes) -> None:
    with socket.create_connection(address(server), timeout=10) as s:
        s.sendall(b"CONNECT " + target + b" HTTP/1.1\r\nHost: h\r\n" + offer + b"\r\n" + HIDDEN)
        assert refusal(to_the_end(s)) == (400, "invalid_http")
