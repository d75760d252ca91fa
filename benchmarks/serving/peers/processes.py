"""Peers as processes of their own, from start to end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.command import command_failed, user_environment
from benchmarks.serving.load import load
from model_store.errors import FiberwalkError

PEERS: Final[dict[str, tuple[str, list[str]]]] = {
    "plain": ("with_fastapi", ["plain"]),
    "batched": ("with_fastapi", ["batched"]),
    "laplace": ("with_fastapi", ["laplace"]),
    "ensemble": ("with_fastapi", ["ensemble"]),
    "mc_dropout": ("with_fastapi", ["mc_dropout"]),
    "litserve": ("with_litserve", ["1"]),
    "litserve_batched": ("with_litserve", ["32"]),
    "bentoml": ("with_bentoml", []),
}
"""Name -> module beside this one, and its arguments before the port."""

_START_SECONDS = 120.0


@contextmanager
def running(peer: str, request: bytes) -> Iterator[str]:
    """Runs a peer on a free port until the block ends, and gives its address once it answers a request.

    Raises:
        FiberwalkError: it ended or gave no answer in time; `got` is the end of what it said.
    """
    module, arguments = PEERS[peer]
    with started(f"benchmarks.serving.peers.{module}", arguments, request) as url:
        yield url


@contextmanager
def started(module: str, arguments: Sequence[str], request: bytes) -> Iterator[str]:
    """As `running`, of a module that serves at the port that it is told after its arguments."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
    command = [sys.executable, "-m", module, *arguments, str(port)]
    environment = user_environment() | {"BENTOML_DO_NOT_TRACK": "True", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="fiberwalk-peer-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            # A session of its own: some serve from processes that they start themselves.
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            _wait(process, f"http://127.0.0.1:{port}", request, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], url: str, request: bytes, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            load(url, [request], 0.2)
        except (FiberwalkError, OSError):
            time.sleep(0.5)
        else:
            return
    raise command_failed(f"the server at {url}", log.read_text(errors="replace"))


def _end(process: subprocess.Popen[bytes]) -> None:
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
