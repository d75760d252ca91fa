"""The monitor behind POST /feedback, on a model that keeps its word and, from one row on, does not.

A model of the synthetic set of 200 training rows is served; the set has 21,800 rows that it has not seen. In each run a
fresh server is told the true targets of 10,000 of them, in an order of the run's own, and then of 2,000 others whose
targets all moved up by one amount: that which halves the coverage of the intervals of level 0.9 over all unseen rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.command import serving
from benchmarks.data import DataSet

MONITORED: Final = "small_regression"
MONITOR: Final = "monitor"
"""The task, in the results, of the runs of this set."""
RUNS: Final = 20
SOUND_ROWS: Final = 10_000
BROKEN_ROWS: Final = 2_000

_LEVEL: Final = 0.9


def watch(data: DataSet, split: int, store: Path, name: str) -> dict[str, Any]:
    """Runs all runs on the model of this name.

    Returns:
        `coverage` and `shifted_coverage` of the level 0.9 over all unseen rows; `runs`, each with `false_alarm`, the
        row of an alarm before the shift, and `rows_until_alarm` after it, None where there was none.

    Raises:
        FiberwalkError: a request was refused.
    """
    unseen = np.flatnonzero(~data.train[split])
    with serving(store) as server:
        interval = np.array(server.ask("/predict", name, data.x[unseen], level=_LEVEL)["interval"])
    apart = interval - data.y[unseen, None]
    amount = halving_shift(apart)
    runs = []
    for run in range(RUNS):
        order = np.random.default_rng([split, run]).permutation(unseen)
        sound, broken = order[:SOUND_ROWS], order[SOUND_ROWS : SOUND_ROWS + BROKEN_ROWS]
        with serving(store) as server:
            false_alarm = server.tell(name, data.x[sound], data.y[sound])["alarm_at_row"]
            alarm = server.tell(name, data.x[broken], data.y[broken] + amount)["alarm_at_row"]
        after = alarm - SOUND_ROWS if alarm is not None and false_alarm is None else None
        runs.append({"false_alarm": false_alarm, "rows_until_alarm": after})
    return {"coverage": covered(apart, 0.0), "shifted_coverage": covered(apart, amount), "runs": runs}


def covered(apart: NDArray[np.float64], amount: float) -> float:
    """Share of rows whose target, moved up by an amount, is in its interval, for intervals (B, 2) less the targets."""
    return float(np.mean((apart[:, 0] <= amount) & (amount <= apart[:, 1])))


def halving_shift(apart: NDArray[np.float64]) -> float:
    """The least amount, up to a thousandth of the way to no coverage, that leaves half of the coverage or less."""
    amounts = np.linspace(0.0, float(apart.max()), 1001)
    half = covered(apart, 0.0) / 2
    return float(next(a for a in amounts if covered(apart, a) <= half))
