"""What HTTP and its usual clients ask of a server, whatever it serves."""

from __future__ import annotations

import http.client

import httpx
import pytest

from tests.servers import Server

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
