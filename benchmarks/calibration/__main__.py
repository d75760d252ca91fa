"""The calibration benchmark: coverage, widths, flags and the monitor, beside conformal peers and common detectors.

    python -m benchmarks.calibration [--full] [--sets NAME[:N] ...] [--splits N] [--preset default] [--output FILE.json]

Without `--full`, a subset of sets and splits that ends within half an hour on 2 cores. `small_regression` stands for
the monitor. Splits run side by side, one process a core. It can be stopped at any time: finished splits are in the
output file and are not run again, unless the code, the preset, the libraries or the machine changed. Prints tables and
the list of goals; `python -m benchmarks.calibration.page` renders the file as docs/calibration.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console

import builder  # noqa: F401  settles threads and memory before torch is imported
from benchmarks.calibration.goals import OURS, judge
from benchmarks.calibration.monitored import MONITOR, MONITORED
from benchmarks.calibration.run import OOD_SETS, run_split
from benchmarks.calibration.summary import summarize
from benchmarks.calibration.tables import tables
from benchmarks.data import PUBLISHED, ROOT
from benchmarks.exit import exit_status
from benchmarks.quality.splits import read_options, run_splits, splits_of_sets
from benchmarks.quality.tables import render_goals
from benchmarks.table import render

OUTPUT: Final = ROOT / "benchmarks" / "results" / "calibration.json"
ALL: Final = [*(name for name in PUBLISHED if name != "snelson1d"), f"{MONITORED}:1"]
SUBSET: Final = [*OOD_SETS, "cls_australian", "cls_breast_wisconsin", "cls_glass", "cls_vehicle", f"{MONITORED}:1"]
_EVERY: Final = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns the exit status: 1 where a split or a peer failed, 2 where it cannot start."""
    options = read_options(
        arguments, "python -m benchmarks.calibration", __doc__, OUTPUT, sets="these sets only, and N splits of one"
    )
    log = Console(stderr=True, highlight=False)
    return exit_status(lambda: _run(options, log), log)


def _run(options: argparse.Namespace, log: Console) -> int:
    wanted = splits_of_sets(options, ALL if options.full else SUBSET, _EVERY if options.full else 2)
    results, counts = run_splits(
        "calibration", run_split, _shown, wanted, options.preset, options.output, options.workers, log
    )
    runs = {n: [r for r in results.current(n) if r["split"] < counts[n]] for n in counts}
    # Sets that are not run now stay as they are.
    summary = [s for n in results.sets if (s := summarize(n, results.latest(n))) is not None]
    results.save(summary)
    for table in tables(summary):
        render(table.title, table.header, table.rows)
    for s in summary:
        for family, text in s.get("failed", {}).items():
            print(f"{s['set']}: {family} failed: {text}")
    render_goals(judge(summary))
    log.print(f"Written to {options.output}.", markup=False, soft_wrap=True)
    return int(any("error" in r or r.get("failed") for of_set in runs.values() for r in of_set))


def _shown(found: dict[str, Any]) -> str:
    if found["task"] == MONITOR:
        return "rows until the alarm " + " ".join(str(r["rows_until_alarm"]) for r in found["runs"])
    return "  ".join(f"{k} {v:.3f}" for k, v in found["methods"][OURS]["figures"].items())


if __name__ == "__main__":
    sys.exit(main())
