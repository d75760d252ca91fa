"""The decoder: from latents to weight vectors, with a last layer that is linear in few columns an anchor.

For anchor a, `theta = mean_a + basis_a @ coordinates(z)`: features of the latent's direction turn into `rank`
coordinates, and the head `[mean_a; basis_a]` turns these into P weights. The latent's length is its position on a
trajectory. Drift scales grow exponentially with the position, so coordinates are the product of the scale at that
length and of a table of the features, linear in between the trajectory's nodes: the decoder then is as exact close to
the anchor as far away from it. Serving lives from the linear head: whatever is linear in the weights can be computed
once per column instead of once per sample.

Lengths: S samples, M points, A anchors, k latent dimensions, P weights.
"""

from __future__ import annotations

import itertools
import math
from typing import Final

import torch
from torch import Tensor, nn

NEAREST: Final = 1e-12
"""Square of the least length that a latent is taken to have."""
FARTHEST: Final = 1.5
"""Position beyond which the drift scale grows no more."""


class WeightDecoder(nn.Module):
    """Decoders of all anchors as one module.

    Args:
        anchors: A.
        dimension: k.
        hidden: width of the hidden layers.
        rank: columns of an anchor's basis.
        weights: P.
        layers: number of hidden layers.
        growth: the drift scale at position u is expm1(growth * u) / expm1(growth); 0 means u itself.
        knots: nodes of a trajectory after the anchor, at lengths 1/knots, 2/knots, ..., 1.
    """

    head: Tensor

    def __init__(
        self,
        anchors: int,
        dimension: int,
        hidden: int,
        rank: int,
        weights: int,
        layers: int = 2,
        growth: float = 0.0,
        knots: int = 1,
    ) -> None:
        super().__init__()
        self.anchors, self.dimension, self.rank, self.growth, self.knots = anchors, dimension, rank, growth, knots
        self.arguments = {
            "anchors": anchors,
            "dimension": dimension,
            "hidden": hidden,
            "rank": rank,
            "weights": weights,
            "layers": layers,
            "growth": growth,
            "knots": knots,
        }
        self.matrices = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise([dimension, *[hidden] * layers]):
            self.matrices.append(nn.Parameter(torch.randn(anchors, fan_in, fan_out) / math.sqrt(fan_in)))
            self.biases.append(nn.Parameter(torch.zeros(anchors, 1, fan_out)))
        self.table = nn.Parameter(torch.zeros(anchors, knots * (dimension + hidden), rank))
        self.register_buffer("head", torch.zeros(anchors * (1 + rank), weights))

    def set_head(self, means: Tensor, bases: Tensor) -> None:
        """Sets the linear last layer from means (A, P) and bases (A, rank, P)."""
        self.head = torch.cat([means[:, None], bases], dim=1).reshape(self.anchors * (1 + self.rank), -1)

    def features(self, latents: Tensor) -> Tensor:
        """(A, M, k + hidden) features of the direction of latents (A, M, k): itself and the last hidden layer."""
        direction = latents / _length(latents)
        h = direction
        for w, b in zip(self.matrices, self.biases, strict=True):
            h = torch.tanh(torch.baddbmm(b, h, w))
        return torch.cat([direction, h], dim=-1)

    def coordinates(self, latents: Tensor) -> Tensor:
        """Coordinates (A, M, rank) of latents (A, M, k), row a decoded by anchor a."""
        length = latents.square().sum(-1, keepdim=True) / _length(latents)  # zero at the anchor, which it decodes to
        return self.table_features(latents) @ self.table * scale_at(length, self.growth)

    def table_features(self, latents: Tensor) -> Tensor:
        """(A, M, knots * (k + hidden)): what the table is linear in, the features times the hats of the length."""
        return (self.hats(latents).unsqueeze(-1) * self.features(latents).unsqueeze(-2)).flatten(-2)

    def hats(self, latents: Tensor) -> Tensor:
        """(A, M, knots): piecewise linear functions of the length of latents (A, M, k), each one at its own knot.

        Below the first knot and beyond the last they are constant.
        """
        knot = torch.arange(1, self.knots + 1, dtype=latents.dtype, device=latents.device)
        place = (_length(latents) * self.knots).clamp(1.0, float(self.knots))
        return (1 - (place - knot).abs()).clamp(min=0)

    def forward(self, latents: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Args:
            latents: (S, k).
            anchors: (S,) int64, which anchor each belongs to.

        Returns:
            coefficients (S, A*(1+rank)) of the head, and weights (S, P) = coefficients @ head.
        """
        every = self.coordinates(latents.unsqueeze(0).expand(self.anchors, -1, -1))
        chosen = nn.functional.one_hot(anchors, self.anchors).to(latents.dtype).T.unsqueeze(-1)
        ones = torch.ones_like(every[..., :1])
        masked = torch.cat([ones, every], dim=-1) * chosen
        coefficients = masked.transpose(0, 1).reshape(latents.shape[0], self.anchors * (1 + self.rank))
        return coefficients, coefficients @ self.head


def growth_of(unit: Tensor) -> float:
    """log(growth) * T of drift scales (T+1,) `unit_t = (g^t - 1) / (g^T - 1)`; 0 for even steps."""
    steps = len(unit) - 1
    if steps < 2:
        return 0.0
    # unit_1 / (unit_2 - unit_1) = 1 / g
    g = float((unit[2] - unit[1]) / unit[1])
    return steps * math.log(g) if g > 1 + 1e-6 else 0.0


def scale_at(position: Tensor, growth: float) -> Tensor:
    """The drift scale at positions on a trajectory, in units of that at its end, position 1."""
    return torch.expm1(growth * position.clamp(max=FARTHEST)) / math.expm1(growth) if growth else position


def _length(latents: Tensor) -> Tensor:
    """(..., 1) lengths, not quite zero at the anchor, so that directions and gradients stay finite there."""
    return latents.square().sum(-1, keepdim=True).clamp(min=NEAREST).sqrt()
