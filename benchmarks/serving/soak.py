"""How soon a server is ready, how much memory it takes, and whether that stays so over many requests.

    python -m benchmarks.serving.soak [--requests N] [--ids N] [--starts N] [--output FILE.json]

A network of 298,143 random weights is served by `fiberwalk serve`, one process. The server is started several times,
then asked by 32 clients: for predictions of one row and of eight, with flags and without, of a dozen seeds, so that
weight sets come and go, and for flags alone. Then they tell it targets of predictions that it never made. Needs Linux,
which tells what a process takes.
`python -m benchmarks.serving.page` renders the file.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

import builder  # noqa: F401  settles threads and memory before torch is imported
from benchmarks.command import Server, serving
from benchmarks.data import ROOT
from benchmarks.exit import exit_status
from benchmarks.results import Results, environment, refuse_changed
from benchmarks.serving.ending import conclude
from benchmarks.serving.load import load, post_json
from benchmarks.serving.models import Case, rows_of, sent_rows, serve
from benchmarks.serving.tables import judge_soak, soak_table
from builder.network import MLP

OUTPUT: Final = ROOT / "benchmarks" / "results" / "soak.json"
NAME: Final = "MLP 784-325-128-10"
CASE: Final = Case(lambda: MLP(784, [325, 128], 10), (784,), 10, rank=8)
SAMPLES: Final = 32
_CLIENTS, _SEEDS = 32, 12
_CACHE_BYTES, _REMEMBER_BYTES = 32 * 2**20, 4 * 2**20
"""Of weight sets and of predictions that wait for targets: both are full long before the end."""
_NUMBERS = itertools.count()
_TURN_SECONDS = 3.0
_POINTS: Final = 20


def starts(store: Path, count: int) -> list[float]:
    """Seconds from a server's launch until it is ready, each time."""
    found = []
    for _ in range(count):
        started = time.perf_counter()
        with serving(store):
            found.append(time.perf_counter() - started)
    return found


def soak(store: Path, wanted: int, ids: int) -> dict[str, Any]:
    """Memory of a server that answers so many requests, and is then told targets of so many unknown ids.

    Returns:
        `first`: bytes that the process takes after the first answer, and `first_set` those of the weight set that it
        then holds; `requests` answered and `memory` in bytes, by time; `held`, the bytes of weight sets at the end;
        `ids` that were told, and `told`, the bytes after them.
    """
    with serving(store, cache_bytes=_CACHE_BYTES, remember_bytes=_REMEMBER_BYTES) as server:
        server.ask("/predict", "random", rows_of(CASE, 1), samples=SAMPLES)
        found: dict[str, Any] = {"first": _memory(server), "first_set": _held(server), "requests": [], "memory": []}
        requests, done = _requests(), 0.0
        while done < wanted:
            load(server.url, requests, _TURN_SECONDS)
            done = server.metrics()["fiberwalk_requests_total"]
            if done * _POINTS >= wanted * len(found["requests"]):
                found["requests"].append(int(done))
                found["memory"].append(_memory(server))
        told = 0
        while told < ids:
            # Each refused with a status of its own; every request has another id.
            load(server.url, [_unknown] * _CLIENTS, _TURN_SECONDS, status=404)
            told = int(server.metrics()["fiberwalk_requests_total"] - done)
        return {**found, "held": _held(server), "ids": told, "told": _memory(server)}


def _unknown() -> bytes:
    return post_json("/feedback", {"request_id": f"unknown-{next(_NUMBERS)}", "targets": [0]})


def _requests() -> list[bytes]:
    """One for each client."""
    found = []
    for i in range(_CLIENTS):
        rows = sent_rows(CASE, 8 if i % 8 == 0 else 1)
        body: dict[str, Any] = {"inputs": rows, "samples": SAMPLES, "seed": i % _SEEDS}
        if i % 4 == 1:
            found.append(post_json("/ood", body))
        else:
            found.append(post_json("/predict", body | {"ood": i % 3 == 0}))
    return found


def _memory(server: Server) -> int:
    """Bytes of the server's process that are in memory."""
    (kilobytes,) = (
        line.split()[1]
        for line in Path(f"/proc/{server.process}/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    return int(kilobytes) * 1024


def _held(server: Server) -> int:
    return int(server.metrics()["fiberwalk_cache_bytes"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns the exit status: 2 where it cannot start."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.soak", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--requests", type=int, default=200_000, metavar="N", help="default 200,000")
    parser.add_argument("--ids", type=int, default=1_000_000, metavar="N", help="default a million")
    parser.add_argument("--starts", type=int, default=5, metavar="N", help="of the server, default 5")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    options = parser.parse_args(arguments)
    if min(options.requests, options.starts, options.ids) < 1:
        parser.error("--requests, --ids and --starts must be at least 1")
    log = Console(stderr=True, highlight=False)
    return exit_status(lambda: _run(options, log), log)


def _run(options: argparse.Namespace, log: Console) -> int:
    here = environment(ROOT, "random weights")
    results = Results(options.output, "soak", here)
    with tempfile.TemporaryDirectory(prefix="fiberwalk-benchmark-") as folder:
        store = Path(folder) / "models"
        serve(CASE, store)
        ready = starts(store, options.starts)
        results.add(NAME, 0, {"ready": [round(s, 3) for s in ready], **soak(store, options.requests, options.ids)})
    refuse_changed(here, environment(ROOT, "random weights"))
    found = results.current(NAME)
    return conclude(
        results, options.output, "One server process, 32 clients", soak_table(found), judge_soak(found), log
    )


if __name__ == "__main__":
    sys.exit(main())
