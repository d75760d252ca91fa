"""Scores of how unfamiliar images look: those of a served build, and those of the field from one network.

Lengths: n training images, B images, d features.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn import functional as F

from benchmarks.quality.problem import Problem
from builder.features import features_of
from builder.trained import Trained
from builder.unfamiliar import judged
from model_store.detection import ClassMahalanobis, Scaler

NEIGHBOURS: Final = {"nearest_neighbours": 50, "nearest_neighbours_5": 5, "nearest_neighbours_1": 1}
"""Which neighbour's distance scores: the 50th is what Sun et al. and OpenOOD have for all rows of sets of this kind; of
fewer rows a nearer one is better."""

SERVED: Final = "/ood"
P_VALUE: Final = "p_value"
"""Of `SERVED`, no score of its own."""


def of_build(problem: Problem, trained: Trained) -> dict[str, Tensor]:
    """What `/ood` says of all rows to answer, (B,): `SERVED`, each detector alone, and the p-value."""
    found = judged(trained, problem.x_test)
    scores = {SERVED: found.score, P_VALUE: found.p_value}
    for name, (score, _) in found.detectors.items():
        scores[name] = score
    return {name: torch.from_numpy(s) for name, s in scores.items()}


def of_network(problem: Problem, theta: Tensor, outputs: Tensor) -> dict[str, Tensor]:
    """Scores (B,) of one network with weights theta (P,) and outputs (B, C) on all rows to answer: the negative maximum
    probability (Hendrycks and Gimpel 2017), the energy (Liu et al. 2020), the distance from a near training image in
    normalised features (Sun et al. 2022), and the Mahalanobis distance from the nearest class (Lee et al. 2018)."""
    found = {
        "max_probability": -outputs.softmax(-1).max(-1).values,
        "energy": -outputs.logsumexp(-1),
    }
    train, asked = (features_of(problem.network, theta, x) for x in (problem.x, problem.x_test))
    if train is not None and asked is not None:
        neighbours = NearestNeighbors(n_neighbors=min(max(NEIGHBOURS.values()), len(train)))
        neighbours.fit(F.normalize(train, dim=1).cpu().numpy())
        distances = torch.from_numpy(neighbours.kneighbors(F.normalize(asked, dim=1).cpu().numpy())[0])
        found |= {name: distances[:, min(k, len(train)) - 1] for name, k in NEIGHBOURS.items()}
        features = [f.float().cpu().numpy() for f in (train, asked)]
        scaler = Scaler.fit(features[0], np.ones(features[0].shape[1], dtype=bool))
        classes = ClassMahalanobis.fit(scaler(features[0]), problem.y.cpu().numpy())
        found["mahalanobis"] = torch.from_numpy(classes.scores(scaler(features[1])))
    return found
