"""NLL against cost as a curve for every method, on the same splits.

    python -m benchmarks.quality.curves [--sets NAME[:N] ...] [--splits N] [--preset default] [--output FILE.json]

It can be stopped at any time and goes on from the splits that the file holds, as `python -m benchmarks.quality` does.
Prints the points and the goal that is judged from them; `python -m benchmarks.quality.page` renders them, with a
picture, as part of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

import builder  # noqa: F401  settles threads and memory before torch is imported
from benchmarks.data import PUBLISHED, ROOT
from benchmarks.exit import exit_status
from benchmarks.quality.curves.points import run_points
from benchmarks.quality.curves.summary import judge, summarize, table
from benchmarks.quality.splits import run_splits, splits_of_sets
from benchmarks.quality.tables import render_goals
from benchmarks.table import render

OUTPUT: Final = ROOT / "benchmarks" / "results" / "curves.json"
SETS: Final = [name for name in PUBLISHED if name.startswith("uci_") and name != "uci_protein"]
PRESETS: Final = ("fast", "default", "thorough")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns the exit status: 1 where a split failed, 2 where it cannot start."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.curves", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--sets", nargs="+", metavar="NAME[:N]", help="default: the UCI sets but protein")
    parser.add_argument("--splits", type=int, metavar="N", help="the first N of each set (default 2)")
    parser.add_argument("--preset", choices=PRESETS, default="default")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: cores)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    options = parser.parse_args(arguments)
    if (options.splits or 1) < 1 or options.workers < 1:
        parser.error("--splits and --workers must be at least 1")
    log = Console(stderr=True, highlight=False)
    return exit_status(lambda: _run(options, log), log)


def _run(options: argparse.Namespace, log: Console) -> int:
    results, counts = run_splits(
        "curves",
        run_points,
        _shown,
        splits_of_sets(options, SETS, 2),
        options.preset,
        options.output,
        options.workers,
        log,
    )
    runs = {n: [r for r in results.current(n) if r["split"] < count] for n, count in counts.items()}
    summary = [s for s in (summarize(n, runs[n]) for n in runs) if s is not None]
    results.save(summary)
    for s in summary:
        render(f"{s['set']}: NLL (cost)", *table([s]))
        for family, text in s["failed"].items():
            print(f"{s['set']}: {family} failed: {text}")
    render_goals([judge(summary)])
    log.print(f"Written to {options.output}.", markup=False, soft_wrap=True)
    return int(any("error" in r or r.get("failed") for each in runs.values() for r in each))


def _shown(found: dict[str, Any]) -> str:
    curves: dict[str, dict[str, Any]] = found["curves"]
    each = {curve: [f"{p['figures']['nll']:.3f}" for p in points.values()] for curve, points in curves.items()}
    return "  ".join(f"{curve} {' '.join(texts)}" for curve, texts in each.items())


if __name__ == "__main__":
    sys.exit(main())
