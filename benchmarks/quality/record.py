"""The posterior's quality on two small sets, as it was when it was last recorded: what `make test` holds changes to.

    python -m benchmarks.quality.record [--seeds N]

builds both sets with N seeds and writes `record.json` anew: mean and standard deviation of the test NLL over the seeds.
Do so after a change that makes it better, and say in the commit by how much.

- `gap`: Snelson and Ghahramani's 1-D set as the demo ships it, tested on the rows in the middle, which training lacks:
  a network alone is sure there and wrong.
- `diabetes`: scikit-learn's, 442 rows of 10 columns, tested on every fifth row.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
from sklearn.datasets import load_diabetes

import builder  # noqa: F401  settles threads and memory before torch is imported
from benchmarks.data import ROOT, DataSet
from benchmarks.quality.building import build
from benchmarks.quality.methods.fiberwalk import ablated
from benchmarks.quality.predictive import figures
from benchmarks.quality.problem import make_problem
from benchmarks.quality.tuning import tune
from benchmarks.results import revision

FILE: Final = Path(__file__).with_name("record.json")
SETS: Final = ("gap", "diabetes")
TEST_SEED: Final = 0
"""What the test builds with; the record is of it and the seeds after it."""

_QUICK: Final[dict[str, Any]] = {
    "map": {"steps": 600, "prior_precision": [3.0, 30.0]},
    "fiber": {"trajectories": 8, "refinement": 15},
    "autoencoder": {"steps": 100},
}
_GAP: Final = (3.5, 4.5)
_DEVIATIONS: Final = 3.0
_LEAST_DEVIATION: Final = 0.003
"""Nats by which builds differ from machine to machine, where seeds hardly matter."""


def measure(name: str, seed: int) -> dict[str, float]:
    """Test NLL of a quick build, in each way that `benchmarks.quality.methods.fiberwalk` has."""
    x, y, test = _table(name)
    repeated = np.tile(test, (seed + 1, 1))
    problem = make_problem(DataSet(name, "regression", x, y, ~repeated, repeated), seed, **_QUICK)
    learned = build(problem)
    found = ablated(problem, learned.trained, learned.cost, tune(problem, learned))
    return {way: figures(o.predictive, problem.y_test, problem.scale)["nll"] for way, o in found.items()}


def read() -> dict[str, dict[str, float]]:
    """The recorded `mean`, `std` and `seeds` of each set."""
    sets: dict[str, dict[str, float]] = json.loads(FILE.read_text())["sets"]
    return sets


def limit(known: dict[str, float]) -> float:
    """The NLL that one more build stays below but for one in some hundreds: three standard deviations of the
    difference between a seed's NLL and the mean of the recorded ones."""
    return known["mean"] + _DEVIATIONS * max(known["std"], _LEAST_DEVIATION) * math.sqrt(1 + 1 / known["seeds"])


def _table(name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Inputs (n, d), targets (n,) and which rows are for the test (n,)."""
    if name == "diabetes":
        x, y = load_diabetes(return_X_y=True)
        return x, y, np.arange(len(y)) % 5 == 0
    rows = np.loadtxt(str(files("fiberwalk.demo") / "snelson.csv"), delimiter=",", skiprows=1)
    return rows[:, :1], rows[:, 1], (rows[:, 0] > _GAP[0]) & (rows[:, 0] < _GAP[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes the record. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.record", description=__doc__)
    parser.add_argument("--seeds", type=int, default=12, metavar="N", help="builds of each set (default 12)")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("--seeds must be at least 2")
    sets = {}
    for name in SETS:
        found = []
        for seed in range(TEST_SEED, TEST_SEED + options.seeds):
            each = measure(name, seed)
            found.append(each["fiberwalk_many"])
            print(f"{name} {seed}: " + "  ".join(f"{way} {nll:.4f}" for way, nll in each.items()), flush=True)
        sets[name] = {"mean": float(np.mean(found)), "std": float(np.std(found, ddof=1)), "seeds": options.seeds}
        print(f"{name}: {sets[name]['mean']:.4f}, standard deviation {sets[name]['std']:.4f}", flush=True)
    FILE.write_text(json.dumps({"commit": revision(ROOT), "sets": sets}, indent=1) + "\n")
    print(f"Written to {FILE}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
