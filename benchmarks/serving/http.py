"""What requests that go together gain: a server's answers a second, with batching and without, and how long they take.

    python -m benchmarks.serving.http [--networks NAME ...] [--clients N ...] [--seconds S] [--starts N] [--output FILE]

Networks with random weights are served by `fiberwalk serve`, one process: by a server as it comes, and by one with
`FIBERWALK_BATCH_ROWS=1`. Clients over connections that stay open send one row each, as JSON, and get the predictive of
32 samples. The two are asked by turns, so that whatever else the machine does slows both alike, and are started several
times, as processes differ in how their memory lies. `python -m benchmarks.serving.page` renders the file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

import builder  # noqa: F401  settles threads and memory before torch is imported
from benchmarks.command import serving
from benchmarks.data import ROOT
from benchmarks.exit import exit_status
from benchmarks.results import Results, environment, refuse_changed
from benchmarks.serving.ending import conclude
from benchmarks.serving.load import Load, load, medians, post_json
from benchmarks.serving.models import CASES, Case, sent_rows, serve
from benchmarks.serving.tables import BATCHED, http_table, judge_http

OUTPUT: Final = ROOT / "benchmarks" / "results" / "http.json"
SAMPLES: Final = 32
NETWORKS: Final = [BATCHED, f"{BATCHED}, rank 8"]
SETTINGS: Final[dict[str, dict[str, object]]] = {"together": {}, "alone": {"batch_rows": 1}}
"""Of the servers, by the name of what they measure."""
_TURNS: Final = 2


def measure(case: Case, clients: Sequence[int], seconds: float, starts: int) -> list[dict[str, Any]]:
    """Figures for every number of clients.

    Args:
        case: the network.
        clients: numbers of clients at the same time.
        seconds: of every turn.
        starts: how often the servers are started; each time there are two turns.

    Returns:
        By clients, with batching (`together`) and without (`alone`): `rate`, answers a second; `p50` and `p99` in
        milliseconds; medians over all turns. Besides `rows`, the mean of a run where they go together.
    """
    rows_sent = sent_rows(case, max(clients))
    requests = [post_json("/predict", {"model": "random", "samples": SAMPLES, "inputs": [row]}) for row in rows_sent]
    found: dict[tuple[int, str], list[Load]] = {}
    rows: dict[tuple[int, str], list[float]] = {}
    order = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="fiberwalk-benchmark-") as folder:
        store = Path(folder) / "models"
        serve(case, store)
        for _ in range(starts):
            with ExitStack() as stack:
                servers = {name: stack.enter_context(serving(store, **given)) for name, given in SETTINGS.items()}
                # By chance, as a turn's figures depend on what came before it.
                for count, name in order.permutation([(c, n) for c in clients for n in SETTINGS] * _TURNS).tolist():
                    before = servers[name].metrics()
                    got = load(servers[name].url, requests[: int(count)], seconds)
                    found.setdefault((int(count), name), []).append(got)
                    rows.setdefault((int(count), name), []).append(_rows_a_run(before, servers[name].metrics()))
    return [
        {
            "clients": count,
            "samples": SAMPLES,
            "rows": round(float(np.median(rows[count, "together"])), 2),
            **{name: medians(found[count, name]) for name in SETTINGS},
        }
        for count in clients
    ]


def _rows_a_run(before: dict[str, float], after: dict[str, float]) -> float:
    rows, runs = (after[n] - before.get(n, 0.0) for n in ("fiberwalk_batch_rows_sum", "fiberwalk_batch_rows_count"))
    return rows / runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns the exit status: 2 where it cannot start."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.http", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=NETWORKS, metavar="NAME")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64], metavar="N")
    parser.add_argument("--seconds", type=float, default=0.8, metavar="S", help="of every turn, default 0.8")
    parser.add_argument("--starts", type=int, default=4, metavar="N", help="of the servers, default 4")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    options = parser.parse_args(arguments)
    if min([options.starts, *options.clients]) < 1:
        parser.error("--clients and --starts must be at least 1")
    log = Console(stderr=True, highlight=False)
    return exit_status(lambda: _run(options, log), log)


def _run(options: argparse.Namespace, log: Console) -> int:
    here = environment(ROOT, "random weights")
    results = Results(options.output, "http", here)
    for name in options.networks:
        for measured in measure(CASES[name], options.clients, options.seconds, options.starts):
            results.add(name, measured["clients"], measured)
    refuse_changed(here, environment(ROOT, "random weights"))
    found = [run for name in options.networks for run in results.current(name)]
    return conclude(
        results,
        options.output,
        "Requests of one row, 32 samples, one server process",
        http_table(found),
        judge_http(found),
        log,
    )


if __name__ == "__main__":
    sys.exit(main())
