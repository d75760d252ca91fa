"""Answers a second beside those of peers: other servers of posterior samples, each from its own packages.

    python -m benchmarks.serving.peers [--peers NAME ...] [--seconds S] [--turns N] [--output FILE.json]

Every peer serves a network 784-256-128-10 with random weights from one process with one thread, and gets requests of
one row, as JSON, over connections that stay open: from one client, then from 32. `fiberwalk serve` runs beside it,
once with all weights of 32 samples and once with a first layer that is mixed, and is asked by turns, so that whatever
else the machine does slows all alike. Needs the extra `peers`;
`python -m benchmarks.serving.page` renders the file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from rich.console import Console

import builder  # noqa: F401  settles threads and memory before torch is imported
from benchmarks.command import serving
from benchmarks.data import ROOT
from benchmarks.exit import exit_status
from benchmarks.results import Results, environment, refuse_changed
from benchmarks.serving.ending import conclude
from benchmarks.serving.load import Load, load, medians, post_json
from benchmarks.serving.models import CASES, sent_rows, serve
from benchmarks.serving.peers.predictors import NETWORK, SAMPLES
from benchmarks.serving.peers.processes import PEERS, running
from benchmarks.serving.peers.tables import judge, table

OUTPUT: Final = ROOT / "benchmarks" / "results" / "peers.json"
CLIENTS: Final = (1, 32)
OURS: Final = {"ours": NETWORK, "ours_mixed": f"{NETWORK}, rank 8"}
"""The networks that we serve beside each peer."""


def measure(peer: str, stores: Mapping[str, Path], seconds: float, turns: int) -> list[dict[str, Any]]:
    """A peer's figures and ours beside it, for every number of clients.

    Args:
        peer: its name.
        stores: by name, of the models that `fiberwalk serve` answers with.
        seconds: of every turn.
        turns: of each; medians are taken over them.

    Returns:
        By clients, of `peer` and of ours by their names: `rate`, answers a second; `p50` and `p99` in milliseconds.
    """
    rows = sent_rows(CASES[NETWORK], max(CLIENTS))
    theirs = [post_json("/predict", {"inputs": [row]}) for row in rows]
    own = [post_json("/predict", {"samples": SAMPLES, "inputs": [row]}) for row in rows]
    found: dict[tuple[int, str], list[Load]] = {}
    with ExitStack() as stack:
        asked = [("peer", stack.enter_context(running(peer, theirs[0])), theirs)]
        asked += [(name, stack.enter_context(serving(store)).url, own) for name, store in stores.items()]
        for turn in range(turns):
            for clients in CLIENTS:
                for name, at, requests in asked[:: -1 if turn % 2 else 1]:
                    found.setdefault((clients, name), []).append(load(at, requests[:clients], seconds))
    return [
        {"clients": clients, **{name: medians(found[clients, name]) for name in ("peer", *stores)}}
        for clients in CLIENTS
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns the exit status: 2 where it cannot start."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.peers", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="of every turn, default 2")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="of each server, default 3")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.turns < 1:
        parser.error("--turns must be at least 1")
    log = Console(stderr=True, highlight=False)
    return exit_status(lambda: _run(options, log), log)


def _run(options: argparse.Namespace, log: Console) -> int:
    here = environment(ROOT, "random weights")
    results = Results(options.output, "peers", here)
    with tempfile.TemporaryDirectory(prefix="fiberwalk-benchmark-") as folder:
        stores = {name: Path(folder) / name for name in OURS}
        for name, store in stores.items():
            serve(CASES[OURS[name]], store)
        for peer in options.peers:
            for measured in measure(peer, stores, options.seconds, options.turns):
                results.add(peer, measured["clients"], measured)
            rates = ", ".join(f"{name} {measured[name]['rate']:.0f}" for name in ("peer", *OURS))
            log.print(f"{peer}, answers a second of {measured['clients']} clients: {rates}")
    refuse_changed(here, environment(ROOT, "random weights"))
    found = [run for peer in PEERS for run in results.current(peer)]
    return conclude(
        results, options.output, "Requests of one row over HTTP, one server process", table(found), judge(found), log
    )


if __name__ == "__main__":
    sys.exit(main())
