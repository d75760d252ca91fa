"""The quality benchmark: every method on the same splits, networks, training budget and tuning effort, in one run.

    python -m benchmarks.quality [--full] [--sets NAME[:N] ...] [--splits N] [--preset default] [--output FILE.json]

Without `--full`, a subset of sets and splits that ends within half an hour on 2 cores. Splits run side by side, one
process a core; times are comparable within a run. It can be stopped at any time: finished splits are in the output
file and are not run again, unless the code, the preset, the libraries or the machine changed. Prints tables and the
list of goals; `python -m benchmarks.quality.page` renders the file as docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console

import builder  # noqa: F401  settles threads and memory before torch is imported
from benchmarks.data import PUBLISHED, ROOT
from benchmarks.exit import exit_status
from benchmarks.quality.goals import judge
from benchmarks.quality.run import run_split
from benchmarks.quality.splits import read_options, run_splits, splits_of_sets
from benchmarks.quality.summary import summarize
from benchmarks.quality.tables import render_goals, render_summary

OUTPUT: Final = ROOT / "benchmarks" / "results" / "quality.json"
ALL: Final = [name for name in PUBLISHED if name != "snelson1d"]
SUBSET: Final = ["uci_boston", "uci_energy", "uci_wine_red", "uci_yacht", "cls_australian", "cls_glass", "cls_vehicle"]
_EVERY: Final = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns the exit status: 1 where a split failed, 2 where it cannot start."""
    options = read_options(
        arguments, "python -m benchmarks.quality", __doc__, OUTPUT, sets="these sets only, and N splits of one"
    )
    log = Console(stderr=True, highlight=False)
    return exit_status(lambda: _run(options, log), log)


def _run(options: argparse.Namespace, log: Console) -> int:
    wanted = splits_of_sets(options, ALL if options.full else SUBSET, _EVERY if options.full else 2)
    results, counts = run_splits(
        "quality", run_split, _shown, wanted, options.preset, options.output, options.workers, log
    )
    each = [summarize(n, [r for r in results.current(n) if r["split"] < counts[n]]) for n in counts]
    summary = [s for s in each if s is not None]
    # The page is of all sets in the file, each as it was run last.
    order = {name: i for i, name in enumerate(ALL)}
    every = [summarize(n, results.latest(n)) for n in sorted(results.sets, key=lambda n: order.get(n, len(ALL)))]
    results.save([s for s in every if s is not None])
    render_summary(summary)
    render_goals(judge(summary))
    log.print(f"Written to {options.output}.", markup=False, soft_wrap=True)
    failed = any("error" in r or r.get("failed") for n in counts for r in results.current(n))
    return int(failed)


def _shown(found: dict[str, Any]) -> str:
    return "  ".join(f"{m} {r['figures']['nll']:.3f}" for m, r in found["methods"].items())


if __name__ == "__main__":
    sys.exit(main())
