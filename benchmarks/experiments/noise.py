"""What it is worth to learn the size of the noise, or the logarithm of a target above zero: NLL, and intervals of low
and of high predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import figures
from benchmarks.data import DataSet, read_set
from benchmarks.experiments.experiment import Experiment, Report, Table, apart, by_set, heading
from benchmarks.results import Run
from benchmarks.served import built_and_served
from benchmarks.table import estimate

SETS = ("uci_energy", "uci_concrete", "uci_wine_red", "uci_yacht", "uci_boston")
SPLITS = 2
EVEN, LEARNED, LOGARITHM = "even", "learned", "learned, of the logarithm"
_LEARNED = ["--set", "calibration.noise=learned"]
KINDS: dict[str, list[str]] = {EVEN: [], LEARNED: _LEARNED, LOGARITHM: [*_LEARNED, "--log-target"]}
THIRDS = ("lowest", "middling", "highest")
LEVEL = 0.9

Float64 = NDArray[np.float64]


def run(name: str, split: int, preset: str) -> dict[str, Any]:
    """Figures of the served answers for the test rows, by kind of noise."""
    data = read_set(name)
    return {kind: _of(data, split, preset, options) for kind, options in KINDS.items()}


def _of(data: DataSet, split: int, preset: str, options: Sequence[str]) -> dict[str, Any]:
    x, y = data.x[data.test[split]], data.y[data.test[split]].astype(np.float64)
    with built_and_served(data, split, preset, options) as (server, name, _):
        described = server.describe(name)
        answer = server.ask("/predict", name, x, level=LEVEL)
    unseen = next(m for m in described["metrics"] if m["split"] == "out_of_fold" and m["predictor"] == "posterior")
    return {"unseen": unseen["values"]["nll"], **judge(answer, y)}


def judge(answer: dict[str, Any], y: Float64) -> dict[str, Any]:
    """Figures of an answer of `/predict` for targets (n,); thirds are those of the predicted mean."""
    mean, interval = np.array(answer["mean"]), np.array(answer["interval"])
    if "log_mean" in answer:
        of_log = figures.gaussian_nll(np.array(answer["log_mean"]), np.array(answer["log_variance"]), np.log(y))
        nll = of_log + float(np.log(y).mean())  # d log y / dy is 1 / y
    else:
        nll = figures.gaussian_nll(mean, np.array(answer["variance"]), y)
    thirds = np.array_split(mean.argsort(kind="stable"), len(THIRDS))
    return {
        "nll": nll,
        "rmse": figures.rmse(mean, y),
        "coverage": figures.coverage(interval, y),
        "thirds": [figures.coverage(interval[rows], y[rows]) for rows in thirds],
        "widths": [float(np.diff(interval[rows]).mean()) for rows in thirds],
        "below_zero": float((interval[:, 0] < 0).mean()),
    }


def report(runs: Sequence[Run]) -> Report:
    """A table of all sets."""
    rows, findings = [], []
    for name, those in by_set(runs).items():
        for kind in KINDS:
            each = [r[kind] for r in those]
            thirds = [f"{estimate([f['thirds'][i] for f in each]).mean:.0%}" for i in range(len(THIRDS))]
            widths = [f"{estimate([f['widths'][i] for f in each]).mean:.3g}" for i in range(len(THIRDS))]
            rows.append(
                [
                    f"{heading(name, those)}, {kind}",
                    *(estimate([f[figure] for f in each]).text() for figure in ("unseen", "nll", "rmse")),
                    f"{estimate([f['coverage'] for f in each]).mean:.0%}",
                    " / ".join(thirds),
                    " / ".join(widths),
                    f"{estimate([f['below_zero'] for f in each]).mean:.0%}",
                ]
            )
        even, learned, of_log = ([r[kind] for r in those] for kind in KINDS)
        findings.append(
            f"{name}: learned noise changes test NLL by {_apart(learned, even)} nats and that of unseen training rows "
            f"by {_apart(learned, even, 'unseen')}; of the logarithm, by {_apart(of_log, even)} and "
            f"{_apart(of_log, even, 'unseen')}."
        )
    header = [
        "set, noise",
        "unseen NLL",
        "test NLL",
        "test RMSE",
        "coverage",
        "by thirds",
        "widths by thirds",
    ]
    title = f"Intervals of level {LEVEL:.0%}; thirds of the test rows by predicted mean, from the lowest"
    return Report([Table(title, [*header, "reach below zero"], rows)], findings=findings)


def _apart(those: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], figure: str = "nll") -> str:
    return apart([f[figure] for f in those], [f[figure] for f in others])


EXPERIMENT = Experiment(
    title="The size of the noise",
    about=(
        "`fiberwalk build` on the training rows, served, and asked for the test rows: with one noise level for all, as "
        "by default; with a size that is learned of the inputs where unseen rows tell it (`calibration.noise`); and "
        "with that of the logarithm of the target (`--log-target`), with which error bars grow with the "
        "prediction. Unseen NLL is what the build itself says of training rows, each predicted by networks that were "
        "not trained on it."
    ),
    cases=[(name, split) for split in range(SPLITS) for name in SETS],
    run=run,
    report=report,
)
