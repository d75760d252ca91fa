"""The experiments: each writes its figures as JSON and its pictures, and prints its tables.

    python -m benchmarks.experiments [NAME ...] [--splits N] [--output FOLDER] [--pictures FOLDER]

Without a name all are run. Each can be stopped at any time: finished splits are in its file and are not run again,
unless the code, the libraries or the machine changed. `python -m benchmarks.experiments.page` renders the files as
docs/experiments.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import builder  # noqa: F401  settles threads and memory before torch is imported
from benchmarks.data import ROOT
from benchmarks.exit import exit_status
from benchmarks.experiments.catalogue import EXPERIMENTS
from benchmarks.experiments.experiment import Experiment
from benchmarks.experiments.page import PICTURES, RESULTS, write_pictures
from benchmarks.results import Results, environment, refuse_changed
from benchmarks.table import render

PRESETS = ("fast", "default", "thorough")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs experiments. Returns the exit status: 2 where one cannot be run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(EXPERIMENTS)} (default: all)")
    parser.add_argument("--splits", type=int, metavar="N", help="only the first N splits of each set")
    parser.add_argument("--preset", choices=PRESETS, default="default", help="of the build that is taken apart")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER", help="for the figures")
    parser.add_argument("--pictures", type=Path, default=PICTURES, metavar="FOLDER")
    options = parser.parse_args(arguments)
    unknown = [n for n in options.names if n not in EXPERIMENTS]
    if unknown:
        parser.error(f"there is no experiment {unknown[0]!r}; there are: {', '.join(EXPERIMENTS)}")
    if options.splits is not None and options.splits < 1:
        parser.error("--splits must be at least 1")
    log = Console(stderr=True, highlight=False)

    def run() -> int:
        for name in options.names or EXPERIMENTS:
            _run(name, EXPERIMENTS[name], options.splits, options.preset, options.output, options.pictures, log)
        return 0

    return exit_status(run, log)


def _run(
    name: str, experiment: Experiment, splits: int | None, preset: str, output: Path, pictures: Path, log: Console
) -> None:
    here = environment(ROOT, preset)
    results = Results(output / f"{name}.json", f"experiments.{name}", here)
    cases = [(s, i) for s, i in experiment.cases if splits is None or i < splits]
    for data_set, split in cases:
        if results.finished(data_set, split):
            continue
        start = time.perf_counter()
        found = experiment.run(data_set, split, preset)
        results.add(data_set, split, {**found, "seconds": round(time.perf_counter() - start, 1)})
        log.print(f"{name}, {data_set} {split}: {time.perf_counter() - start:.0f} s", markup=False)
    refuse_changed(here, environment(ROOT, preset))
    names = dict.fromkeys(s for s, _ in cases)
    report = experiment.report([r for s in names for r in results.current(s) if (s, r["split"]) in cases])
    for table in report.tables:
        render(table.title, table.header, table.rows)
    for finding in report.findings:
        print(finding)
    write_pictures(report, pictures)


if __name__ == "__main__":
    sys.exit(main())
