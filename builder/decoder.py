"""The decoder: from latents to weight vectors, with a last layer that is linear in few columns an anchor.

For anchor a, `theta = mean_a + basis_a @ coordinates(z)`: a small network turns a latent into `rank` coordinates, and
the head `[mean_a; basis_a]` turns these into P weights. The latent's length is its position on a trajectory, and
drift scales grow exponentially with the position, so the network sees direction and length apart and its output is
multiplied by the scale at that length: it then is as exact close to the anchor as far away from it. Serving lives
from that: whatever is linear in the weights can be computed once per column instead of once per sample.

Lengths: S samples, M points, A anchors, k latent dimensions, P weights.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn


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
        knots: nodes of a trajectory. Beside the network stands a table, linear in the latent's direction and piecewise
            linear in its length, so that as many trajectories as latent dimensions are decoded exactly.
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
        sizes = [dimension + 1, *[hidden] * layers, rank]
        self.matrices = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            self.matrices.append(nn.Parameter(torch.randn(anchors, fan_in, fan_out) / math.sqrt(fan_in)))
            self.biases.append(nn.Parameter(torch.zeros(anchors, 1, fan_out)))
        self.table = nn.Parameter(torch.zeros(anchors, dimension * knots, rank))
        self.register_buffer("head", torch.zeros(anchors * (1 + rank), weights))

    def set_head(self, means: Tensor, bases: Tensor) -> None:
        """Sets the linear last layer from means (A, P) and bases (A, rank, P)."""
        self.head = torch.cat([means[:, None], bases], dim=1).reshape(self.anchors * (1 + self.rank), -1)

    def coordinates(self, latents: Tensor) -> Tensor:
        """Coordinates (A, M, rank) of latents (A, M, k), row a decoded by anchor a."""
        # The least length keeps direction and gradient finite at the anchor itself. A clamp, since the ONNX exporter
        # drops the addition of a constant that small.
        squared = latents.square().sum(-1, keepdim=True)
        length = squared.clamp(min=1e-12).sqrt()
        h = torch.cat([latents / length, length], dim=-1)
        last = len(self.matrices) - 1
        for i, (w, b) in enumerate(zip(self.matrices, self.biases, strict=True)):
            h = torch.baddbmm(b, h, w)
            if i < last:
                h = torch.tanh(h)
        h = h + self.table_features(latents) @ self.table
        length = squared / length  # exactly zero there, so that the anchor decodes to its own weights
        if self.growth:
            length = torch.expm1(self.growth * length.clamp(max=1.5)) / math.expm1(self.growth)
        return h * length

    def table_features(self, latents: Tensor) -> Tensor:
        """(A, M, k*knots): the direction of latents (A, M, k) times piecewise linear functions of their length."""
        length = latents.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
        knot = torch.arange(1, self.knots + 1, dtype=latents.dtype, device=latents.device)
        # Below the first knot and beyond the last the table is constant.
        place = (length * self.knots).clamp(1.0, float(self.knots))
        hats = (1 - (place - knot).abs()).clamp(min=0)
        return ((latents / length).unsqueeze(-1) * hats.unsqueeze(-2)).flatten(-2)

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
