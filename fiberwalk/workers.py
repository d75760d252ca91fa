"""Several workers at one address: their parent, and the application of each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
from typing import Any

from fastapi import FastAPI
from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from model_store.errors import FiberwalkError
from service.app import create_app
from service.log import make_logger
from service.settings import Settings, load_settings


def serve_side_by_side(settings: Settings, listener: socket.socket, options: dict[str, Any]) -> None:
    """Runs workers until the process is told to stop, each with settings of the environment.

    Args:
        settings: of this process, which says how many.
        listener: the socket that all take connections from; closed at the end.
        options: of uvicorn.

    Raises:
        FiberwalkError: a worker did not start.
    """
    config = Config("fiberwalk.workers:create_worker", factory=True, workers=settings.workers, **options)
    parent = _Parent(config, listener, settings)
    parent.run()
    if parent.failed:
        raise FiberwalkError("A worker did not start; the log says why.", code="worker_failed")


def create_worker() -> FastAPI:
    """The application of this worker, which from now on ends with its parent.

    An error ends the process with the status by which the parent knows that another attempt is of no use.
    """
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    settings = load_settings()
    try:
        return create_app(settings)
    except Exception:
        make_logger(settings).exception("worker_failed", pid=os.getpid())
        sys.exit(STARTUP_FAILURE)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


class _Parent(Multiprocess):
    """uvicorn's, which tells what becomes of its workers.

    Attributes:
        failed: whether a worker did not start, so that all were stopped.
    """

    def __init__(self, config: Config, listener: socket.socket, settings: Settings) -> None:
        super().__init__(config, [listener])
        self.failed = False
        self._log = make_logger(settings)

    def keep_subprocess_alive(self) -> None:
        if self.should_exit.is_set():
            return
        before = list(self.processes)
        super().keep_subprocess_alive()
        self.failed = self.should_exit.is_set()
        for was, now in zip(before, self.processes, strict=True):
            if was is not now:
                self._log.warning("worker_ended", pid=was.pid, exit_code=was.process.exitcode, restarted_as=now.pid)

    def terminate_all(self) -> None:
        # Where the workers take no more connections, the system would go on accepting and then reset them.
        for listener in self.sockets:
            listener.close()
        super().terminate_all()
