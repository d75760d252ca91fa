"""What HTTP adds to an answer, what a second worker brings, and what a replica's first answer takes.

    python -m benchmarks.serving.wire [--seconds S] [--turns N] [--seeds N] [--output FILE.json]

Networks with random weights are served by `fiberwalk serve`. One client's median wait is set beside the call that the
server makes for it, in this process and by turns, and the other parts that it is made of; a server of two workers
beside one of one; and servers that have never decoded a set of weights, which is in a Redis, beside each other: one
that always fetches it, one that never does, and one that decides by what both take. `python -m
benchmarks.serving.page` renders the file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import msgpack
import numpy as np
from rich.console import Console

import builder  # noqa: F401  settles threads and memory before torch is imported
from benchmarks.command import serving
from benchmarks.data import ROOT
from benchmarks.exit import exit_status
from benchmarks.redis_server import redis_running
from benchmarks.results import Results, environment, refuse_changed
from benchmarks.serving.ending import conclude
from benchmarks.serving.load import Load, load, medians, post
from benchmarks.serving.models import CASES, Case, rows_of, sent_rows, serve
from benchmarks.serving.parts import Parts, worker
from benchmarks.serving.peers.processes import started
from benchmarks.serving.wire_tables import COLD, WAITS, WORKERS, judge, table
from builder.network import MLP
from model_store.plan import draw_latents
from service.formats import JSON, MSGPACK, Body
from service.model import Asked, ServedModel

Found = TypeVar("Found")

OUTPUT: Final = ROOT / "benchmarks" / "results" / "wire.json"
SAMPLES: Final = 32
_ASKED: Final = Asked(0.9)
_CLIENTS, _ROWS = 32, 16
"""Of the load on one and on two workers."""

REPLICAS: Final = {
    "MLP 784-256-128-10": CASES["MLP 784-256-128-10"],
    "MLP 200-100-10, rank 999": Case(lambda: MLP(200, [100], 10), (200,), 10, rank=999),
}
"""Networks whose decoding takes less time than fetching, and more."""
WAYS: Final = ("always", "never", "auto")


def waits(name: str, rows: int, binary: bool, seconds: float, turns: int) -> dict[str, Any]:
    """One client's median wait for an answer, and what it is made of, in milliseconds.

    Returns:
        `p50`, the wait; `alone`, the call that the server makes, in this process; `http`, the wait for a server that
        computes nothing and answers as many bytes; `idle`, by how much longer the call takes after a pause as long as a
        server's between two calls; `reading` and `writing`, from the body to encoded rows and from what the network
        found to the answer's bytes.
    """
    case, x = CASES[name], rows_of(CASES[name], rows)
    plain = {"samples": SAMPLES, "inputs": sent_rows(case, rows)}
    kind, content = (MSGPACK, _packed(x)) if binary else (JSON, json.dumps(plain).encode())
    request = post("/predict", content, kind, kind)
    found: list[Load] = []
    http: list[float] = []
    alone: list[float] = []
    later: list[float] = []
    parts: list[Parts] = []
    with tempfile.TemporaryDirectory(prefix="fiberwalk-benchmark-") as folder, ExitStack() as stack:
        store = Path(folder) / "models"
        model = serve(case, store)
        call = _called(model, x)
        answer = stack.enter_context(worker(store, Body(content, kind)))
        server = stack.enter_context(serving(store))
        bare = stack.enter_context(started("benchmarks.serving.bare", [str(answer().length)], request))
        for _ in range(turns):
            found.append(load(server.url, [request], seconds))
            http.append(load(bare, [request], seconds).p50)
            alone.append(_median_seconds(call, seconds))
            later.append(_median_seconds(call, seconds, max(found[-1].p50 / 1e3 - alone[-1], 0.0)))
            parts += _over(seconds, answer)
    shown = {
        "alone": np.median(alone) * 1e3,
        "http": np.median(http),
        "idle": (np.median(later) - np.median(alone)) * 1e3,
        "reading": np.median([p.reading for p in parts]) * 1e3,
        "writing": np.median([p.writing for p in parts]) * 1e3,
    }
    rounded = {part: round(float(milliseconds), 4) for part, milliseconds in shown.items()}
    return {"rows": rows, "binary": binary, **rounded, **medians(found)}


def _packed(x: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    inputs = {"dtype": "<f4", "shape": list(x.shape), "data": x.tobytes()}
    packed: bytes = msgpack.packb({"samples": SAMPLES, "inputs": inputs})
    return packed


def _called(model: ServedModel, x: np.ndarray[Any, np.dtype[np.float32]]) -> Callable[[], object]:
    latents, anchors = draw_latents(model.plan("predict"), model.nodes, SAMPLES, 0)
    weights = model.engine.bind(model.engine.decode(latents, anchors), anchors)
    return partial(model.predict, weights, x, _ASKED)


def _median_seconds(call: Callable[[], object], seconds: float, pause: float = 0.0) -> float:
    """Of the clock, as a client's wait is; with a pause before each call."""

    def timed() -> float:
        if pause:
            time.sleep(pause)
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return float(np.median(_over(seconds, timed)))


def _over(seconds: float, call: Callable[[], Found]) -> list[Found]:
    """What calls give for so many seconds, after a first one that does not count."""
    call()
    found: list[Found] = []
    end = time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        found.append(call())
    return found


def workers(name: str, seconds: float, turns: int) -> dict[str, Any]:
    """Answers a second of a server with one worker and of one with two, and the share of a core that clients took."""
    case = CASES[name]
    # Not as JSON, which one worker reads on the second core while it computes on the first.
    requests = [post("/predict", _packed(rows_of(case, _ROWS)), MSGPACK, MSGPACK)] * _CLIENTS
    found: dict[str, list[Load]] = {"one": [], "two": []}
    used = 0.0
    with tempfile.TemporaryDirectory(prefix="fiberwalk-benchmark-") as folder:
        store = Path(folder) / "models"
        serve(case, store)
        with ExitStack() as stack:
            # One thread each: a worker of two would have both cores alone.
            servers = {
                n: stack.enter_context(serving(store, workers=w, concurrency=1)) for n, w in (("one", 1), ("two", 2))
            }
            for turn in range(turns):
                for which in list(servers)[:: -1 if turn % 2 else 1]:
                    before, started = time.process_time(), time.perf_counter()
                    found[which].append(load(servers[which].url, requests, seconds))
                    used += (time.process_time() - before) / (time.perf_counter() - started)
    shown = {which: medians(loads) for which, loads in found.items()}
    return {"rows": _ROWS, "clients": _CLIENTS, "client_cores": round(used / (2 * turns), 3), **shown}


def cold(case: Case, seeds: int) -> dict[str, Any]:
    """Milliseconds of the first answer with a set of weights that a Redis has: medians over many sets, by what
    `FIBERWALK_REDIS_WEIGHTS` says."""
    x = rows_of(case, 1)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="fiberwalk-benchmark-") as folder, redis_running() as url:
        store = Path(folder) / "models"
        serve(case, store)
        with serving(store, redis_url=url, redis_weights="always") as first:
            for seed in range(1, seeds + 1):
                first.ask("/predict", "random", x, samples=SAMPLES, seed=seed)
        with ExitStack() as stack:
            servers = {w: stack.enter_context(serving(store, redis_url=url, redis_weights=w)) for w in WAYS}
            order = np.random.default_rng(0)
            for seed in range(1, seeds + 1):
                for way in order.permutation(WAYS).tolist():
                    taken = servers[way].seconds("/predict", "random", x, samples=SAMPLES, seed=seed)
                    found[way].append(1e3 * taken)
    return {way: round(float(np.median(times)), 3) for way, times in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns the exit status: 2 where it cannot start."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.wire", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="of every turn, default 1")
    parser.add_argument("--turns", type=int, default=6, metavar="N", help="of each, default 6")
    parser.add_argument("--seeds", type=int, default=40, metavar="N", help="sets of weights, default 40")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    options = parser.parse_args(arguments)
    if min(options.turns, options.seeds) < 1:
        parser.error("--turns and --seeds must be at least 1")
    log = Console(stderr=True, highlight=False)
    return exit_status(lambda: _run(options, log), log)


def _run(options: argparse.Namespace, log: Console) -> int:
    here = environment(ROOT, "random weights")
    results = Results(options.output, "wire", here)
    for i, (name, rows, binary) in enumerate(WAITS):
        results.add("wait", i, {"network": name, **waits(name, rows, binary, options.seconds, options.turns)})
    for i, name in enumerate(WORKERS):
        results.add("workers", i, {"network": name, **workers(name, options.seconds, options.turns)})
    for i, name in enumerate(COLD):
        results.add("cold", i, {"network": name, **cold(REPLICAS[name], options.seeds)})
    refuse_changed(here, environment(ROOT, "random weights"))
    found = [run for kind in ("wait", "workers", "cold") for run in results.current(kind)]
    return conclude(results, options.output, "Over HTTP, 32 samples", table(found), judge(found), log)


if __name__ == "__main__":
    sys.exit(main())
