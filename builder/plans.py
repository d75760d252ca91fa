"""The latent plans of a bundle: which part of the fibers a server draws from, and how many samples by default.

Lengths: S samples, B rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor

from builder.calibration import DecodedPosterior, Posterior, Reach, averaged_over_unseen, weights_of_anchors
from builder.config import CalibrationConfig
from builder.fiber import Fibers
from builder.network import FunctionalNetwork
from builder.out_of_fold import outputs_on_unseen, rows_to_judge
from builder.predictive import answer_of, answer_of_probabilities, answers_apart, sample_outputs
from model_store.manifest import LatentPlan

_FEWEST: Final = 32
_MOST: Final = 256
_REFERENCE: Final = 1024
"""Samples that are many."""
_TOLERATED: Final = 0.0005
"""Nats a row that the default number of samples may cost on training rows."""
_REFERENCE_UNSEEN: Final = 512
"""As many, on rows that two of twenty anchors answer: half as many then are drawn of all twenty."""
_TOLERATED_UNSEEN: Final = 0.001
"""Nats a row on these, where samples differ more."""
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
    plan: LatentPlan, posterior: DecodedPosterior, x: Tensor, spread_of: Callable[[Tensor], Tensor | float]
) -> LatentPlan:
    """The plan of a regression with the fewest samples that answer as well as many, to training rows.

    Args:
        x: (n, ...) encoded training rows.
        spread_of: the standard deviation of the noise at rows, as `Calibrated.noise_std`.
    """
    rows = x[:: -(-len(x) // _ROWS)]
    spread = spread_of(rows)

    def answer(samples: int, seed: int) -> tuple[Tensor, Tensor]:
        outputs = sample_outputs(posterior.network, posterior.draw(plan, samples, seed)[0], rows)
        return answer_of(outputs, spread, True)

    return _fewest(plan, posterior.network, answer, True)


def with_enough_samples_of_classes(
    plan: LatentPlan, posterior: Posterior, x: Tensor, member: Tensor, temperature: float, dispersion: float
) -> LatentPlan:
    """The plan of a classification with the fewest samples that answer as well as many, to rows that are unseen by the
    anchors that answer.

    Of rows that networks fit without an error they are all as sure, and a few samples look like enough.

    Args:
        posterior: that of the cross-fitted anchors.
        x: (n, ...) encoded training rows.
        member: (A, n) whether an anchor has them.
    """
    rows = rows_to_judge(member, _ROWS)
    unseen = ~member[:, rows]
    lacking = int(unseen.sum(0).min())

    def answer(samples: int, seed: int) -> tuple[Tensor, Tensor]:
        weights = weights_of_anchors(posterior, plan, max(1, samples // lacking), seed)
        outputs = outputs_on_unseen(posterior.network, weights, x[rows], unseen)
        p = averaged_over_unseen(outputs, unseen, temperature, dispersion)
        return answer_of_probabilities(p.double())

    return _fewest(plan, posterior.network, answer, False)


def _fewest(
    plan: LatentPlan, network: FunctionalNetwork, answer: Callable[[int, int], tuple[Tensor, Tensor]], regression: bool
) -> LatentPlan:
    """The plan with the fewest samples that answer as well as many, from 32 on and doubled up to 256; large networks
    stay at fewer.

    What few samples cost is the divergence `KL(many || few)` of the predictive distributions, which no target is
    needed for: the NLL that they lose where the answer of many is right.

    Args:
        answer: that of so many samples, drawn with a seed, as `answers_apart` takes it.
    """
    reference, tolerated = (_REFERENCE, _TOLERATED) if regression else (_REFERENCE_UNSEEN, _TOLERATED_UNSEEN)
    samples, most, many = _FEWEST, _most(network), answer(reference, 1)
    while 2 * samples <= most and answers_apart(many, answer(samples, 0), regression) > tolerated:
        samples *= 2
    return plan.model_copy(update={"samples": samples})
