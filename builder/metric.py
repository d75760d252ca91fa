"""Distances between weight vectors, measured by what the predictions feel of them.

A weight error that no prediction feels hardly counts, and one along a stiff direction counts however small it is;
plain distances in weight space get both wrong. Lengths: A anchors, m vectors, P weights, n rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from builder.curvature import enough_rows, linear_response
from builder.likelihood import Likelihood
from builder.network import FunctionalNetwork
from builder.predictive import sample_outputs

_CURVATURE_ROWS = 512
_DIVERGENCE_ROWS = 128


class WeightMetric(Protocol):
    """Inner products at an anchor, and how differently two weight vectors predict."""

    def inner(self, anchor: int, vectors: Tensor) -> Tensor:
        """(m, m) inner products of vectors (m, P)."""
        ...

    def divergence(self, weights: Tensor, others: Tensor) -> Tensor:
        """(m,) how far weights (m, P) are from others (m, P); 1 is as much as the noise of the data itself."""
        ...


@dataclass(frozen=True)
class EuclideanMetric:
    """Plain distances, for weights that no network is known of. `unit` is the square that counts as 1."""

    unit: float = 1.0

    def inner(self, anchor: int, vectors: Tensor) -> Tensor:
        """`u . v`, the same at every anchor."""
        return vectors @ vectors.T

    def divergence(self, weights: Tensor, others: Tensor) -> Tensor:
        """`norm(u - v)^2 / unit`."""
        return (weights - others).square().sum(-1) / self.unit


@dataclass(frozen=True)
class PredictiveMetric:
    """`u^T H v` at the anchors (A, P), and the divergence of the predictive distributions on some training rows.

    Attributes:
        x: (n, ...) encoded rows; member: (A, n) bool, the rows of each anchor.
        prior_precision: (P,).
    """

    network: FunctionalNetwork
    anchors: Tensor
    x: Tensor
    member: Tensor
    likelihood: Likelihood
    prior_precision: Tensor

    def inner(self, anchor: int, vectors: Tensor) -> Tensor:
        """`u^T H v` with the generalised Gauss-Newton matrix H, taken from some of the anchor's rows."""
        rows = self.member[anchor].nonzero().squeeze(1)
        enough = min(_CURVATURE_ROWS, enough_rows(self.network, self.x))
        some = rows[:: max(1, len(rows) // enough)]
        response = linear_response(
            self.network, self.anchors[anchor], self.x[some], self.likelihood, vectors, len(rows) / len(some)
        )
        return response @ response.T + (vectors * self.prior_precision) @ vectors.T

    def divergence(self, weights: Tensor, others: Tensor) -> Tensor:
        """Twice the KL divergence of the predictive distributions, in nats a row; for Gaussian noise the squared
        difference of the means over the noise variance."""
        x = self.x[:: max(1, len(self.x) // _DIVERGENCE_ROWS)]
        found = []
        for these, those in zip(torch.split(weights, 256), torch.split(others, 256), strict=True):
            f, g = sample_outputs(self.network, these, x), sample_outputs(self.network, those, x)
            found.append(self.likelihood.divergence(f, g).mean(-1))
        return torch.nan_to_num(torch.cat(found), nan=torch.inf)
