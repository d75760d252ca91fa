"""The fidelity benchmark: how close each method's posterior is to that of Hamiltonian Monte Carlo.

    python -m benchmarks.fidelity [--sets NAME ...] [--seeds N] [--output FILE.json]

Every method gets the same network, noise, prior and rows. It can be stopped at any time: finished seeds are in the
output file and are not run again, unless the code, the libraries or the machine changed; chains are kept in
`.fiberwalk`. Prints tables and the goal; `python -m benchmarks.fidelity.page` renders the file as docs/fidelity.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

import builder  # noqa: F401  settles threads and memory before torch is imported
from benchmarks.data import ROOT, check_available
from benchmarks.exit import exit_status
from benchmarks.fidelity.cases import CASES
from benchmarks.fidelity.run import prepare, run_seed
from benchmarks.fidelity.summary import judge, summarize, tables
from benchmarks.quality.tables import render_goals
from benchmarks.results import Results, environment, refuse_changed
from benchmarks.table import render
from builder.work import WorkFolder

OUTPUT: Final = ROOT / "benchmarks" / "results" / "fidelity.json"
WORK: Final = ROOT / ".fiberwalk" / "fidelity"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns the exit status: 1 where chains have not converged, 2 where it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="anchors and draws anew, so many times")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    log = Console(stderr=True, highlight=False)
    return exit_status(lambda: _run(options.sets, options.seeds, options.output, log), log)


def _run(names: Sequence[str], seeds: int, output: Path, log: Console) -> int:
    for name in names:
        check_available(CASES[name].data)
    here = environment(ROOT, "default")
    results = Results(output, "fidelity", here)
    for name in names:
        missing = [s for s in range(seeds) if not results.finished(name, s)]
        if not missing:
            continue
        comparison = prepare(CASES[name], WorkFolder(WORK / name))
        for seed in missing:
            found = run_seed(comparison, seed)
            refuse_changed(here, environment(ROOT, "default"))
            results.add(name, seed, found)
            shown = [f"{m} {r['test']['tv']:.3f}" for m, r in found["methods"].items()]
            log.print(f"{name} {seed}:", "  ".join(shown), markup=False, soft_wrap=True)
    each = [summarize(n, [r for r in results.current(n) if r["split"] < seeds]) for n in CASES]
    summary = [s for s in each if s is not None]
    results.save(summary)
    for table in tables(summary):
        render(table.title, table.header, table.rows)
    render_goals(judge(summary))
    log.print(f"Written to {output}.", markup=False, soft_wrap=True)
    bad = [s["set"] for s in summary if not s["reference"]["converged"]]
    if bad:
        log.print("HMC's chains have not converged, so that distances from it mean little:", ", ".join(bad))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
