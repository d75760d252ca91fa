"""Rows that are unlike the training rows, and common detectors of such rows beside ours.

Lengths: n training rows, B rows, d columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from benchmarks.data import DataSet, Mask
from benchmarks.quality.predictive import Cost

CLUSTERS: Final = 5
LEAST_CLUSTER: Final = 0.05
"""Share of all rows that a held-out cluster has at least."""
SHIFT: Final = 2.0
"""Standard deviations of the training rows by which a column is moved."""
SHIFTED_SHARE: Final = 0.25
"""Of the columns, that are moved in each row, at least one."""
NEIGHBOURS: Final = 5

Numbers = NDArray[np.float64]


def cluster(data: DataSet) -> Mask:
    """(rows,) the smallest of the five k-means clusters of all rows, z-scored, that has a twentieth of them or more."""
    label = KMeans(CLUSTERS, n_init=10, random_state=0).fit_predict(StandardScaler().fit_transform(data.x))
    sizes = np.bincount(label)
    held: Mask = label == np.where(sizes < LEAST_CLUSTER * len(label), len(label), sizes).argmin()
    return held


def shifted(data: DataSet, split: int) -> Numbers:
    """(B, d) the test rows, in each of which a quarter of the columns, drawn anew, moved up or down by two standard
    deviations."""
    x: Numbers = data.x[data.test[split]].astype(np.float64)
    size = data.x[data.train[split]].std(0)
    rng = np.random.default_rng(split)
    moved = rng.random(x.shape).argsort(1) < max(1, round(SHIFTED_SHARE * x.shape[1]))
    x += np.where(moved, SHIFT * size * rng.choice([-1.0, 1.0], x.shape), 0.0)
    return x


def scores(train: NDArray[np.float32], x: NDArray[np.float32], seed: int) -> dict[str, tuple[Numbers, float]]:
    """By detector how unfamiliar encoded rows x (B, d) are to encoded training rows (n, d), (B,), and the seconds that
    it took to learn and to say."""
    detectors: dict[str, Callable[[], Numbers]] = {
        "isolation_forest": lambda: -IsolationForest(random_state=seed).fit(train).score_samples(x),
        "nearest_neighbours": lambda: NearestNeighbors(n_neighbors=NEIGHBOURS).fit(train).kneighbors(x)[0][:, -1],
    }
    found = {}
    for name, score in detectors.items():
        cost = Cost()
        with cost.clock():
            found[name] = score(), cost
    return {name: (values, cost.seconds) for name, (values, cost) in found.items()}
