"""Times of one deterministic run, of S samples and of their statistics, taken by turns."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.serving.models import Case, Float32, rows_of, serve_beside
from model_store.plan import draw_latents
from service.engine import WeightSet
from service.model import Asked, ServedModel

SAMPLES: Final = 32
_ASKED = Asked(0.9)
_RUN_SIZE = 8192
_TURN_SECONDS = 0.002


def measure(case: Case, batches: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Medians, in microseconds, for every number of rows.

    Args:
        case: the network.
        batches: numbers of rows.
        seconds: how long each of them is measured.

    Returns:
        By rows: `det`, one run of ONNX Runtime with the weights as constants; `predict`, from weights in memory to the
        columns of an answer; `network`, the part of it up to the outputs of every sample; `statistics`, what comes
        after them; and `read`, what reading the weights once takes.
    """
    with tempfile.TemporaryDirectory(prefix="fiberwalk-benchmark-") as store:
        model, det = serve_beside(case, Path(store))
    latents, anchors = draw_latents(model.plan("predict"), model.nodes, SAMPLES, 0)
    decoded = model.engine.decode(latents, anchors)
    weights = model.engine.bind(decoded, anchors)
    flat = model.engine.joined(decoded).reshape(-1)
    found = []
    for rows in batches:
        x = rows_of(case, rows)
        outputs = np.concatenate(list(model.engine.outputs(weights, x, _RUN_SIZE)), axis=1)
        calls: dict[str, Callable[[], object]] = {
            "det": partial(det.run, ["outputs"], {"inputs": x}),
            "network": partial(all_outputs, model, weights, x),
            "statistics": partial(model.columns, weights, x, outputs, None, _ASKED),
            "predict": partial(model.predict, weights, x, _ASKED),
            "read": partial(np.dot, flat, flat),
        }
        times = by_turns(calls, seconds)
        found.append({"rows": rows, "samples": SAMPLES, **{k: round(v * 1e6, 2) for k, v in times.items()}})
    return found


def all_outputs(model: ServedModel, weights: WeightSet, x: Float32) -> list[Float32]:
    """Outputs (S, b, O) of the parts of rows x (B, ...), through the code that the server runs."""
    return list(model.engine.outputs(weights, x, _RUN_SIZE))


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keeps this process on one core, where the system lets it."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    try:
        if allowed:
            os.sched_setaffinity(0, {max(allowed)})
        yield
    finally:
        if allowed:
            os.sched_setaffinity(0, allowed)


def by_turns(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The median seconds of the processor that each call takes.

    Not of the clock: nothing waits here but for other processes. The calls take turns, so that whatever else these do
    to caches and memory slows all alike. A turn repeats its call for a few milliseconds after one that does not count:
    each is timed with its own data in the processor's caches.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.thread_time()
        call()
        repeats[name] = max(1, round(_TURN_SECONDS / max(time.thread_time() - start, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not times[name]:
        for name, call in calls.items():
            call()
            start = time.thread_time()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.thread_time() - start) / repeats[name])
    return {name: float(np.median(taken)) for name, taken in times.items()}
