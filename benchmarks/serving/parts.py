"""What a server does for a request beside running the network: reading it, and writing its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from model_store.errors import FiberwalkError
from service.formats import WRITERS, Body
from service.runtime import Runtime
from service.settings import load_settings
from service.together import run_alone

_START_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Parts:
    """Of one request.

    Attributes:
        reading: seconds from its body to encoded rows.
        writing: seconds from what the network found to the answer's bytes.
        length: of the answer, in bytes.
    """

    reading: float
    writing: float
    length: int


@contextmanager
def worker(store: Path, body: Body) -> Iterator[Callable[[], Parts]]:
    """A call that answers `POST /predict` as a server's worker thread does, in this process, with an answer of the
    body's own media type. The network runs between the two parts, as it does in a server: they find the processor's
    caches as it left them.

    Args:
        store: of the model.
        body: of the request.

    Raises:
        FiberwalkError: the model was not loaded in time.
    """
    runtime = Runtime(load_settings(store=store, log_level="error"))
    runtime.start()
    try:
        end = time.monotonic() + _START_SECONDS
        while runtime.models.state != "ready":
            if time.monotonic() > end:
                raise FiberwalkError("The benchmark's model was not loaded in time.", code="not_loaded")
            time.sleep(0.05)
        yield partial(_answer, runtime, body)
    finally:
        runtime.stop()


def _answer(runtime: Runtime, body: Body) -> Parts:
    began = time.perf_counter()
    steps = runtime.inference.predict(body, {"request_id": "benchmark"})
    run = next(steps)
    read = time.perf_counter()
    weights = runtime.weights.get(run.model, run.key.plan, run.key.samples, run.key.seed)
    columns = run_alone(weights, run)
    found = time.perf_counter()
    try:
        steps.send(columns)
    except StopIteration as finished:
        content = WRITERS[body.media_type](finished.value)
    return Parts(read - began, time.perf_counter() - found, len(content))
