"""The real commands, each a process of its own: `fiberwalk build`, `fiberwalk serve`, and requests to the server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
from numpy.typing import NDArray

from benchmarks.data import ROOT
from model_store.errors import FiberwalkError

_COMMAND: Final = [sys.executable, "-m", "fiberwalk"]
_BUILD_SECONDS = 3600.0
_START_SECONDS = 120.0
_BATCH_ROWS = 1000
_TAIL = 1500
_JSON: Final = {"Content-Type": "application/json"}


def run_build(arguments: list[str], folder: Path) -> float:
    """Runs `fiberwalk build` in a folder, and returns its wall-clock seconds from start to exit.

    Raises:
        FiberwalkError: it failed or took over an hour; `got` is the end of what it said.
    """
    command = [*_COMMAND, "build", *arguments]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=folder, env=user_environment(), capture_output=True, text=True, timeout=_BUILD_SECONDS
        )
    except subprocess.TimeoutExpired as e:
        raise command_failed("fiberwalk build", f"did not end in {_BUILD_SECONDS:.0f} s") from e
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise command_failed("fiberwalk build", f"exit status {done.returncode}: {done.stderr}{done.stdout}")
    return seconds


class Server:
    """A running `fiberwalk serve`, asked in batches; `process` is its number."""

    def __init__(self, url: str, process: int) -> None:
        self.url, self.process = url, process
        self._client = httpx.Client(base_url=url, timeout=120)

    def describe(self, model: str) -> dict[str, Any]:
        """What GET /models/{name} says."""
        return self._request("GET", f"/models/{model}")

    def ask(self, route: str, model: str, x: NDArray[Any], **options: float) -> dict[str, Any]:
        """POSTs rows (n, columns) to /predict or /ood, and joins the answers: arrays of n entries.

        Raises:
            FiberwalkError: a request was refused.
        """
        joined: dict[str, Any] = {}
        for start in range(0, len(x), _BATCH_ROWS):
            rows = x[start : start + _BATCH_ROWS].tolist()
            answer = self._request("POST", route, {"model": model, "inputs": rows, **options})
            for key, value in answer.items():
                joined[key] = joined.get(key, []) + value if isinstance(value, list) else value
        return joined

    def seconds(self, route: str, model: str, x: NDArray[Any], **options: float) -> float:
        """Wall-clock seconds from sending one request for rows (n, columns) to its answer.

        Raises:
            FiberwalkError: the request was refused.
        """
        body = json.dumps({"model": model, "inputs": x.tolist(), **options}).encode()
        start = time.perf_counter()
        self._send("POST", route, body)
        return time.perf_counter() - start

    def tell(self, model: str, x: NDArray[Any], targets: NDArray[Any]) -> dict[str, Any]:
        """POSTs rows (n, columns) with their true targets (n,) to /feedback, and returns the last answer.

        Raises:
            FiberwalkError: a request was refused.
        """
        answer: dict[str, Any] = {}
        for start in range(0, len(x), _BATCH_ROWS):
            rows = slice(start, start + _BATCH_ROWS)
            body = {"model": model, "inputs": x[rows].tolist(), "targets": targets[rows].tolist()}
            answer = self._request("POST", "/feedback", body)
        return answer

    def metrics(self) -> dict[str, float]:
        """What GET /metrics says, the series of a metric added up."""
        found: dict[str, float] = {}
        for line in self._send("GET", "/metrics", None).text.splitlines():
            if not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                name = series.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _request(self, method: str, route: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        content: dict[str, Any] = self._send(method, route, None if body is None else json.dumps(body).encode()).json()
        return content

    def _send(self, method: str, route: str, body: bytes | None) -> httpx.Response:
        try:
            response = self._client.request(method, route, content=body, headers=_JSON)
        except httpx.HTTPError as e:
            raise command_failed(f"a request to {route}", str(e)) from e
        if response.status_code != 200:
            raise command_failed(f"a request to {route}", f"status {response.status_code}: {response.text}")
        return response


@contextmanager
def serving(store: Path, **settings: object) -> Iterator[Server]:
    """Runs `fiberwalk serve` over a store, on a free port, until the block ends.

    Args:
        store: the model store.
        settings: of the server by name, over the defaults.

    Raises:
        FiberwalkError: it ended or is not ready in time; `got` is the end of its log.
    """
    # Several servers may run over one store.
    log = Path(tempfile.mkdtemp(prefix="serve-", dir=store.parent)) / "log"
    with log.open("wb") as out:
        command = [*_COMMAND, "serve", "--store", str(store), "--port", "0"]
        environment = user_environment() | {f"FIBERWALK_{key.upper()}": str(value) for key, value in settings.items()}
        process = subprocess.Popen(command, cwd=store.parent, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        server = Server(_wait_until_ready(process, log), process.pid)
        try:
            yield server
        finally:
            server.close()
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(log.parent)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + _START_SECONDS
    # Of no TLS: a client reads all certificates first otherwise, on the processor that the server starts on.
    with httpx.Client(timeout=10, verify=False) as client:
        while time.monotonic() < end:
            said = log.read_text(errors="replace")
            if process.poll() is not None:
                raise command_failed("fiberwalk serve", f"exit status {process.returncode}: {said}")
            url = next((word for word in said.split() if word.startswith("http://")), "")
            try:
                if url and client.get(f"{url}/readyz").status_code == 200:
                    return url
            except httpx.TransportError:
                pass  # it has its address before it takes connections
            time.sleep(0.05)
    raise command_failed("fiberwalk serve", f"not ready in {_START_SECONDS:.0f} s: {log.read_text(errors='replace')}")


def user_environment() -> dict[str, str]:
    """The user's environment without settings of the server, and with this checkout before an installed fiberwalk."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FIBERWALK_", "ORT_"))}
    kept["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept


def command_failed(what: str, said: str) -> FiberwalkError:
    """The error of a command that failed; `got` is the end of what it said."""
    return FiberwalkError(f"{what} failed; see what it said.", code="command_failed", got=said.strip()[-_TAIL:])
