"""The network's runs: for one request, or for several whose rows are stacked.

Lengths: S samples, B rows of one request, N rows of all, O outputs.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.errors import InputError
from service.cache import WeightKey
from service.engine import WeightSet
from service.model import Columns, ServedModel, out_of_range

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Asked:
    """What is wanted of the network's outputs.

    Attributes:
        level: of intervals or prediction sets; None where the OOD score alone is wanted.
        quantiles: of a regression's target, wanted too.
        draws: whether what each sample says is wanted too.
        scores: whether the network's OOD score is wanted too.
        empty_sets: whether a prediction set may be empty.
    """

    level: float | None
    quantiles: tuple[float, ...] = ()
    draws: bool = False
    scores: bool = False
    empty_sets: bool = False


@dataclass(frozen=True)
class Run:
    """What one request wants of the network.

    Attributes:
        model: whose network.
        key: of the weights; requests of one key can run together.
        x: encoded rows (B, ...).
        asked: of the outputs.
    """

    model: ServedModel
    key: WeightKey
    x: Float32
    asked: Asked


Steps = Generator[Run, Columns, dict[str, Any]]
"""A request on its way: it yields a run, is sent its columns, and returns the answer's content."""


def run_alone(weights: WeightSet, run: Run) -> Columns:
    """The columns of a request, of B entries each.

    Raises:
        InputError: a row lies so far out that the network's outputs are not finite.
    """
    asked = run.asked
    if asked.level is None:
        return {"epistemic_score": run.model.epistemic_score(weights, run.x)}
    return run.model.predict(weights, run.x, asked.level, asked.quantiles, asked.draws, asked.scores, asked.empty_sets)


def run_together(weights: WeightSet, runs: Sequence[Run]) -> list[Columns | InputError]:
    """The columns of requests for one model and one set of weights, from one pass of all their rows.

    They are those that each would get alone, but for the last bits of the network's outputs: products of matrices of
    another shape are summed in another order.

    Args:
        weights: S weight vectors.
        runs: at least one.

    Returns:
        Of each request its columns, or the error of its own rows, as `run_alone` would raise it.
    """
    model = runs[0].model
    outputs = model.outputs(weights, np.concatenate([run.x for run in runs]))
    finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(outputs), axis=(0, 2))
    ends = list(accumulate(len(run.x) for run in runs))
    rows = [slice(end - len(run.x), end) for run, end in zip(runs, ends, strict=True)]
    found: list[Columns | InputError | None] = [None] * len(runs)
    alike: dict[Asked, list[int]] = {}
    for i, run in enumerate(runs):
        if finite[rows[i]].all():
            alike.setdefault(run.asked, []).append(i)
        else:
            found[i] = out_of_range(int(np.argmin(finite[rows[i]])))
    for asked, members in alike.items():
        whole = len(members) == len(runs)
        own = outputs if whole else np.concatenate([outputs[:, rows[i]] for i in members], axis=1)
        columns = _statistics(model, weights, own, asked)
        start = 0
        for i in members:
            end = start + len(runs[i].x)
            # Copies, as a view that is kept for feedback would keep what belongs to the others too.
            found[i] = {name: column[start:end].copy() for name, column in columns.items()}
            start = end
    return [f for f in found if f is not None]


def _statistics(model: ServedModel, weights: WeightSet, outputs: Float32, asked: Asked) -> Columns:
    if asked.level is None:
        return {"epistemic_score": model.network_score(outputs, weights.members)}
    members = weights.members if asked.scores else None
    return model.statistics(outputs, asked.level, asked.quantiles, asked.draws, members, asked.empty_sets)
