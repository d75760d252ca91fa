"""NLL against cost as a curve for every method, on the same splits.

    python -m benchmarks.quality.curves [--sets NAME[:N] ...] [--splits N] [--methods NAME ...] [--preset default]
                                        [--output FILE.json]

It can be stopped at any time and goes on from the splits that the file holds, as `python -m benchmarks.quality` does;
`--methods` runs some of the methods alone; what the file has of the others stays, with the commit that it was measured
with.
Prints the points and the goals that are judged from them; `python -m benchmarks.quality.page` renders them, with a
picture, as part of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from rich.console import Console

import builder  # noqa: F401  settles threads and memory before torch is imported
from benchmarks.data import PUBLISHED, ROOT
from benchmarks.exit import exit_status
from benchmarks.quality.curves.points import FAMILIES, has_all, merged, run_points
from benchmarks.quality.curves.summary import judge, summarize_all, table
from benchmarks.quality.splits import read_options, run_splits, splits_of_sets
from benchmarks.quality.tables import render_goals
from benchmarks.table import render

OUTPUT: Final = ROOT / "benchmarks" / "results" / "curves.json"
SETS: Final = [name for name in PUBLISHED if name.startswith("uci_") and name != "uci_protein"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns the exit status: 1 where a split failed, 2 where it cannot start."""
    options = read_options(
        arguments,
        "python -m benchmarks.quality.curves",
        __doc__,
        OUTPUT,
        full=False,
        sets="default: the UCI sets but protein",
        more=_methods,
    )
    log = Console(stderr=True, highlight=False)
    return exit_status(lambda: _run(options, log), log)


def _methods(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--methods", nargs="+", choices=FAMILIES, default=[], help="default: all")


def _run(options: argparse.Namespace, log: Console) -> int:
    results, counts = run_splits(
        "curves",
        partial(run_points, wanted=options.methods) if options.methods else run_points,
        _shown,
        splits_of_sets(options, SETS, 2),
        options.preset,
        options.output,
        options.workers,
        log,
        merged,
        lambda run: has_all(run, options.methods),
    )
    runs = {n: [r for r in results.current(n) if r["split"] < count] for n, count in counts.items()}
    summary = summarize_all(results)
    results.save(summary)
    for s in summary:
        render(f"{s['set']}: NLL (cost)", *table([s]))
        for family, text in s["failed"].items():
            print(f"{s['set']}: {family} failed: {text}")
    render_goals(judge(summary))
    log.print(f"Written to {options.output}.", markup=False, soft_wrap=True)
    return int(any("error" in r or r.get("failed") for each in runs.values() for r in each))


def _shown(found: dict[str, Any]) -> str:
    curves: dict[str, dict[str, Any]] = found["curves"]
    each = {curve: [f"{p['figures']['nll']:.3f}" for p in points.values()] for curve, points in curves.items()}
    return "  ".join(f"{curve} {' '.join(texts)}" for curve, texts in each.items())


if __name__ == "__main__":
    sys.exit(main())
