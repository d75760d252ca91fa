"""What a worker process of the benchmark does: one split of one set, or of the monitor's set."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration import conformal, regions, unfamiliar
from benchmarks.calibration.cost import cost_of_flags
from benchmarks.calibration.monitored import MONITOR, MONITORED, watch
from benchmarks.command import Server, serving
from benchmarks.data import DataSet, read_set
from benchmarks.figures import auroc, calibration_error, chance_error
from benchmarks.quality.building import Learned, build
from benchmarks.quality.methods import ensemble
from benchmarks.quality.predictive import Classes
from benchmarks.quality.problem import Problem, make_problem
from benchmarks.quality.run import attempt, described
from benchmarks.quality.tuning import Tuned, tune
from benchmarks.served import ALARM_RATES, LEVELS
from builder.evaluation import evaluate
from builder.publication import publish
from model_store.encoding import TableEncoder
from model_store.manifest import TableInput

METHODS: Final = {
    "fiberwalk": "fiberwalk, as served",
    "fiberwalk_empty": "fiberwalk, sets that may be empty",
    "map_tuned": "MAP, out-of-fold temperature",
    "conformal_ensemble": "conformal, deep ensemble of 5",
    "conformal_laplace": "conformal, linearised Laplace, last layer",
    "conformal_quantiles": "conformal, quantile gradient boosting",
    "lac_map": "conformal LAC, MAP",
    "aps_map": "conformal APS, MAP",
    "lac_ensemble": "conformal LAC, deep ensemble of 5",
    "aps_ensemble": "conformal APS, deep ensemble of 5",
    "isolation_forest": "isolation forest",
    "nearest_neighbours": f"distance to the {unfamiliar.NEIGHBOURS}th neighbour",
}
"""What the methods are called in tables, in their order."""

OOD_SETS: Final = ("uci_boston", "uci_concrete", "uci_energy", "uci_wine_red", "uci_yacht")
"""Where unfamiliar rows are looked for; each takes a second build, without a cluster of the rows."""

OURS_EMPTY: Final = "fiberwalk_empty"
"""Our own sets of classes as peers give them out."""
_OURS: Final = "fiberwalk"


def run_split(name: str, split: int, preset: str) -> dict[str, Any]:
    """Figures and seconds by method, of one split's test rows; of the monitor's set what `monitored.watch` finds.

    Raises:
        FiberwalkError: the bundle cannot be published, or a request was refused.
    """
    data = read_set(name)
    problem = make_problem(data, split, preset)
    learned = build(problem)
    if name == MONITORED:
        with _store(learned) as store:
            return {**described(data, problem), "task": MONITOR, **watch(data, split, store, problem.config.name)}
    tuned = tune(problem, learned)
    found = _ours(data, split, problem, learned)
    families: dict[str, Callable[[], dict[str, Found]]] = {
        "conformal": partial(_conformal, problem, tuned),
        "cost": partial(_cost, data, split, problem, learned),
    }
    if not problem.regression:
        families["map"] = partial(_map, problem, tuned)
    if name in OOD_SETS:
        families["shifted"] = partial(_shifted, data, split, problem, learned)
        families["cluster"] = partial(_cluster, data, split, preset)
    peers, failed = attempt(families)
    for method, one in (item for family in peers.values() for item in family.items()):
        found[method] = found[method] + one if method in found else one
    methods = {m: {"figures": f.figures, "seconds": round(f.seconds, 3)} for m, f in found.items()}
    return {**described(data, problem), "methods": methods, "failed": failed}


@dataclass(frozen=True)
class Found:
    """Figures of a method on a split, and the seconds it took to train and, but for ours, to answer."""

    figures: dict[str, float]
    seconds: float = 0.0

    def __add__(self, other: Found) -> Found:
        return Found(self.figures | other.figures, self.seconds + other.seconds)


def _ours(data: DataSet, split: int, problem: Problem, learned: Learned) -> dict[str, Found]:
    """What a server answers for the test rows; of classes also with sets that may be empty, as those of peers."""
    x, name = data.x[data.test[split]], problem.config.name
    with _serving(learned) as server:
        answers = {level: server.ask("/predict", name, x, level=level) for level in LEVELS}
        empty = {}
        if not problem.regression:
            empty = {level: server.ask("/predict", name, x, level=level, empty_sets=True) for level in LEVELS}
        flags = {rate: server.ask("/ood", name, x, false_alarm_rate=rate)["flag"] for rate in ALARM_RATES}
    found = regions.figures(regions.answered(problem, answers), problem.y_test.numpy())
    found |= {f"flagged_{rate:g}": float(np.mean(flag)) for rate, flag in flags.items()}
    if not problem.regression:
        found |= _ece(np.array(answers[LEVELS[0]]["mean"]), problem)
    ours = {_OURS: Found(found, learned.cost.seconds)}
    if empty:
        sets = regions.figures(regions.answered(problem, empty), problem.y_test.numpy())
        ours[OURS_EMPTY] = Found(sets, learned.cost.seconds)
    return ours


def _conformal(problem: Problem, tuned: Tuned) -> dict[str, Found]:
    peers = conformal.regression if problem.regression else conformal.classification
    return {
        method: Found(regions.figures(answer.regions, problem.y_test.numpy()), answer.cost.seconds)
        for method, answer in peers(problem, tuned).items()
    }


def _cost(data: DataSet, split: int, problem: Problem, learned: Learned) -> dict[str, Found]:
    """What flags cost beside a prediction."""
    with _serving(learned) as server:
        return {_OURS: Found(cost_of_flags(server, problem.config.name, data.x[data.test[split]]))}


def _map(problem: Problem, tuned: Tuned) -> dict[str, Found]:
    """The tempered MAP on all training rows."""
    outcome = ensemble.run(problem, tuned, (1,))["map_tuned"]
    assert isinstance(outcome.predictive, Classes)
    p = outcome.predictive.probabilities.double().numpy()
    return {"map_tuned": Found(_ece(p, problem), outcome.cost.seconds)}


def _ece(p: NDArray[np.float64], problem: Problem) -> dict[str, float]:
    """Of class probabilities (B, C) of the test rows, and what so few rows would show of calibrated ones."""
    return {"ece": calibration_error(p, problem.y_test.numpy()), "ece_by_chance": chance_error(p)}


def _shifted(data: DataSet, split: int, problem: Problem, learned: Learned) -> dict[str, Found]:
    """Test rows against the same with shifted columns."""
    return _told_apart("shifted", data.x[data.test[split]], unfamiliar.shifted(data, split), problem, learned)


def _cluster(data: DataSet, split: int, preset: str) -> dict[str, Found]:
    """Test rows against a cluster of rows, of which training has seen none."""
    held = unfamiliar.cluster(data)
    without = replace(data, train=data.train & ~held, test=data.test & ~held)
    problem = make_problem(without, split, preset)
    return _told_apart("cluster", data.x[without.test[split]], data.x[held], problem, build(problem))


def _told_apart(
    kind: str, familiar: NDArray[Any], others: NDArray[Any], problem: Problem, learned: Learned
) -> dict[str, Found]:
    """AUROC of every detector for raw rows of both kinds."""
    x = np.concatenate([familiar, others]).astype(float)
    assert isinstance(problem.dataset.inputs, TableInput)
    encoded = TableEncoder(problem.dataset.inputs).encode_matrix(x)
    with _serving(learned) as server:
        scores = {_OURS: (np.array(server.ask("/ood", problem.config.name, x)["score"]), 0.0)}
    scores |= unfamiliar.scores(problem.x.numpy(), encoded, problem.seed)
    own = len(familiar)
    return {m: Found({f"auroc_{kind}": auroc(s[:own], s[own:])}, seconds) for m, (s, seconds) in scores.items()}


@contextmanager
def _store(learned: Learned) -> Iterator[Path]:
    """A store that holds what a build learned, as `fiberwalk build` publishes it, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="fiberwalk-benchmark-") as folder:
        store = Path(folder) / "models"
        config = learned.trained.config.model_copy(update={"store": store})
        trained = replace(learned.trained, config=config)
        publish(trained, evaluate(trained), [], learned.seconds)
        yield store


@contextmanager
def _serving(learned: Learned) -> Iterator[Server]:
    with _store(learned) as store, serving(store) as server:
        yield server
