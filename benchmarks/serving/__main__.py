"""The serving benchmark: what 32 posterior samples cost beside one deterministic run of the same network.

    python -m benchmarks.serving [--networks NAME ...] [--rows N ...] [--seconds S] [--output FILE.json]

Networks with random weights go through the builder's export, and are run by the code that the server runs, on one
thread, by turns with ONNX Runtime on the same network with its weights as constants (det). Prints a table and the list
of goals; `python -m benchmarks.serving.page` renders the file as docs/performance.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

import builder  # noqa: F401  settles threads and memory before torch is imported
from benchmarks.data import ROOT
from benchmarks.exit import exit_status
from benchmarks.results import Results, environment, refuse_changed
from benchmarks.serving.ending import conclude
from benchmarks.serving.limits import LIMITS, judge_limits, measure_limit
from benchmarks.serving.measure import measure, on_one_core
from benchmarks.serving.models import CASES
from benchmarks.serving.tables import judge, table

OUTPUT: Final = ROOT / "benchmarks" / "results" / "serving.json"
_ONE_ROW: Final = {"ResNet-20", "ResNet-20, last block", "ResNet-20, last layer"}
"""Networks of which many rows would take too long."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns the exit status: 2 where it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 64], metavar="N")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="of measuring each, default 4")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    options = parser.parse_args(arguments)
    if min(options.rows) < 1:
        parser.error("--rows must be at least 1")
    log = Console(stderr=True, highlight=False)
    return exit_status(lambda: _run(options, log), log)


def _run(options: argparse.Namespace, log: Console) -> int:
    here = environment(ROOT, "random weights")
    results = Results(options.output, "serving", here)
    with on_one_core():
        # Always anew: it takes minutes, and times measured side by side are what can be compared.
        for name in options.networks:
            rows = [b for b in options.rows if b == 1 or name not in _ONE_ROW]
            for measured in measure(CASES[name], rows, options.seconds):
                results.add(name, measured["rows"], {"split": measured["rows"], **measured})
        for limit in LIMITS:
            if limit.network in options.networks:
                shares = measure_limit(limit, options.seconds)
                results.add(limit.text, 0, {what: round(share, 4) for what, share in shares.items()})
    refuse_changed(here, environment(ROOT, "random weights"))
    found = [run for name in options.networks for run in results.current(name) if run["rows"] in options.rows]
    limits = [run for limit in LIMITS for run in results.current(limit.text)]
    goals = [*judge_limits(limits), *judge(found)]
    return conclude(results, options.output, "32 samples on one core", table(found), goals, log)


if __name__ == "__main__":
    sys.exit(main())
