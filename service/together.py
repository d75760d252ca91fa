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
from service.model import Asked, Columns, ServedModel, out_of_range

Float32 = NDArray[np.float32]


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
    return run.model.predict(weights, run.x, run.asked)


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
    x = np.concatenate([run.x for run in runs])
    outputs, features = model.outputs(weights, x, any(run.asked.scores for run in runs))
    sound = {scored: model.sound(outputs, scored) for scored in {run.asked.level is None for run in runs}}
    ends = list(accumulate(len(run.x) for run in runs))
    rows = [slice(end - len(run.x), end) for run, end in zip(runs, ends, strict=True)]
    found: list[Columns | InputError | None] = [None] * len(runs)
    alike: dict[Asked, list[int]] = {}
    for i, run in enumerate(runs):
        mine = sound[run.asked.level is None][rows[i]]
        if mine.all():
            alike.setdefault(run.asked, []).append(i)
        else:
            found[i] = out_of_range(int(np.argmin(mine)))
    for asked, members in alike.items():
        x_own, own, looks = x, outputs, features
        if len(members) < len(runs):
            x_own = np.concatenate([runs[i].x for i in members])
            own = np.concatenate([outputs[:, rows[i]] for i in members], axis=1)
            looks = np.concatenate([features[rows[i]] for i in members]) if features is not None else None
        columns = model.columns(weights, x_own, own, looks, asked)
        start = 0
        for i in members:
            end = start + len(runs[i].x)
            # Copies, as a view that is kept for feedback would keep what belongs to the others too.
            found[i] = {name: column[start:end].copy() for name, column in columns.items()}
            start = end
    return [f for f in found if f is not None]
