"""Real servers for tests: fiberwalk, Redis, and one that never answers."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import httpx
import redis
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.redis_server import redis_binary
from tests.forked import IMPORTED, serve_forked

_START_SECONDS = 60.0
_END_SECONDS = 40.0
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(IMPORTED)


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def wait_until(done: Callable[[], bool], seconds: float = 20.0, what: str = "it") -> None:
    """Waits until `done()`, and fails after some time."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s for {what}")
        time.sleep(0.02)


def http_client(url: str = "") -> httpx.Client:
    """A client, to be closed by the caller; of no TLS, as to read all certificates takes longer than most requests."""
    return httpx.Client(base_url=url, timeout=30, verify=False)


class Server:
    """A running `fiberwalk serve`."""

    def __init__(self, process: ForkServerProcess, log: Path) -> None:
        self.process = process
        self._log = log
        self.url = ""

    @property
    def log(self) -> str:
        """What the server wrote so far."""
        return self._log.read_text(errors="replace")

    def client(self) -> httpx.Client:
        """A client of this server."""
        return http_client(self.url)

    def get(self, path: str) -> httpx.Response:
        """The answer to a request over a connection of its own."""
        with self.client() as client:
            return client.get(path)

    def post(self, path: str, **content: Any) -> httpx.Response:
        """The answer to a request over a connection of its own."""
        with self.client() as client:
            return client.post(path, **content)

    def counter(self, name: str, **labels: str) -> float:
        """The value of one metric's series; 0 where there is none."""
        return counter(self.get("/metrics").text, name, **labels)

    def send_signal(self, what: signal.Signals) -> None:
        """Sends a signal to the server, or to the parent of its workers."""
        assert self.process.pid is not None
        os.kill(self.process.pid, what)

    def wait(self) -> int:
        """Waits until the server has ended, and returns its exit status: minus the signal that ended it, where one
        did."""
        self.process.join(_END_SECONDS)
        assert self.process.exitcode is not None, f"the server did not end:\n{self.log}"
        return self.process.exitcode

    def stop(self) -> int:
        """Ends the server as an orchestrator does, and returns its exit status."""
        if self.process.is_alive():
            self.process.terminate()
        return self.wait()


def counter(text: str, name: str, **labels: str) -> float:
    """The sum of the series of a metric with these labels in Prometheus' text format."""
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


@contextmanager
def serving(store: Path, *, ready: bool = True, before: str = "", **settings: object) -> Iterator[Server]:
    """Runs a server on a free port until the block ends.

    Args:
        store: the model store.
        ready: whether to wait for /readyz, or only until it listens.
        before: Python that the process runs before it serves, such as one that makes a deadline shorter.
        settings: the server's settings by name, such as `redis_url="redis://..."`.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FIBERWALK_", "ORT_"))}
    environment |= {f"FIBERWALK_{k.upper()}": str(v) for k, v in settings.items()}
    environment |= {"FIBERWALK_STORE": str(store), "FIBERWALK_PORT": "0"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.touch()
        process = _FORKS.Process(target=serve_forked, args=(before, environment, log))
        process.start()
        server = Server(process, log)
        try:
            _wait_for_start(server, ready)
            yield server
        finally:
            process.terminate()
            process.join(_END_SECONDS)
            process.kill()
            process.join()


def _wait_for_start(server: Server, ready: bool) -> None:
    def listens() -> bool:
        assert server.process.is_alive(), f"the server ended:\n{server.log}"
        found = re.search(r'http://[^\s"]+', server.log)
        server.url = found[0] if found else ""
        return bool(found)

    def is_ready() -> bool:
        assert server.process.is_alive(), f"the server ended:\n{server.log}"
        return server.get("/readyz").status_code == 200

    wait_until(listens, _START_SECONDS, "the server to listen")
    if ready:
        wait_until(is_ready, _START_SECONDS, "the server to be ready")


class RedisServer:
    """A Redis server that can be stopped and started again on its port, empty each time."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def client(self) -> redis.Redis:
        """A client, to be closed by the caller."""
        return redis.Redis(port=self.port)

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            [redis_binary(), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tempfile.gettempdir()
        )
        wait_until(self._answers, what="Redis to answer")

    def kill(self) -> None:
        """Ends the server at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


@contextmanager
def redis_running() -> Iterator[RedisServer]:
    """A real Redis server on a free port."""
    server = RedisServer()
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def silent_listener() -> Iterator[int]:
    """The port of a TCP server that takes connections and never says a word."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                try:
                    held.append(listener.accept()[0])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            stop.set()
            thread.join()
            for connection in held:
                connection.close()
