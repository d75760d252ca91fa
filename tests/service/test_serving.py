"""The serving process: what it opens, how it starts and ends, and many clients at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import typer
from typer.testing import CliRunner

import fiberwalk.serve
from model_store.errors import ConfigError
from tests import bundles
from tests.servers import Server, serving, wait_until
from tests.service.test_http import address

BODY = {"inputs": [[1.0, 2.0]], "model": "sine"}


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FIBERWALK_", "ORT_"))}
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True, timeout=60
    )


def test_a_serving_process_opens_no_connection_but_its_own(store: Path) -> None:
    with serving(store) as server, server.client() as client:
        port = int(server.url.rpartition(":")[2])
        foreign = set()
        end = time.monotonic() + 4
        while time.monotonic() < end:
            assert client.post("/predict", json=BODY).status_code == 200
            for process in [p := psutil.Process(server.process.pid), *p.children(recursive=True)]:
                connections = process.net_connections(kind="inet")
                foreign |= {c for c in connections if not (c.laddr and c.laddr.port == port)}
            time.sleep(0.02)
    assert foreign == set()


@pytest.mark.parametrize("given", ["", "0"])
def test_telemetry_is_off_before_onnxruntime_is_imported(given: str) -> None:
    code = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Watch())
import service.app
"""
    run = python(code, ORT_DISABLE_TELEMETRY=given)
    assert run.stdout.split() == ["1"], run.stderr


def test_importing_the_service_is_quick() -> None:
    # The processor's seconds, so that what else the machine does has no say.
    code = "import time; t = time.process_time(); import service.app; print(time.process_time() - t)"
    seconds = [float(python(code).stdout) for _ in range(3)]
    assert statistics.median(seconds) < 1.5


def test_importing_the_service_brings_only_what_serving_needs() -> None:
    run = python("import sys, service.app; print(*sys.modules)")
    loaded = set(run.stdout.split())
    assert "onnxruntime" in loaded
    assert loaded & {"torch", "onnx", "pandas", "matplotlib", "sklearn", "scipy", "redis", "builder"} == set()


def test_many_clients_get_the_same_answers(store: Path) -> None:
    """To the bit where every request runs by itself; test_batching.py has those that go together."""
    bodies = [
        BODY | {"seed": 100},
        BODY | {"seed": 101, "samples": 50},
        {"inputs": [[5, 80, "Bonn"]] * 20, "model": "prices", "seed": 100},
        {"inputs": [[5, 4]], "model": "flowers", "samples": 3},
    ]
    with serving(store, concurrency=1, cache_bytes=0) as other, other.client() as client:
        expected = [client.post("/predict", json=body).content for body in bodies]
    start = threading.Barrier(32)

    with serving(store, batch_rows=1) as server, ThreadPoolExecutor(32) as pool:

        def ask(i: int) -> list[bytes]:
            with server.client() as mine:
                start.wait()
                return [mine.post("/predict", json=bodies[(i + n) % 4]).content for n in range(8)]

        answers = list(pool.map(ask, range(32)))
    for i, found in enumerate(answers):
        assert found == [expected[(i + n) % 4] for n in range(8)]


def test_large_requests_leave_the_server_responsive(store: Path) -> None:
    """Inference does not run on the event loop."""
    large = json.dumps({"inputs": [[1.0, 2.0]] * 4096, "model": "sine", "samples": 64}).encode()
    with serving(store, concurrency=1) as server, ThreadPoolExecutor(2) as pool, server.client() as client:
        running = [pool.submit(httpx.post, f"{server.url}/predict", content=large, timeout=60) for _ in range(2)]
        waits = []
        while not all(r.done() for r in running):
            started = time.perf_counter()
            assert client.get("/healthz").status_code == 200
            waits.append(time.perf_counter() - started)
        assert all(len(r.result().json()["mean"]) == 4096 for r in running)
    assert statistics.median(waits) < 0.1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_requests_in_flight_are_answered_before_the_end(store: Path, how: signal.Signals) -> None:
    large = json.dumps({"inputs": [[1.0, 2.0]] * 4096, "model": "sine", "samples": 256}).encode()
    with serving(store) as server, ThreadPoolExecutor(1) as pool:
        warming = server.counter("fiberwalk_cache_misses_total")
        running = pool.submit(httpx.post, f"{server.url}/predict", content=large, timeout=60)
        wait_until(lambda: server.counter("fiberwalk_cache_misses_total") > warming)
        server.send_signal(how)
        status = server.wait()
        assert running.result().status_code == 200
        assert len(running.result().json()["mean"]) == 4096
        assert status in {0, -15}


@pytest.mark.parametrize("workers", [1, 2])
def test_json_logs(store: Path, workers: int) -> None:
    with serving(store, log_format="json", workers=workers, max_row="9") as server, server.client() as client:
        traced = f"00-{'4bf92f35' * 4}-{'00f067aa' * 2}-01"
        client.post("/predict", json=BODY, headers={"X-Request-ID": "mine", "traceparent": traced})
        untraced = traced.replace("4bf92f35", "0" * 8)  # which says that there is none
        wrong = {"X-Request-ID": "wrong", "traceparent": untraced}
        client.post("/ood", json=BODY | {"inputs": [["a", "b"]]}, headers=wrong)
        client.get("/nothing", headers={"X-Request-ID": "lost"})
        with socket.create_connection(address(server), timeout=10) as s:
            s.sendall(b"what is this\r\n\r\n")
            s.recv(4096)
        wait_until(lambda: "lost" in server.log and "Invalid HTTP" in server.log)
        lines = [json.loads(line) for line in server.log.splitlines()]
    told = [(entry["event"], entry["level"]) for entry in lines]
    assert ("serving", "info") in told and ("setting_unknown", "warning") in told
    assert (("workers_without_redis", "warning") in told) == (workers > 1)
    asked = {entry["request_id"]: entry for entry in lines if entry["event"] == "request" and "request_id" in entry}
    line = asked["mine"]
    assert (line["event"], line["level"], line["path"], line["status"]) == ("request", "info", "/predict", 200)
    assert (line["model"], line["trace_id"]) == ("sine@1", "4bf92f35" * 4) and "code" not in line
    assert (asked["wrong"]["model"], asked["wrong"]["code"]) == ("sine@1", "wrong_type")
    assert "trace_id" not in asked["wrong"] and "trace_id" not in asked["lost"]
    assert asked["lost"]["code"] == "not_found" and "model" not in asked["lost"]
    assert [entry["model"] for entry in lines if entry["event"] == "model_loaded"]
    (refused,) = [entry for entry in lines if entry["event"] == "Invalid HTTP request received."]
    assert (refused["level"], refused["logger"]) == ("warning", "uvicorn.error")


def test_an_internal_error_tells_nothing_and_is_logged(store: Path) -> None:
    """No request is known to cause one, so a fault is planted."""
    code = """
import service.inference
def fail(self, body, request_id):
    raise RuntimeError("secret 4711")
service.inference.Inference.predict = fail
from fastapi import FastAPI
import asyncio, httpx
from service.app import create_app
async def main():
    app = create_app()
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            response = await client.post("/predict", json={})
            metrics = await client.get("/metrics")
            print(response.status_code, response.text)
            print([line for line in metrics.text.splitlines() if 'status="500"' in line])
asyncio.run(main())
"""
    run = python(code, FIBERWALK_STORE=str(store))
    answer, counted = run.stdout.splitlines()
    status, _, body = answer.partition(" ")
    assert status == "500"
    assert json.loads(body)["error"]["code"] == "internal_error"
    assert "4711" not in body
    assert "secret 4711" in run.stderr and "Traceback" in run.stderr
    assert "/predict" in counted


def test_a_missing_store_is_one_clear_line(tmp_path: Path) -> None:
    app = typer.Typer()
    app.callback()(lambda: None)
    fiberwalk.serve.register(app)
    run = CliRunner().invoke(app, ["serve", "--store", str(tmp_path / "nix"), "--port", "0"])
    assert run.exit_code == 1
    assert run.output.count("\n") == 1
    assert "There is no model store at" in run.output and "--store" in run.output


def test_a_port_in_use_is_one_clear_line(server: Server, store: Path) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"Cannot listen on 127.0.0.1:{port} .*--port"):
        fiberwalk.serve.serve(store=store, port=port)


OPTIONS = {
    "redis://:hunter2@127.0.0.1:7001/0?foo=1": "(foo)",
    "redis://:hunter2@127.0.0.1:7001/0?db=xx": "(db)",
    "rediss://:hunter2@127.0.0.1:7001/0?ssl_cert_reqs=bogus": "(ssl_cert_reqs)",
    "redis://127.0.0.1:7001/0?protocol=9&password=hunter2": "(protocol, password)",
}
"""Of a Redis that no client takes, by URL, and how they are named."""


@pytest.fixture(scope="module")
def refusals(store: Path) -> dict[str, list[Any]]:
    """Status, output and errors of the command by URL and number of workers; of one process, as each takes a second to
    start."""
    code = f"""
import json
from typer.testing import CliRunner
from fiberwalk.cli import app
found = {{}}
for url in {list(OPTIONS)}:
    for workers in "12":
        settings = {{"FIBERWALK_REDIS_URL": url, "FIBERWALK_WORKERS": workers}}
        run = CliRunner(env=settings).invoke(app, ["serve", "--port", "0"])
        found[f"{{workers}} {{url}}"] = [run.exit_code, run.stdout, run.stderr]
print(json.dumps(found))
"""
    found: dict[str, list[Any]] = json.loads(python(code, FIBERWALK_STORE=str(store)).stdout)
    return found


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("url", "named"), OPTIONS.items())
def test_an_option_that_redis_clients_do_not_take_is_one_clear_line(
    refusals: dict[str, list[Any]], url: str, named: str, workers: int
) -> None:
    status, out, err = refusals[f"{workers} {url}"]
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert f"FIBERWALK_REDIS_URL has an option {named}" in err and "hunter2" not in err


def test_a_hangup_that_is_ignored_stays_so(store: Path) -> None:
    """As nohup has it."""
    with serving(store, before="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)") as server:
        server.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert server.get("/healthz").status_code == 200


def test_an_address_that_is_none(store: Path) -> None:
    with pytest.raises(ConfigError, match="--host"):
        fiberwalk.serve.serve(store=store, host="256.1.1.1", port=0)


def test_the_factory_serves_where_there_is_no_store_yet(tmp_path: Path) -> None:
    """An orchestrator may mount the store later."""
    store = tmp_path / "models"
    store.mkdir()
    with serving(store, ready=False) as server, server.client() as client:
        store.rmdir()
        wait_until(lambda: client.get("/readyz").status_code == 503)
        bundles.numeric_regression().publish(store)
        wait_until(lambda: client.get("/readyz").json()["models"] == ["sine@1"])
        assert client.post("/predict", json={"inputs": [[1]]}).status_code == 200
