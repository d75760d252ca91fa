"""The reference: Hamiltonian Monte Carlo by numpyro's no-U-turn sampler (Hoffman and Gelman 2014).

Chains start at draws from the prior, far apart in weights and in functions. Whether they have converged is told in
function space: weights have symmetries (units may swap places and change sign) that no chain has to cross.

Lengths: C chains, D draws a chain, P weights, G points, O outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import torch
from numpy.typing import NDArray
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS
from torch import Tensor, nn

from benchmarks.fidelity.target import Target

WORST_RHAT = 1.05
"""Split r-hat up to which chains count as converged."""


@dataclass(frozen=True)
class Settings:
    """How long to sample.

    Attributes:
        chains: C; warmup: draws that adapt each and are dropped; draws: D, kept of each.
        depth: most doublings of a trajectory.
    """

    chains: int = 4
    warmup: int = 1000
    draws: int = 1000
    depth: int = 10


@dataclass(frozen=True)
class Draws:
    """What the chains drew.

    Attributes:
        weights: (C, D, P).
        divergences: trajectories that left their energy; steps: mean leapfrog steps of a trajectory.
    """

    weights: Tensor
    divergences: int
    steps: float


@dataclass(frozen=True)
class Convergence:
    """How well chains agree on the function values at the points.

    Attributes:
        rhat: largest and median split r-hat.
        ess: smallest and median effective sample size, of all draws together.
        draws: how many there are.
    """

    rhat: tuple[float, float]
    ess: tuple[float, float]
    draws: int

    @property
    def converged(self) -> bool:
        """Whether the chains agree."""
        return self.rhat[0] <= WORST_RHAT


def sample(target: Target, settings: Settings, seed: int) -> Draws:
    """Draws from the posterior. The network must be a multilayer perceptron."""
    width = target.precision**-0.5
    potential = _potential(target)
    key, start = jax.random.split(jax.random.PRNGKey(seed))
    # In units of the prior.
    first = jax.random.normal(start, (settings.chains, target.problem.network.weights))
    kernel = NUTS(potential_fn=lambda z: potential(z * width), max_tree_depth=settings.depth)
    mcmc = MCMC(
        kernel,
        num_warmup=settings.warmup,
        num_samples=settings.draws,
        num_chains=settings.chains,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(key, init_params=first, extra_fields=("diverging", "num_steps"))
    weights = np.array(mcmc.get_samples(group_by_chain=True)) * width
    extra = mcmc.get_extra_fields()
    return Draws(torch.from_numpy(weights).float(), int(np.sum(extra["diverging"])), float(np.mean(extra["num_steps"])))


def convergence(values: Tensor) -> Convergence:
    """Of function values (C, D, G) at points."""
    each: NDArray[np.float64] = values.double().numpy()
    rhat, ess = np.asarray(split_gelman_rubin(each)), np.asarray(effective_sample_size(each))
    return Convergence(
        (float(rhat.max()), float(np.median(rhat))),
        (float(ess.min()), float(np.median(ess))),
        each.shape[0] * each.shape[1],
    )


def _potential(target: Target) -> Callable[[jax.Array], jax.Array]:
    """`Target.potential` for one weight vector, in jax."""
    problem = target.problem
    x, y = jnp.asarray(problem.x.numpy()), jnp.asarray(problem.y.numpy())
    network = _network(problem.network.module)
    precision, noise, regression = target.precision, target.noise_std, problem.regression

    def potential(theta: jax.Array) -> jax.Array:
        f = network(theta, x)
        if regression:
            nll = 0.5 * jnp.sum(((y - f[:, 0]) / noise) ** 2)
        else:
            nll = -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(f), y[:, None], axis=1))
        return nll + 0.5 * precision * jnp.sum(theta**2)

    return potential


def _network(module: nn.Module) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A multilayer perceptron in jax, of weights in the order of the module's parameters."""
    layers = list(module.children())
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    between = [layer for layer in layers if not isinstance(layer, nn.Linear)]
    if not isinstance(module, nn.Sequential) or not all(isinstance(layer, nn.Tanh) for layer in between):
        raise TypeError("The reference needs a perceptron of linear layers with tanh between them.")
    sizes = [n for layer in linear for n in (layer.weight.numel(), layer.bias.numel())]
    ends = list(itertools.accumulate(sizes))[:-1]

    def network(theta: jax.Array, x: jax.Array) -> jax.Array:
        parts = jnp.split(theta, ends)
        for i, layer in enumerate(linear):
            weight = parts[2 * i].reshape(layer.out_features, layer.in_features)
            x = x @ weight.T + parts[2 * i + 1]
            if i < len(linear) - 1:
                x = jnp.tanh(x)
        return x

    return network
