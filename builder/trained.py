"""All that the stages of a build left behind, as evaluation and publication need it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from builder.autoencoder import LatentModel
from builder.calibration import Calibrated, DecodedPosterior, Reach
from builder.config import BuildConfig
from builder.data import Dataset
from builder.fiber import Fibers
from builder.network import FunctionalNetwork
from model_store.manifest import LatentPlan


@dataclass(frozen=True)
class Trained:
    """The results of all stages, on the device of the build.

    Attributes:
        dataset: all rows, the test part among them.
        network: its random weights are the posterior's.
        x, y, member: encoded training rows, their targets, and which anchor was trained on which, (A, n).
        anchors: (A, P).
        plans: latent plans by name.
        posterior: the decoded posterior, as a server draws from it.
        gradient_evaluations: row gradients that training and sampling took.
    """

    config: BuildConfig
    dataset: Dataset
    network: FunctionalNetwork
    x: Tensor
    y: Tensor
    member: Tensor
    anchors: Tensor
    fibers: Fibers
    reach: Reach
    latent: LatentModel
    plans: dict[str, LatentPlan]
    posterior: DecodedPosterior
    calibrated: Calibrated
    gradient_evaluations: int
