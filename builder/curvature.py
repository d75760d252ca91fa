"""Curvature of the posterior at an anchor, and draws from the Gaussian it implies.

With J~ the network's Jacobian scaled by the root of the likelihood's curvature, the generalised Gauss-Newton matrix
is `H = J~^T J~ + Lambda`, Lambda the prior precision. Draws from N(0, H^-1) are made by perturbation, `H d = J~^T z +
Lambda delta` with z ~ N(0, I) and delta from the prior, which also yields the perturbed objective whose minimum each
draw is (randomise-then-optimise: Bardsley et al. 2014; Papandreou and Yuille 2010). Where there are fewer scaled rows
R than weights P the same draw is made by Matheron's rule in R dimensions, so cost does not grow with P^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacrev, jvp, vjp, vmap

from builder.likelihood import Likelihood
from builder.network import FunctionalNetwork

_JACOBIAN_ENTRIES = 2**26
"""Most entries of a Jacobian held at once (512 MB in float64)."""
_BLOCK = 512
"""Columns of a product of a matrix with itself that are taken at once."""
_STEEP, _PRECONDITIONER_ENTRIES = 256, {"cpu": 2**24, "cuda": 2**28}
"""Most directions of a preconditioner, and most entries of their basis (64 MB, on a GPU 1 GB)."""
_FEW_JACOBIANS, _PRODUCTS = 16, 15
"""Rows whose Jacobians must fit; where they do not, so many products with the curvature stand in for it."""
_FEW_ROWS, _MANY_ROWS, _ROW_OPERATIONS = 256, 2048, 2**29
"""Rows that a largest eigenvalue is taken from: as many as so many operations allow, within these bounds."""
_SETTLED = 0.005
"""Change of its estimate, as a share of it, that ends the iteration."""


@dataclass(frozen=True)
class PosteriorDraws:
    """Draws from the Gaussian approximation at one anchor, with the perturbations that lead to them.

    Attributes:
        direction: (N, P) draws d_i ~ N(0, H^-1).
        prior: (N, P) the prior's part delta_i ~ N(0, 1 / prior precision).
        scores: (N, m, O) the data's part e_i in the network's outputs, cov = curvature of the likelihood.
        rows: (m,) the rows that the scores belong to.
    """

    direction: Tensor
    prior: Tensor
    scores: Tensor
    rows: Tensor


def scaled_jacobian(network: FunctionalNetwork, theta: Tensor, x: Tensor, likelihood: Likelihood) -> Tensor:
    """J~ (B*O, P): the Jacobian of the outputs, each row's block multiplied by its root curvature."""

    def outputs(weights: Tensor, row: Tensor) -> Tensor:
        return network(weights, row.unsqueeze(0))[0]

    def block(row: Tensor) -> Tensor:
        jacobian: Tensor = jacrev(outputs)(theta, row)
        return likelihood.root_curvature(outputs(theta, row)).T @ jacobian

    out: Tensor = vmap(block)(x)
    return out.reshape(-1, theta.shape[0])


def draw_posterior(
    network: FunctionalNetwork,
    theta: Tensor,
    x: Tensor,
    rows: Tensor,
    likelihood: Likelihood,
    prior_precision: Tensor,
    draws: int,
    most_rows: int,
    generator: torch.Generator,
    wanted: slice = slice(None),
) -> PosteriorDraws:
    """Draws from N(0, H^-1) at one anchor.

    Args:
        theta: (P,) the anchor.
        x: (n, ...) all encoded inputs.
        rows: (n_a,) indices of the rows that the anchor was trained on.
        prior_precision: (P,).
        draws: N.
        most_rows: rows times outputs that H is taken from at most; of more, a random part stands for all, weighted up.
        generator: a CPU generator, so that a build does not depend on the device.
        wanted: the draws that are returned. The generator moves on as for all of them.
    """
    weights, device = theta.shape[0], theta.device
    limit = max(1, min(most_rows // likelihood.outputs, rows.numel()))
    per_chunk = max(1, _JACOBIAN_ENTRIES // (weights * likelihood.outputs))
    dense = limit * likelihood.outputs > weights and weights <= 4096
    products = not dense and per_chunk < min(limit, _FEW_JACOBIANS)
    if not dense and not products:
        limit = min(limit, per_chunk)
    chosen = rows
    if limit < rows.numel():
        chosen = rows[torch.randperm(rows.numel(), generator=generator)[:limit].to(rows.device)].sort().values
    up = (rows.numel() / chosen.numel()) ** 0.5

    noise = torch.randn(draws, chosen.numel(), likelihood.outputs, generator=generator).to(device)
    prior = torch.randn(draws, weights, generator=generator).to(device) / prior_precision.sqrt()
    if not range(draws)[wanted]:
        return PosteriorDraws(prior[:0], prior[:0], noise[:0], chosen)
    if dense:
        direction = _solve_in_weights(
            network, theta, x[chosen], likelihood, prior_precision, noise, prior, up, per_chunk
        )
    elif products:
        # Each draw costs as much as many gradients: others' are left out.
        asked = range(draws)[wanted]
        direction = torch.zeros_like(prior)
        direction[wanted] = _solve_by_products(
            network, theta, x[chosen], likelihood, prior_precision, noise[asked], prior[asked], up
        )
    else:
        jacobian = scaled_jacobian(network, theta, x[chosen], likelihood) * up
        direction = _solve_in_rows(jacobian, prior_precision, noise.flatten(1), prior)
    with torch.no_grad():
        root = likelihood.root_curvature(network(theta, x[chosen])) * up
    scores = torch.einsum("moz,nmz->nmo", root, noise)
    return PosteriorDraws(direction[wanted], prior[wanted], scores[wanted], chosen)


def _solve_in_weights(
    network: FunctionalNetwork,
    theta: Tensor,
    x: Tensor,
    likelihood: Likelihood,
    prior_precision: Tensor,
    noise: Tensor,
    prior: Tensor,
    up: float,
    per_chunk: int,
) -> Tensor:
    # Float64: the condition number of H is beyond float32 for well-fitted networks.
    hessian = torch.diag(prior_precision).double()
    right = (prior_precision * prior).double()
    for at in range(0, x.shape[0], min(per_chunk, 4096)):
        part = slice(at, at + min(per_chunk, 4096))
        jacobian = scaled_jacobian(network, theta, x[part], likelihood).double() * up
        _add_lower_gram(hessian, jacobian.T)
        right += noise[:, part].flatten(1).double() @ jacobian
    return torch.cholesky_solve(right.T, _cholesky(hessian)).T.to(theta.dtype).contiguous()


def _solve_in_rows(jacobian: Tensor, prior_precision: Tensor, noise: Tensor, prior: Tensor) -> Tensor:
    # In units of the prior, and in float64: where the noise is small the gram's entries are far beyond its identity.
    width = prior_precision.double().rsqrt()
    scaled = jacobian.double() * width
    gram = torch.eye(len(scaled), dtype=scaled.dtype, device=scaled.device)
    _add_lower_gram(gram, scaled)
    residual = noise.double() - (prior.double() / width) @ scaled.T
    solved = torch.cholesky_solve(residual.T, _cholesky(gram)).T
    return (prior.double() + solved @ scaled * width).to(jacobian.dtype)


def _solve_by_products(
    network: FunctionalNetwork,
    theta: Tensor,
    x: Tensor,
    likelihood: Likelihood,
    prior_precision: Tensor,
    noise: Tensor,
    prior: Tensor,
    up: float,
) -> Tensor:
    """Conjugate gradients in units of the prior, from the prior's own draws on: the steepest directions, which
    predictions feel most, come right first. No matrix is held, however many weights and rows there are."""

    def outputs(weights: Tensor) -> Tensor:
        return network(weights, x)

    width = prior_precision.rsqrt()
    there = vjp(outputs, theta)
    root, pull = likelihood.root_curvature(there[0].detach()) * up, there[1]

    def forward(v: Tensor) -> Tensor:
        return torch.einsum("boz,bo->bz", root, jvp(outputs, (theta,), (width * v,))[1])

    def backward(z: Tensor) -> Tensor:
        back: Tensor = pull(torch.einsum("boz,bz->bo", root, z))[0]
        return width * back

    found = []
    with torch.no_grad():
        for z, start in zip(noise, prior / width, strict=True):
            draw, residual = start, backward(z - forward(start))
            way, size = residual, residual @ residual
            for _ in range(_PRODUCTS):
                product = way + backward(forward(way))
                length = size / (way @ product).clamp(min=1e-30)
                draw, residual = draw + length * way, residual - length * product
                size, before = residual @ residual, size
                way = residual + size / before.clamp(min=1e-30) * way
            found.append(draw * width)
    return torch.stack(found)


def _add_lower_gram(total: Tensor, factor: Tensor) -> None:
    """Adds the lower triangle of `F F^T` to a matrix (m, m), in place, for F (m, k). A factorisation reads no more than
    that, and the product is most of what draws cost: the blocks above the diagonal are left out."""
    for at in range(0, len(factor), _BLOCK):
        total[at:, at : at + _BLOCK] += factor[at:] @ factor[at : at + _BLOCK].T


def _cholesky(matrix: Tensor) -> Tensor:
    """Cholesky factor of a positive definite matrix, of which the lower triangle is read, whose small eigenvalues may
    be lost in rounding."""
    diagonal = matrix.diagonal()
    diagonal.add_(len(matrix) * torch.finfo(matrix.dtype).eps * diagonal.max())
    factor: Tensor = torch.linalg.cholesky(matrix)
    return factor


def linear_response(
    network: FunctionalNetwork,
    theta: Tensor,
    x: Tensor,
    likelihood: Likelihood,
    directions: Tensor,
    scale: float = 1.0,
) -> Tensor:
    """`sqrt(scale) J~ v` (m, B*O) for directions v (m, P): what a step does to the outputs, in units of their noise."""
    with torch.no_grad():
        root = likelihood.root_curvature(network(theta, x))

    def outputs(weights: Tensor) -> Tensor:
        return network(weights, x)

    def respond(v: Tensor) -> Tensor:
        tangent = jvp(outputs, (theta,), (v,))[1]
        return torch.einsum("bzo,bz->bo", root, tangent).flatten()

    per_chunk = max(1, _JACOBIAN_ENTRIES // (network.activations(x[:1]) * len(x)))
    with torch.no_grad():
        return math.sqrt(scale) * torch.cat([vmap(respond)(part) for part in torch.split(directions, per_chunk)])


@dataclass(frozen=True)
class Preconditioner:
    """`C = Lambda^-1/2 (I + V d V^T) Lambda^-1/2`, which takes off part of a curvature whose steep directions are V.

    Attributes:
        basis: (P, R) V, orthonormal; shrink: (R,) d, between -1 and 0.
        width: (P,) Lambda^-1/2.
    """

    basis: Tensor
    shrink: Tensor
    width: Tensor

    def __call__(self, gradient: Tensor) -> Tensor:
        """`C g` for gradients (..., P)."""
        g = gradient * self.width
        return (g + ((g @ self.basis) * self.shrink) @ self.basis.T) * self.width


def make_preconditioner(
    network: FunctionalNetwork,
    theta: Tensor,
    x: Tensor,
    likelihood: Likelihood,
    prior_precision: Tensor,
    rows: int,
    power: float,
) -> Preconditioner:
    """The preconditioner `C = Lambda^-1/2 (I + K)^-power Lambda^-1/2` with `K = Lambda^-1/2 J~^T J~ Lambda^-1/2`.

    Args:
        x: (m, ...) rows, of which evenly some are taken; they stand for `rows` rows.
        power: 0 leaves the curvature's steep directions as they are, 1 makes them as flat as the prior's.
    """
    entries = _PRECONDITIONER_ENTRIES["cuda" if theta.device.type == "cuda" else "cpu"]
    most = max(1, min(_STEEP, entries // theta.shape[0]) // likelihood.outputs)
    some = x[:: -(-len(x) // most)]
    width = prior_precision.rsqrt()
    jacobian = scaled_jacobian(network, theta, some, likelihood).double() * (rows / len(some)) ** 0.5 * width.double()
    values, vectors = torch.linalg.eigh(jacobian @ jacobian.T)
    steep = values > 1e-9 * values[-1].clamp(min=1e-30)
    values, vectors = values[steep], vectors[:, steep]
    basis = (jacobian.T @ vectors / values.sqrt()).to(theta.dtype)
    return Preconditioner(basis, ((1 + values) ** -power - 1).to(theta.dtype), width)


def enough_rows(network: FunctionalNetwork, x: Tensor) -> int:
    """How many of the rows x (n, ...) are enough for `largest_eigenvalue`: fewer of networks that cost much a row."""
    return max(_FEW_ROWS, min(_MANY_ROWS, _ROW_OPERATIONS // network.operations(x[:1])))


def largest_eigenvalue(
    network: FunctionalNetwork,
    theta: Tensor,
    x: Tensor,
    likelihood: Likelihood,
    prior_precision: Tensor,
    scale: float,
    iterations: int = 30,
    preconditioner: Preconditioner | None = None,
) -> float:
    """The largest eigenvalue of `H = scale * J~^T J~ + Lambda` at theta, or of `C H` with a preconditioner C, by power
    iteration, free of any matrix, until it settles; it is a bound for steps, which leave room for what is then missing.
    """

    def outputs(weights: Tensor) -> Tensor:
        return network(weights, x)

    there = vjp(outputs, theta)
    root, pull = likelihood.root_curvature(there[0].detach()), there[1]
    curvature = root @ root.mT

    def product(v: Tensor) -> Tensor:
        tangent = jvp(outputs, (theta,), (v,))[1]
        back: Tensor = pull(torch.einsum("bop,bp->bo", curvature, tangent))[0]
        found = scale * back + prior_precision * v
        return found if preconditioner is None else preconditioner(found)

    # Not the vector of ones: equal shifts of all logits are in the null space of a classifier's curvature.
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0)).to(theta)
    v = v / v.norm()
    value = 0.0
    for _ in range(iterations):
        v, before = product(v), value
        value = float(v.norm())
        v = v / value
        if abs(value - before) < _SETTLED * value:
            break
    return value
