"""The test rows that were predicted worst, as a section of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from builder.words import escape, number, table
from model_store.logarithm import exponential
from model_store.manifest import ClassificationTarget, Target

Array = NDArray[Any]
_SHOWN: Final = 10
_LEAST_PROBABILITY: Final = 1e-12


def worst_rows(target: Target, rows: Array, predictions: Mapping[str, Array]) -> str:
    """The rows with the largest loss, in Markdown; nothing where there is no test row.

    Args:
        target: of the model.
        rows: (B,) numbers of the test rows in the data.
        predictions: as `ReportData.predictions`; the loss, in nats, is that of the Gaussian of mean and std, or of the
            true class's probability.
    """
    if not len(rows):
        return ""
    y = predictions["y"]
    if isinstance(target, ClassificationTarget):
        p = predictions["probabilities"].astype(np.float64)
        true, said = p[np.arange(len(y)), y], p.argmax(axis=1)
        loss = -np.log(np.maximum(true, _LEAST_PROBABILITY))
        head = ["row", "class", "its probability", "likeliest class", "its probability", "loss"]
        names = [escape(str(c)) for c in target.classes]
        cells = [[names[y[i]], f"{true[i]:.3g}", names[said[i]], f"{p[i, said[i]]:.3g}"] for i in range(len(y))]
    else:
        mean, std = predictions["mean"], predictions["std"]
        loss = 0.5 * ((y - mean) / std) ** 2 + np.log(std * math.sqrt(2 * math.pi))
        head = ["row", "target", "mean", "standard deviation", "loss"]
        if target.log:
            head[2:] = ["median", "standard deviation of the logarithm", "loss of the logarithm"]
            y, mean = exponential(y), exponential(mean)
        cells = [[number(v, 5) for v in row] for row in zip(y, mean, std, strict=True)]
    worst = np.argsort(-loss, kind="stable")[:_SHOWN]
    lines = [[f"{rows[i]:,}", *cells[i], f"{loss[i]:.3g}"] for i in worst]
    about = (
        "The test rows with the largest loss (nats), which are worth a look: an error in the data, or a place where "
        "the model is too sure. Rows are counted from 0 as they come in the data, without those that were left out."
    )
    return f"## Rows predicted worst\n\n{about}\n\n{table(head, lines)}\n"
