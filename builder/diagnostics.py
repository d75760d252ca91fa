"""The method's failure signatures, looked for in every build, each with the advice that helps.

MetricBNN (arXiv 2512.01500) names four: samples that cluster near the MAP, predictions that diverge, a high
reconstruction error, and calibration that gets worse than the MAP's. A fifth is ours: too few rows to flag others by.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from builder.autoencoder import LatentModel
from builder.calibration import Calibrated, Reach
from builder.fiber import Fibers
from model_store.detection import lowest_rate
from model_store.manifest import OodDetection

MOST_RECONSTRUCTION_ERROR = 0.05
LEAST_MOVEMENT = 0.02
MOST_LOSS_RISE = 2.0
MOST_NLL_LOSS = 0.02


@dataclass(frozen=True)
class Finding:
    """One failure signature that was seen, or something else that whoever uses the model should know.

    Attributes:
        code: `clustering`, `divergence`, `reconstruction`, `calibration` or `flags`; of `builder.groups` `noise` or
            `classes`.
        message: what was measured.
        advice: what to change.
    """

    code: str
    message: str
    advice: str

    def __str__(self) -> str:
        return f"{self.message} {self.advice}"


def examine(
    fibers: Fibers, reach: Reach, latent: LatentModel, calibrated: Calibrated, ood: OodDetection
) -> list[Finding]:
    """All failure signatures that a build shows; an empty list where it shows none."""
    found = [
        _clustering(fibers, reach),
        _divergence(fibers, reach),
        _reconstruction(latent),
        _calibration(calibrated),
        _flags(ood),
    ]
    return [f for f in found if f is not None]


def movement(fibers: Fibers) -> Tensor:
    """(A, N) share of the whole drift that refinement left: net way over the length of the whole drift.

    Near 1 where particles went where drift took them, near 0 where refinement pulled them back to the MAP.
    """
    last = (fibers.nodes[-1] - fibers.nodes[0]).norm(dim=-1)
    share: Tensor = last / fibers.drift_length.clamp(min=1e-12)
    return share


def _clustering(fibers: Fibers, reach: Reach) -> Finding | None:
    share = movement(fibers)[~fibers.stranded]
    if len(share) and (moved := float(share.median())) < LEAST_MOVEMENT:
        return Finding(
            "clustering",
            f"The samples cluster near the MAP: refinement left {moved:.1%} of their drift.",
            "Lower fiber.refinement, or raise fiber.drift_scale.",
        )
    if reach.node == 0:
        return Finding(
            "clustering",
            "No part of the fibers predicts better out of fold than the anchors; what is served hardly leaves them.",
            "Raise fiber.refinement, or fiber.steps with a smaller fiber.drift_scale, to try small drifts too.",
        )
    return None


def _divergence(fibers: Fibers, reach: Reach) -> Finding | None:
    still = (fibers.nodes[reach.node] == fibers.nodes[max(0, reach.node - 1)]).all(-1)
    stranded = float((still & fibers.stranded).float().mean()) if reach.node else 0.0
    rise = fibers.loss[reach.node] - fibers.loss[0]
    far = float((~(rise < MOST_LOSS_RISE)).float().mean())
    if stranded > 0.1 or far > 0.5:
        return Finding(
            "divergence",
            f"Predictions diverge: in the part in use, {stranded:.0%} of the particles left the fiber for good and "
            f"{far:.0%} lost more than {MOST_LOSS_RISE:g} nats a row.",
            "In a recipe, lower fiber.drift_scale, or raise fiber.refinement.",
        )
    return None


def _reconstruction(latent: LatentModel) -> Finding | None:
    if latent.reconstruction_error > MOST_RECONSTRUCTION_ERROR:
        part = f", {latent.basis_error:.2g} by the rank alone" if latent.basis_error > 0.01 else ""
        return Finding(
            "reconstruction",
            "The decoder's reconstruction error is high: its predictions diverge from the samples' by "
            f"{latent.reconstruction_error:.2g} (twice the KL divergence in nats a row{part}).",
            "Raise autoencoder.dimension, autoencoder.hidden, autoencoder.steps"
            + (" or autoencoder.rank." if part else "."),
        )
    return None


def _calibration(calibrated: Calibrated) -> Finding | None:
    nll = calibrated.nll + calibrated.noise_gain  # the MAP's is with one noise level for all rows
    loss = nll - calibrated.map_nll
    if not loss <= MOST_NLL_LOSS:
        return Finding(
            "calibration",
            f"The posterior predicts worse than the MAP: out-of-fold NLL {nll:.3f} against {calibrated.map_nll:.3f}.",
            "The latent structure is wrong: raise autoencoder.steps or autoencoder.dimension.",
        )
    return None


def _flags(ood: OodDetection) -> Finding | None:
    lowest = lowest_rate(ood.points)
    if ood.false_alarm_rate < lowest:
        return Finding(
            "flags",
            f"No row will be flagged as unfamiliar: {ood.points} rows cannot vouch for a false alarm rate of "
            f"{ood.false_alarm_rate:.2g}, only for {lowest:.3g} and more.",
            "Raise calibration.false_alarm_rate, ask requests for a higher false_alarm_rate, or collect more rows.",
        )
    return None
