"""Scores of how unfamiliar images look: those of a served build, and those of the field from one network.

Lengths: n training images, B images, d features.
"""

from __future__ import annotations

from typing import Final

import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn import functional as F

from benchmarks.quality.problem import Problem
from builder.features import features_of
from builder.trained import Trained
from builder.unfamiliar import judged

_NEIGHBOURS: Final = 50
"""As Sun et al. and OpenOOD have it for sets of this kind."""

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
    probability (Hendrycks and Gimpel 2017), the energy (Liu et al. 2020), and the distance from the 50th nearest
    training image in normalised features (Sun et al. 2022)."""
    found = {
        "max_probability": -outputs.softmax(-1).max(-1).values,
        "energy": -outputs.logsumexp(-1),
    }
    train, asked = (features_of(problem.network, theta, x) for x in (problem.x, problem.x_test))
    if train is not None and asked is not None:
        neighbours = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(train)))
        neighbours.fit(F.normalize(train, dim=1).cpu().numpy())
        distance = neighbours.kneighbors(F.normalize(asked, dim=1).cpu().numpy())[0][:, -1]
        found["nearest_neighbours"] = torch.from_numpy(distance)
    return found
