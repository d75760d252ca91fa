"""Linearised Laplace by laplace-torch (Daxberger et al. 2021, "Laplace Redux").

The posterior is a Gaussian at the MAP weights whose precision is the generalised Gauss-Newton matrix and the prior's;
the network's linearisation carries it to the outputs (Immer et al. 2021, "Improving predictions of Bayesian neural nets
via local linearization"). The prior's precision and the noise maximise the Laplace evidence (MacKay 1992; Immer et al.
2021, "Scalable marginal likelihood estimation"), which needs no held-out rows, or are chosen on these.

Lengths: n training rows, P weights that have the posterior, B rows, O outputs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from laplace import Laplace, ParametricLaplace
from laplace.curvature import BackPackGGN
from torch import Tensor
from torch.nn.utils import vector_to_parameters
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.quality.methods.ensemble import train_full, train_on
from benchmarks.quality.predictive import Cost, Gaussians, Outcome, Predictive, figures, of_samples
from benchmarks.quality.problem import Problem
from benchmarks.quality.tuning import Choice, Tuned, own_folds
from builder.map import Members

VARIANTS = {
    "laplace_full": ("all", "full"),
    "laplace_kron": ("all", "kron"),
    "laplace_last": ("last_layer", "full"),
}
"""Which weights have the posterior, and the structure of its precision."""

_EVIDENCE_STEPS, _EVIDENCE_RATE = 200, 0.1
_JACOBIAN_ENTRIES = 2**23
_SAMPLES = 200
_JUDGED_ROWS = 500
PRECISIONS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e4)
"""Prior precisions tried, in those that the network was trained with: to where the posterior is a point."""


def run(problem: Problem, tuned: Tuned, variants: Sequence[str] = tuple(VARIANTS)) -> dict[str, Outcome]:
    """Variants, of one network trained as the ensembles' members are; each as the evidence has it, and with the prior
    precision, and the noise or temperature, that suit unseen training rows best (`..._tuned`): a network that
    interpolates makes the evidence's noise too small, and its precision can be far off.
    """
    training, folding = Cost(), Cost()
    with training.clock():
        trained = train_full(problem, tuned, 1)
    training.gradient_evaluations = trained.gradient_evaluations
    with folding.clock():
        folds = _train_folds(problem, tuned)
    folding.gradient_evaluations = folds.trained.gradient_evaluations
    found = {}
    for name in variants:
        subset, structure = VARIANTS[name]
        cost, choosing = Cost(), Cost()
        with cost.clock():
            posterior = fit(problem, trained.weights[0], subset, structure)
            maximise_evidence(posterior, tuned.precision, float(trained.noise_std[0]))
            predictive = predict(problem, posterior, problem.x_test)
        cost.gradient_evaluations = len(problem.x) * posterior.n_outputs
        found[name] = Outcome(predictive, training + cost + tuned.cost)
        with choosing.clock():
            choice = choose(problem, tuned, folds, subset, structure)
            _set(posterior, choice.rate, tuned)
            predictive = predict(problem, posterior, problem.x_test, choice.noise_variance, choice.temperature)
        choosing.gradient_evaluations = int(folds.member.sum()) * posterior.n_outputs
        found[f"{name}_tuned"] = Outcome(predictive, training + folding + cost + choosing + tuned.cost)
    return found


@dataclass(frozen=True)
class Folds:
    """Networks trained without one fold each: which rows they have, (folds, n), and what came of it."""

    member: Tensor
    trained: Members


def _train_folds(problem: Problem, tuned: Tuned) -> Folds:
    member = own_folds(problem).to(problem.y.device)
    return Folds(member, train_on(problem, tuned, member, 700, 5))


def choose(problem: Problem, tuned: Tuned, folds: Folds, subset: str, structure: str) -> Choice:
    """The prior precision, and what goes with it, with the least NLL on unseen rows.

    The noise is one network's less the functional variance, never less than a fifth of it; the temperature is one
    network's or 1: as SWAG's are.
    """
    functional: list[list[tuple[Tensor, Tensor]]] = []
    targets = []
    for seen, theta in zip(folds.member, folds.trained.weights, strict=True):
        rows = (~seen).nonzero().squeeze(1)[:_JUDGED_ROWS]
        own = replace(problem, x=problem.x[seen], y=problem.y[seen])
        posterior = fit(own, theta, subset, structure)
        functional.append([])
        for times in PRECISIONS:
            _set(posterior, times * tuned.precision, tuned)
            functional[-1].append(moments(problem, posterior, problem.x[rows]))
        targets.append(problem.y[rows])
    y = torch.cat(targets)
    found = []
    for times, parts in zip(PRECISIONS, zip(*functional, strict=True), strict=True):
        mean, variance = (torch.cat(part) for part in zip(*parts, strict=True))
        noise = tuned.noise_variance
        if problem.regression:
            noise = tuned.noise_less(float(variance.mean()))
        for temperature in {tuned.temperature_beside(1), 1.0}:
            nll = figures(_predictive(problem, mean, variance, noise, temperature), y)["nll"]
            # What is not finite is the worst, not an error, and no least number either.
            found.append((nll if math.isfinite(nll) else math.inf, times * tuned.precision, noise, temperature))
    return Choice(*min(found)[1:])


def _set(posterior: ParametricLaplace, precision: float, tuned: Tuned) -> None:
    posterior.prior_precision = precision
    if posterior.likelihood == "regression":
        posterior.sigma_noise = math.sqrt(tuned.noise_variance)


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


def predict(
    problem: Problem,
    posterior: ParametricLaplace,
    x: Tensor,
    noise_variance: float | None = None,
    temperature: float = 1.0,
) -> Predictive:
    """The predictive of the linearised network for x (B, d): a Gaussian (1, B) with the noise, by default the
    posterior's own, in its variance, or the average class probabilities of draws of its outputs."""
    mean, variance = moments(problem, posterior, x)
    noise = float(posterior.sigma_noise) ** 2 if noise_variance is None else noise_variance
    return _predictive(problem, mean, variance, noise, temperature)


def moments(problem: Problem, posterior: ParametricLaplace, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, O) and covariance (B, O, O) of the linearised network's outputs for x (B, d)."""
    with warnings.catch_warnings(), torch.no_grad():
        _ignore_hook_warning()
        parts = [posterior._glm_predictive_distribution(rows) for rows in torch.split(x.double(), _batch_rows(problem))]
    mean, variance = (torch.cat(part) for part in zip(*parts, strict=True))
    return mean, variance


def _predictive(
    problem: Problem, mean: Tensor, variance: Tensor, noise_variance: float, temperature: float
) -> Predictive:
    if problem.regression:
        return Gaussians(mean.float().T, variance[..., 0].float().T + noise_variance)
    # The library's probit link takes each output's own variance. Outputs may all shift at once, which no class sees and
    # only the prior holds back: as doubt it is most of that variance, and up to .2 nats worse.
    normal = torch.randn(
        _SAMPLES, *mean.shape, dtype=mean.dtype, generator=torch.Generator().manual_seed(problem.seed + 44)
    )
    values, vectors = torch.linalg.eigh(variance)
    outputs = mean + torch.einsum("bij,sbj->sbi", vectors * values.clamp(min=0).sqrt()[:, None], normal)
    return of_samples((outputs / temperature).softmax(-1).float())


def _batch_rows(problem: Problem) -> int:
    """Rows whose Jacobians (B, O, P) fit the memory, for curvature and predictions alike."""
    outputs = 1 if problem.regression else problem.dataset.outputs
    return max(1, _JACOBIAN_ENTRIES // (outputs * problem.network.weights))


def _ignore_hook_warning() -> None:
    """BackPACK's hooks fire where no input needs a gradient, as they should; torch warns of it each time."""
    warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
