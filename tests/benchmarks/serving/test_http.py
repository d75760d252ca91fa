"""Requests over HTTP, with batching and without: the clients, the figures, and the page."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks.serving import page
from benchmarks.serving.http import main
from benchmarks.serving.load import load, post
from benchmarks.serving.tables import BATCHED, http_table, judge_http
from model_store.errors import FiberwalkError


class Echo(BaseHTTPRequestHandler):
    """Answers after a while with what came."""

    protocol_version = "HTTP/1.1"
    status: ClassVar[int] = 200
    came: ClassVar[set[bytes]] = set()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.came.add(body)
        self.send_response(self.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def listening(answers: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_every_client_sends_its_own_request_again_and_again() -> None:
    bodies = [b"one", b"two" * 1000, b"three"]
    with listening(Echo) as url:
        found = load(url, [post("/predict", b) for b in bodies], 0.3)
    assert Echo.came == set(bodies)
    assert found.rate > 3
    assert 0 < found.p50 <= found.p99 < 1000


def test_an_answer_that_is_none_ends_it() -> None:
    class Refuses(Echo):
        status = 503

    with listening(Refuses) as url, pytest.raises(FiberwalkError, match="503"):
        load(url, [post("/predict", b"x")], 5)


def run(clients: int, gain: float, ratio: float) -> dict[str, Any]:
    alone = {"rate": 100.0, "p50": 10.0, "p99": 20.0}
    return {
        "set": BATCHED,
        "clients": clients,
        "rows": 3.0,
        "alone": alone,
        "together": {"rate": 100 * gain, "p50": 10 * ratio, "p99": 30.0},
    }


def test_goals() -> None:
    assert [g.state for g in judge_http([run(1, 1.0, 1.04), run(32, 2.1, 0.5)])] == ["met", "met"]
    assert [g.state for g in judge_http([run(1, 1.0, 1.06), run(32, 1.9, 0.5)])] == ["not met", "not met"]
    assert [g.state for g in judge_http([run(4, 1.0, 1.0)])] == ["not measured", "not measured"]
    header, rows = http_table([run(1, 1.0, 1.0)])
    assert len(header) == len(rows[0])


def test_the_command_measures_and_its_page_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, target = tmp_path / "http.json", tmp_path / "performance.md"
    # A working tree that others write to must not end the run.
    monkeypatch.setattr("benchmarks.results.revision", lambda _: "a")
    arguments = ["--networks", "MLP 13-50-1", "--clients", "1", "6", "--seconds", "0.2", "--starts", "1"]
    assert main([*arguments, "--output", str(results)]) == 0
    assert "MLP 13-50-1" in capsys.readouterr().out
    one, six = json.loads(results.read_text())["runs"]
    assert (one["clients"], one["rows"], six["clients"]) == (1, 1.0, 6)
    assert six["rows"] >= 1
    serving = tmp_path / "serving.json"
    serving.write_text(json.dumps({"benchmark": "serving", "environments": {}, "runs": []}))
    assert page.main([str(tmp_path), str(target)]) == 0
    assert "| MLP 13-50-1 | 6 |" in target.read_text()
