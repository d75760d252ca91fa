"""What HTTP and its usual clients ask of a server, whatever it serves."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import time
import urllib.error
import urllib.request

import httpx
import pytest

from tests.servers import Server
from tests.service.test_requests import GOOD, refused

LARGE = b" " * 2**24
"""More than the buffers of both sides hold, and than `server` takes."""
GETS = ["/", "/healthz", "/readyz", "/models", "/models/sine", "/models/sine/health", "/models/sine/report"]
GETS += ["/models/sine/files/posterior.png", "/metrics", "/docs", "/docs/swagger-ui.css", "/openapi.json"]


def address(server: Server) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


# ---- HEAD


@pytest.mark.parametrize("path", [*GETS, "/models/nix", "/nothing"])
def test_head_is_get_without_a_body(client: httpx.Client, path: str) -> None:
    got, headed = client.get(path), client.head(path)
    assert (headed.status_code, headed.content) == (got.status_code, b"")
    for name in ("content-type", "content-security-policy"):
        assert headed.headers.get(name) == got.headers.get(name)
    if path != "/metrics":
        assert headed.headers["content-length"] == got.headers["content-length"]


def test_a_connection_goes_on_after_head(server: Server) -> None:
    connection = http.client.HTTPConnection(*address(server), timeout=10)
    for method in ("HEAD", "GET", "HEAD", "GET"):
        connection.request(method, "/healthz")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"" if method == "HEAD" else b'{"status":"ok"}')
    connection.close()


def test_head_is_counted_and_told_where_get_is_allowed(server: Server, client: httpx.Client) -> None:
    client.head("/models/sine")
    assert server.counter("fiberwalk_requests_total", method="HEAD", route="/models/{name}") >= 1
    assert client.head("/predict").status_code == 405
    assert client.post("/healthz").headers["allow"] == "GET, HEAD"
    assert client.post("/predict/").status_code == 404
    assert client.put("/predict").headers["allow"] == "POST"


def test_the_description_lists_no_head(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {method for operations in paths.values() for method in operations} == {"get", "post"}


def test_head_is_of_the_whole(client: httpx.Client) -> None:
    headed = client.head("/docs/swagger-ui.css", headers={"Range": "bytes=0-9"})
    assert headed.status_code == 200 and int(headed.headers["content-length"]) > 10


# ---- bodies that are encoded


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "gzip, identity"])
@pytest.mark.parametrize("path", ["/predict", "/ood", "/feedback"])
def test_a_compressed_body_is_refused(client: httpx.Client, path: str, coding: str) -> None:
    body = gzip.compress(json.dumps(GOOD).encode())
    response = client.post(path, content=body, headers={"Content-Encoding": coding})
    error = refused(response, 415)
    assert (error["code"], error["field"]) == ("unsupported_content_encoding", "Content-Encoding")
    assert "identity" in error["expected"] and coding in error["got"]
    assert response.headers["accept-encoding"] == "identity"
    assert client.post(path, json=GOOD).status_code != 415


def test_identity_is_no_encoding(client: httpx.Client) -> None:
    assert client.post("/predict", json=GOOD, headers={"Content-Encoding": "identity"}).status_code == 200


@pytest.mark.parametrize("inputs", [[[1.0, 2.0]], [{"x": 1, "t": 2}]])
def test_a_byte_order_mark_is_no_part_of_the_json(client: httpx.Client, inputs: list[object]) -> None:
    text = json.dumps(GOOD | {"inputs": inputs})
    marked, plain = (client.post("/predict", content=text.encode(kind)) for kind in ("utf-8-sig", "utf-8"))
    assert marked.status_code == 200
    assert marked.content == plain.content


# ---- bodies that are refused before their end


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/predict", {}, 413),
        ("/predict", {"Content-Encoding": "gzip"}, 415),
        ("/ood", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("/healthz", {}, 405),
        ("/nothing", {}, 404),
    ],
)
def test_a_client_that_reads_after_writing_gets_its_answer(
    server: Server, path: str, headers: dict[str, str], status: int
) -> None:
    request = urllib.request.Request(server.url + path, data=LARGE, headers=headers)
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=30)
    with raised.value as answer:
        assert (answer.code, "error" in json.load(answer)) == (status, True)


def test_a_client_that_sends_in_chunks_gets_its_answer(server: Server) -> None:
    connection = http.client.HTTPConnection(*address(server), timeout=30)
    connection.request("POST", "/predict", body=(LARGE[:65536] for _ in range(256)), encode_chunked=True)
    answer = connection.getresponse()
    assert (answer.status, json.load(answer)["error"]["code"]) == (413, "body_too_large")
    connection.close()


def test_a_client_that_waits_for_the_answer_has_it_at_once(server: Server) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n"
    with socket.create_connection(address(server), timeout=10) as s:
        s.sendall(head + b"{")
        started = time.monotonic()
        answer = s.recv(4096)
        assert answer.startswith(b"HTTP/1.1 413 ") and time.monotonic() - started < 1.5
        # What does not come is not waited for much longer.
        before = server.counter("fiberwalk_request_seconds_sum", route="/predict")
        while s.recv(4096):
            pass
        assert time.monotonic() - started < 9
    # Nor does it count as the server's time.
    assert server.counter("fiberwalk_request_seconds_sum", route="/predict") - before < 0.5
