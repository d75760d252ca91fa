"""What it costs to ask /predict how unfamiliar rows are, too: medians of the same requests with and without."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.command import Server

BATCHES: Final = (1, 64)
"""Rows of a request."""
PAIRS: Final = 200


def cost_of_flags(server: Server, model: str, x: NDArray[Any]) -> dict[str, float]:
    """`ood_cost_B`: the median time of a request with `"ood": true` over that of one without, by rows of a request.

    One client asks, by turns with and without, so that whatever else the machine does slows both alike.

    Args:
        x: (n, columns) raw rows to ask about.
    """
    found = {}
    for rows in BATCHES:
        asked = np.resize(x.astype(float), (rows, x.shape[1]))
        times = np.array(
            [[server.seconds("/predict", model, asked, ood=ood) for ood in (False, True)] for _ in range(PAIRS)]
        )
        plain, more = np.median(times, axis=0)
        found[f"ood_cost_{rows}"] = float(more / plain)
    return found
