"""Linear models, whose posterior is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from builder.config import FiberConfig
from builder.fiber import Fibers, walk_fibers
from builder.likelihood import CategoricalLikelihood, GaussianLikelihood, Likelihood
from builder.network import FunctionalNetwork


@dataclass(frozen=True)
class LinearModel:
    """`nn.Linear` on n rows of x (n, D) with targets y and a Gaussian prior."""

    network: FunctionalNetwork
    likelihood: Likelihood
    x: Tensor
    y: Tensor
    precision: Tensor

    def jacobian(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """(m, O, P) float64, the same for every weight vector."""
        x = self.x[rows].double()
        outputs = self.likelihood.outputs
        eye = torch.eye(outputs, dtype=torch.float64)
        weight = torch.einsum("oc,md->mocd", eye, x).reshape(len(x), outputs, -1)
        return torch.cat([weight, eye.expand(len(x), outputs, outputs)], dim=2)

    def hessian(self, theta: Tensor, rows: Tensor | slice = slice(None), up: float = 1.0) -> Tensor:
        """(P, P) float64: `up * sum_rows J^T C J + Lambda` with C written out for each likelihood."""
        jacobian = self.jacobian(rows)
        if isinstance(self.likelihood, GaussianLikelihood):
            curvature = torch.full((1, 1, 1), 1 / self.likelihood.noise_std**2, dtype=torch.float64)
        else:
            p = torch.einsum("mop,p->mo", jacobian, theta.double()).softmax(-1)
            curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        curvature = curvature.expand(len(jacobian), -1, -1)
        data = torch.einsum("mop,moq,mqr->pr", jacobian, curvature, jacobian)
        return up * data + torch.diag(self.precision.double())

    def solution(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """(P,) the MAP of a Gaussian likelihood (ridge regression)."""
        assert isinstance(self.likelihood, GaussianLikelihood)
        right = self.jacobian(rows)[:, 0].T @ self.y[rows].double() / self.likelihood.noise_std**2
        return torch.linalg.solve(self.hessian(right, rows), right).float()

    def walk(self, anchors: Tensor, member: Tensor, config: FiberConfig, **more: Any) -> Fibers:
        """The walk from anchors (A, P) that have seen their members (A, n); `more` as of `walk_fibers`."""
        data = (self.x, self.y, member, self.likelihood, self.precision)
        return walk_fibers(self.network, anchors, *data, config, **more)


def linear_gaussian(
    rows: int = 60, inputs: int = 3, noise_std: float = 0.5, precision: float = 2.0, seed: int = 0
) -> LinearModel:
    """Correlated inputs, so that the posterior's correlations are strong."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator)
    x = x + 1.5 * x[:, :1] + 0.5
    truth = torch.randn(inputs, generator=generator)
    y = x @ truth + 0.3 + noise_std * torch.randn(rows, generator=generator)
    network = FunctionalNetwork(nn.Linear(inputs, 1))
    return LinearModel(network, GaussianLikelihood(noise_std), x, y, torch.full((inputs + 1,), precision))


def linear_classifier(
    rows: int = 80, inputs: int = 2, classes: int = 3, precision: float = 1.0, seed: int = 0
) -> LinearModel:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator) + 0.5
    scores = 2 * x @ torch.randn(inputs, classes, generator=generator)
    y = torch.distributions.Categorical(logits=scores).probs.cumsum(1)
    label = (torch.rand(rows, 1, generator=generator) > y).sum(1).clamp(max=classes - 1)
    network = FunctionalNetwork(nn.Linear(inputs, classes))
    return LinearModel(network, CategoricalLikelihood(classes), x, label, torch.full((network.weights,), precision))


def assert_draws_from(draws: Tensor, mean: Tensor, hessian: Tensor, sigmas: float = 5.0) -> None:
    """Asserts that draws (N, P) have the mean and the covariance of N(mean, hessian^-1).

    Whitened, they are standard normal: N times the mean's square is chi-squared, and an entry of the covariance
    deviates by `1 / sqrt(N)`, by `sqrt(2 / N)` on the diagonal. Bounds are that many standard errors.
    """
    root = torch.linalg.cholesky(hessian)
    white = (draws.double() - mean.double()) @ root
    count, size = white.shape
    assert float((white.mean(0) * count**0.5).abs().max()) < sigmas
    error = (white.T @ white / count - torch.eye(size, dtype=torch.float64)) * count**0.5
    assert float(error.abs().max()) < sigmas * 2**0.5
    assert float((error - error.diagonal().diag()).abs().max()) < sigmas


def line_data(rows: int = 400, noise: float = 0.1) -> tuple[FunctionalNetwork, Tensor, Tensor, Tensor]:
    """y = 2 x and noise, halves of the rows for two anchors."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 1, generator=generator)
    y = 2 * x[:, 0] + noise * torch.randn(rows, generator=generator)
    member = torch.arange(rows)[None] % 2 != torch.arange(2)[:, None]
    return FunctionalNetwork(nn.Linear(1, 1)), x, y, member
