"""What it costs to know how unfamiliar rows are: medians of times of requests that go by turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.command import Server

BATCHES: Final = (1, 64)
"""Rows of a request."""
ROUNDS: Final = 200


@dataclass(frozen=True)
class Ratio:
    """A request's time over that of another.

    Attributes:
        text: what is compared.
        most: what it may be.
    """

    text: str
    most: float


RATIOS: Final = {
    "ood_cost": Ratio('/predict with "ood": true over /predict without', 1.15),
    "ood_alone": Ratio("/ood over /predict of one sample", 1.5),
}
"""By the name of the figure. A prediction of one sample is the nearest to a deterministic network that is served."""


def cost_of_flags(server: Server, model: str, x: NDArray[Any]) -> dict[str, float]:
    """`NAME_B` for every ratio, by rows of a request.

    One client asks, by turns, so that whatever else the machine does slows all alike.

    Args:
        x: (n, columns) raw rows to ask about.
    """
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/predict", {}),
        ("/predict", {"ood": True}),
        ("/predict", {"samples": 1}),
        ("/ood", {}),
    ]
    found: dict[str, float] = {}
    for rows in BATCHES:
        asked = np.resize(x.astype(float), (rows, x.shape[1]))
        times = [[server.seconds(route, model, asked, **more) for route, more in requests] for _ in range(ROUNDS)]
        plain, flagged, single, alone = np.median(times, axis=0)
        found |= {f"ood_cost_{rows}": float(flagged / plain), f"ood_alone_{rows}": float(alone / single)}
    return found
