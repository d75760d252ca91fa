"""All that the stages of a build left behind, as evaluation and publication need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from builder.autoencoder import LatentModel
from builder.calibration import Calibrated, DecodedPosterior, Reach
from builder.config import BuildConfig
from builder.data import Dataset
from builder.detection import Detection
from builder.features import FeatureNetworks
from builder.fiber import Fibers
from builder.map import Anchors
from builder.network import FunctionalNetwork
from model_store.manifest import LatentPlan


@dataclass(frozen=True)
class Trained:
    """The results of all stages, on the device of the build.

    Attributes:
        dataset: all rows, the test part among them.
        network: its random weights are the posterior's.
        x, y, member: encoded training rows, their targets, and which anchor was first trained on which, (A, n).
        judged: the anchors as they were trained on their own rows alone, and cross_fitted: whole fibers from them, on
            which all choices were made.
        anchors: what is served: those that were judged, (A, P), or the first of them, trained anew on all rows.
        fibers: from the anchors, as far as a plan reaches at least; `cross_fitted` itself where these are served.
        plans: latent plans by name.
        posterior: the decoded posterior, as a server draws from it.
        features: the networks whose features detectors look at, where inputs are no table.
        training_gradients: row gradients that training took.
        notes: what a user should know of the network.
    """

    config: BuildConfig
    dataset: Dataset
    network: FunctionalNetwork
    x: Tensor
    y: Tensor
    member: Tensor
    judged: Anchors
    cross_fitted: Fibers
    anchors: Tensor
    fibers: Fibers
    reach: Reach
    latent: LatentModel
    plans: dict[str, LatentPlan]
    posterior: DecodedPosterior
    calibrated: Calibrated
    detection: Detection
    features: FeatureNetworks
    training_gradients: int
    notes: Sequence[str] = ()

    @property
    def sampling_gradients(self) -> int:
        """Row gradients that all walks took."""
        walks = [self.fibers] if self.fibers is self.cross_fitted else [self.cross_fitted, self.fibers]
        return sum(walk.gradient_evaluations for walk in walks)

    @property
    def gradient_evaluations(self) -> int:
        """Row gradients that training and sampling took."""
        return self.training_gradients + self.sampling_gradients
