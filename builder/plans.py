"""The latent plans of a bundle: which part of the fibers a server draws from, and how many samples by default.

Lengths: S samples, B rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor

from builder.calibration import DecodedPosterior, Reach
from builder.config import CalibrationConfig
from builder.fiber import Fibers
from builder.network import FunctionalNetwork
from builder.predictive import answer_of, answers_apart, contracted, sample_outputs
from model_store.manifest import LatentPlan

_FEWEST: Final = 32
_MOST: Final = 256
_REFERENCE: Final = 1024
_TOLERATED: Final = 0.0005
"""Nats a row that the default number of samples may cost on training rows, where samples differ less than on others."""
_MOST_WEIGHTS: Final = 2**21
"""Of all samples together (8 MB), where their number is chosen automatically."""
_ROWS: Final = 512


def make_plan(config: CalibrationConfig, fibers: Fibers, reach: Reach) -> LatentPlan:
    """The plan that predictions and the OOD detectors draw from: all of the fibers that is in use."""
    return LatentPlan(name="predict", samples=config.samples or _FEWEST, drift_scale=float(fibers.scales[reach.used]))


def settled(config: CalibrationConfig, network: FunctionalNetwork) -> bool:
    """Whether a plan's number of samples is known before anything of them is: named, or too large a network to ask."""
    return config.samples is not None or _most(network) < 2 * _FEWEST


def _most(network: FunctionalNetwork) -> int:
    return min(_MOST, _MOST_WEIGHTS // network.weights)


def with_enough_samples(
    plan: LatentPlan,
    posterior: DecodedPosterior,
    x: Tensor,
    spread_of: Callable[[Tensor], Tensor | float],
    regression: bool,
    dispersion: float = 1.0,
) -> LatentPlan:
    """The plan with the fewest samples, from 32 on and doubled up to 256, whose answers are as good as many samples'.

    What few samples cost is the divergence `KL(many || few)` of the predictive distributions, which no target is
    needed for: the NLL that they lose where the answer of many is right. Large networks stay at fewer.

    Args:
        x: (n, ...) encoded training rows.
        spread_of: the standard deviation of the noise at rows, or the temperature, as `Calibrated.noise_std`.
        dispersion: of a classifier's logits.
    """
    rows = x[:: -(-len(x) // _ROWS)]
    spread = spread_of(rows)

    def answer(samples: int, seed: int) -> tuple[Tensor, Tensor]:
        outputs = sample_outputs(posterior.network, posterior.draw(plan, samples, seed)[0], rows)
        return answer_of(contracted(outputs, dispersion), spread, regression)

    samples, most = _FEWEST, _most(posterior.network)
    many = answer(_REFERENCE, 1)
    while 2 * samples <= most:
        if answers_apart(many, answer(samples, 0), regression) <= _TOLERATED:
            break
        samples *= 2
    return plan.model_copy(update={"samples": samples})
