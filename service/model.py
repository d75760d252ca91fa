"""One loaded version of a model: from parsed rows to the columns of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.bundle import Bundle
from model_store.detection import Detectors, Unfamiliarity
from model_store.errors import InputError
from model_store.manifest import LatentPlan, RegressionCalibration, RegressionTarget
from service import predictive
from service.engine import Engine, WeightSet
from service.inputs import InputEncoder
from service.pace import Pace
from service.predictive import AnchorSamples
from service.providers import Wanted

Float32 = NDArray[np.float32]
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Asked:
    """What is wanted of the network.

    Attributes:
        level: of intervals or prediction sets; None where the OOD score alone is wanted, and no predictive.
        quantiles: of a regression's target, wanted too.
        draws: whether what each sample says is wanted too.
        scores: whether what OOD detectors take of the network is wanted too.
        empty_sets: whether a prediction set may be empty.
    """

    level: float | None
    quantiles: tuple[float, ...] = ()
    draws: bool = False
    scores: bool = False
    empty_sets: bool = False


class ServedModel:
    """A bundle whose files were verified and whose networks are resident."""

    def __init__(self, bundle: Bundle, *, threads: int = 1, run_size: int = 8192, device: Wanted = "cpu") -> None:
        """Args:
            bundle: the version to serve.
            threads: threads within one operator; 0 is one a core.
            run_size: samples x rows in one run of the network.
            device: where networks are computed.

        Raises:
            IntegrityError: the bundle does not verify or cannot be run.
            StoreError: a CUDA device is wanted, and does not work here.
        """
        bundle.verify()
        arrays = bundle.arrays()
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.nodes: Float32 = arrays["nodes"]
        self.encoder = InputEncoder(bundle.manifest.inputs)
        self.engine = Engine(bundle, threads=threads, device=device)
        self._scores: NDArray[np.float64] = arrays["conformity_scores"]
        self._noise = bundle.noise(arrays)
        self.detectors = Detectors(bundle.manifest.inputs, bundle.manifest.ood, arrays)
        if self.detectors.features:
            self.engine.take_features(bundle, self.detectors.features)
        self.pace = Pace()
        self._run_size = run_size

    @property
    def reference(self) -> str:
        """`NAME@VERSION`."""
        return f"{self.bundle.name}@{self.bundle.version}"

    def plan(self, name: str) -> LatentPlan:
        """A latent plan of the bundle."""
        return self.manifest.latent.plans[name]

    @property
    def points(self) -> int:
        """Rows that stand behind intervals and prediction sets."""
        return len(self._scores)

    def predict(self, weights: WeightSet, x: Float32, asked: Asked) -> Columns:
        """What is asked of encoded rows x (B, ...): arrays with one entry a row.

        Those of `predictive`; of draws `draws`, means (B, S) or probabilities (B, S, C); of quantiles `quantiles`
        (B, Q); of scores `epistemic_score` (B,), and `features` (B, F) where detectors look at them.

        Raises:
            InputError: a row lies so far out that what is predicted is no finite number.
        """
        found: list[Columns] = []
        done = 0
        for outputs, features in self.engine.answers(weights, x, self._run_size, asked.scores):
            sound = self.sound(outputs, scored=asked.level is None)
            if not sound.all():
                raise out_of_range(done + int(np.argmin(sound)))
            found.append(self.columns(weights, x[done : done + outputs.shape[1]], outputs, features, asked))
            done += outputs.shape[1]
        return predictive.joined(found)

    def sound(self, outputs: Float32, scored: bool) -> NDArray[np.bool_]:
        """(B,) bool: the rows of whose outputs (S, B, O) something can be said: where they are `scored` alone, and
        nothing is predicted, of all that are finite."""
        within = np.isfinite(outputs) if scored else predictive.in_range(outputs, self.manifest.target)
        # Row by row takes many times as long, and hardly any request has such a row.
        if within.all():
            return np.ones(outputs.shape[1], dtype=np.bool_)
        found: NDArray[np.bool_] = np.logical_and.reduce(within, axis=(0, 2))
        return found

    def columns(
        self, weights: WeightSet, x: Float32, outputs: Float32, features: Float32 | None, asked: Asked
    ) -> Columns:
        """The same of any rows x (B, ...) from the network's outputs (S, B, O) and features (B, F) that `answers`
        gives."""
        if asked.level is None:
            found = {"epistemic_score": self._network_score(outputs, weights.members)}
        else:
            found = self._predictive(x, outputs, asked, asked.level, weights.members if asked.scores else None)
        return found if features is None or not asked.scores else found | {"features": features}

    def _predictive(
        self, x: Float32, outputs: Float32, asked: Asked, level: float, members: AnchorSamples | None
    ) -> Columns:
        target, calibration = self.manifest.target, self.manifest.calibration
        if isinstance(target, RegressionTarget):
            assert isinstance(calibration, RegressionCalibration)  # the manifest's schema says so
            std: float | NDArray[np.float64] = calibration.noise_std
            if self._noise is not None:
                std = std * np.sqrt(self._noise.relative_variance(x))
            found = predictive.regression(outputs, target, calibration, level, self._scores, members, std)
            if asked.quantiles:
                found["quantiles"] = predictive.calibrated_quantiles(found, asked.quantiles, self._scores)
            if asked.draws:
                found["draws"] = predictive.draws(outputs, target, std)
            return found
        assert not isinstance(calibration, RegressionCalibration)
        found = predictive.classification(outputs, calibration, level, self._scores, members, asked.empty_sets)
        if asked.draws:
            found["draws"] = predictive.probabilities(outputs, calibration).swapaxes(0, 1)
        return found

    def interval_factor(self, level: float) -> float:
        """How many predictive standard deviations an interval reaches to either side."""
        return predictive.interval_factor(level, self._scores)

    def prediction_sets(self, p: NDArray[np.float64], level: float) -> NDArray[np.bool_]:
        """(B, C) bool, the classes of each set, for probabilities (B, C)."""
        return predictive.prediction_sets(p, level, self._scores)

    def unfamiliarity(self, x: Float32, columns: Columns) -> Unfamiliarity:
        """How unfamiliar encoded rows x (B, ...) are.

        Args:
            columns: `epistemic_score` (B,) and `features` (B, F) of them, as `predict` gives them, where there are any.
        """
        features = columns.get("features")
        if features is None and self.detectors.features:
            features = self.engine.features(x)
        return self.detectors.judge(x, columns.get("epistemic_score"), features)

    def _network_score(self, outputs: Float32, members: AnchorSamples) -> NDArray[np.float64]:
        """The network's OOD score (B,) of rows from its outputs (S, B, O) on them."""
        target, calibration = self.manifest.target, self.manifest.calibration
        if isinstance(target, RegressionTarget):
            assert isinstance(calibration, RegressionCalibration)
            return predictive.epistemic_to_noise(outputs, members, target, calibration)
        assert not isinstance(calibration, RegressionCalibration)
        return predictive.mutual_information(outputs, members, calibration)

    def outputs(self, weights: WeightSet, x: Float32, look: bool = False) -> tuple[Float32, Float32 | None]:
        """The network's outputs (S, B, O) for encoded rows x (B, ...), finite or not, and the features (B, F) where
        they are wanted and detectors look at some."""
        parts = list(self.engine.answers(weights, x, self._run_size, look))
        if len(parts) == 1:
            return parts[0]
        features = [f for _, f in parts if f is not None]
        return np.concatenate([o for o, _ in parts], axis=1), np.concatenate(features) if features else None


def out_of_range(row: int) -> InputError:
    """The error of a request for whose row of this number no finite number can be predicted."""
    return InputError(
        f"Row {row} lies so far from the training data that what the model predicts is no finite number; "
        "send values nearer to it.",
        code="out_of_range",
        field=f"inputs[{row}]",
        expected="values for which the prediction is finite",
        got="values that overflow it",
    )
