"""Linearised Laplace by laplace-torch (Daxberger et al. 2021, "Laplace Redux").

The posterior is a Gaussian at the MAP weights whose precision is the generalised Gauss-Newton matrix and the prior's;
the network's linearisation carries it to the outputs (Immer et al. 2021, "Improving predictions of Bayesian neural nets
via local linearization"). The prior's precision and the noise maximise the Laplace evidence (MacKay 1992; Immer et al.
2021, "Scalable marginal likelihood estimation"), which needs no held-out rows.

Lengths: n training rows, P weights that have the posterior, B rows, O outputs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from laplace import Laplace, ParametricLaplace
from laplace.curvature import BackPackGGN
from torch import Tensor
from torch.nn.utils import vector_to_parameters
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.quality.methods.ensemble import train_full
from benchmarks.quality.predictive import Classes, Cost, Gaussians, Outcome, Predictive, of_samples
from benchmarks.quality.problem import Problem
from benchmarks.quality.tuning import Tuned

VARIANTS = {
    "laplace_full": ("all", "full"),
    "laplace_kron": ("all", "kron"),
    "laplace_last": ("last_layer", "full"),
}
"""Which weights have the posterior, and the structure of its precision."""

_EVIDENCE_STEPS, _EVIDENCE_RATE = 200, 0.1
_JACOBIAN_ENTRIES = 2**23
_SAMPLES = 100


def run(
    problem: Problem, tuned: Tuned, variants: Sequence[str] = tuple(VARIANTS), samples: bool = False
) -> dict[str, Outcome]:
    """Variants, of one network trained as the ensembles' members are; for regression each also with the
    out-of-fold noise in place of the evidence's (`..._tuned`), which a network that interpolates makes too small.

    With `samples`, classes come with the mutual information of samples of the outputs.
    """
    training = Cost()
    with training.clock():
        trained = train_full(problem, tuned, 1)
    training.gradient_evaluations = trained.gradient_evaluations
    found = {}
    for name in variants:
        subset, structure = VARIANTS[name]
        cost = Cost()
        with cost.clock():
            posterior = fit(problem, trained.weights[0], subset, structure)
            maximise_evidence(posterior, tuned.precision, float(trained.noise_std[0]))
            predictive = predict(problem, posterior, problem.x_test)
            if samples and isinstance(predictive, Classes):
                predictive = replace(predictive, information=information(problem, posterior, problem.x_test))
        cost.gradient_evaluations = len(problem.x) * posterior.n_outputs
        spent = training + cost + tuned.cost
        found[name] = Outcome(predictive, spent)
        if isinstance(predictive, Gaussians):
            functional = predictive.variance - float(posterior.sigma_noise) ** 2
            found[f"{name}_tuned"] = Outcome(Gaussians(predictive.mean, functional + tuned.noise_variance), spent)
    return found


def fit(problem: Problem, theta: Tensor, subset: str, structure: str) -> ParametricLaplace:
    """The library's posterior at theta (all weights), with the curvature of all n training rows.

    In double precision: at small noise the precision's eigenvalues span more than single precision holds.
    """
    module = problem.factory().double()
    vector_to_parameters(theta.double(), module.parameters())
    # BackPACK has the Jacobians of a batch in one backward pass an output; the library's default differentiates each
    # output of each row apart, 50 times slower, and gives the same matrices.
    posterior = Laplace(
        module,
        "regression" if problem.regression else "classification",
        subset_of_weights=subset,
        hessian_structure=structure,
        backend=BackPackGGN,
    )
    assert isinstance(posterior, ParametricLaplace)
    y = problem.y[:, None].double() if problem.regression else problem.y
    rows = _batch_rows(problem)
    with warnings.catch_warnings():
        _ignore_hook_warning()
        posterior.fit(DataLoader(TensorDataset(problem.x.double(), y), batch_size=rows))
    return posterior


def maximise_evidence(posterior: ParametricLaplace, precision: float, noise_std: float) -> None:
    """Sets the prior precision and, for regression, the noise to the maximum of the evidence, both at once on a
    logarithmic scale by Adam, as the library's regression example does.

    Where the evidence is not finite at the end, what was given stays.
    """
    curvature = spectrum(posterior)
    given = torch.tensor([precision, noise_std], dtype=torch.float64)
    log = given.log().requires_grad_()
    regression = posterior.likelihood == "regression"
    optimiser = torch.optim.Adam([log], lr=_EVIDENCE_RATE)
    for _ in range(_EVIDENCE_STEPS):
        evidence = log_evidence(posterior, curvature, log[0].exp(), log[1].exp() if regression else None)
        optimiser.zero_grad()
        torch.autograd.backward(-evidence)
        optimiser.step()
    best = log.detach().exp()
    with torch.no_grad():
        reached = log_evidence(posterior, curvature, best[0], best[1] if regression else None)
        if not math.isfinite(float(reached)):
            log_evidence(posterior, curvature, given[0], given[1] if regression else None)


def log_evidence(
    posterior: ParametricLaplace, curvature: Tensor, precision: Tensor, noise_std: Tensor | None
) -> Tensor:
    """The library's log marginal likelihood at these values, which it also sets; `curvature` (P,) is `spectrum`'s.

    The log-determinant is taken from the eigenvalues: it costs P and not P^3 each time, and the library's own has no
    gradient in the noise for the Kronecker structure (release 0.3 takes a power of it by `math.pow`).
    """
    posterior.prior_precision = precision
    scale = torch.ones((), dtype=torch.float64)
    if noise_std is not None:
        posterior.sigma_noise = noise_std
        scale = 1 / noise_std**2
    log_det_ratio = torch.log1p(curvature * scale / precision).sum()
    evidence: Tensor = posterior.log_likelihood - 0.5 * (log_det_ratio + posterior.scatter)
    return evidence


def spectrum(posterior: ParametricLaplace) -> Tensor:
    """Eigenvalues (P,) of the Gauss-Newton matrix at unit noise, none below zero."""
    if isinstance(posterior.H, Tensor):
        dense: Tensor = torch.linalg.eigvalsh(posterior.H)
        return dense.clamp(min=0)
    # A Kronecker product's eigenvalues are the products of its factors'; a bias has one factor.
    parts = [factors[0] if len(factors) == 1 else torch.outer(*factors) for factors in posterior.H.eigenvalues]
    return torch.cat([part.flatten() for part in parts]).clamp(min=0)


def predict(problem: Problem, posterior: ParametricLaplace, x: Tensor) -> Predictive:
    """The predictive of the linearised network for x (B, d): a Gaussian (1, B) with the noise in its variance, or class
    probabilities by MacKay's probit approximation (1992) for each output."""
    with warnings.catch_warnings():
        _ignore_hook_warning()
        answers = [posterior(rows, link_approx="probit") for rows in torch.split(x.double(), _batch_rows(problem))]
    if problem.regression:
        mean, variance = (torch.cat(parts).detach().float().reshape(1, -1) for parts in zip(*answers, strict=True))
        return Gaussians(mean, variance + float(posterior.sigma_noise) ** 2)
    return Classes(torch.cat([answer for answer in answers if isinstance(answer, Tensor)]).detach().float())


def information(problem: Problem, posterior: ParametricLaplace, x: Tensor) -> Tensor:
    """Mutual information (B,) of class and sample of the linearised network's outputs."""
    with warnings.catch_warnings():
        _ignore_hook_warning()
        parts = [
            of_samples(posterior.predictive_samples(rows, n_samples=_SAMPLES).detach()).information
            for rows in torch.split(x.double(), _batch_rows(problem))
        ]
    return torch.cat([part for part in parts if part is not None]).float()


def _batch_rows(problem: Problem) -> int:
    """Rows whose Jacobians (B, O, P) fit the memory, for curvature and predictions alike."""
    outputs = 1 if problem.regression else problem.dataset.outputs
    return max(1, _JACOBIAN_ENTRIES // (outputs * problem.network.weights))


def _ignore_hook_warning() -> None:
    """BackPACK's hooks fire where no input needs a gradient, as they should; torch warns of it each time."""
    warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
