"""One loaded version of a model: from parsed rows to the columns of an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

    def predict(
        self,
        weights: WeightSet,
        x: Float32,
        level: float,
        quantiles: Sequence[float] = (),
        draws: bool = False,
        scores: bool = False,
        empty_sets: bool = False,
    ) -> Columns:
        """The predictive of encoded rows x (B, ...): arrays with one entry a row (see `predictive`).

        Args:
            level: of intervals or prediction sets.
            quantiles: of the target of a regression, wanted as `quantiles` (B, Q).
            draws: whether what each sample says is wanted, as `draws`: means (B, S) or probabilities (B, S, C).
            scores: whether the network's OOD score is wanted too, as `epistemic_score` (B,).
            empty_sets: whether a prediction set may be empty.

        Raises:
            InputError: a row lies so far out that the network's outputs are not finite.
        """
        members = weights.members if scores else None
        return _joined(
            self.statistics(p, level, quantiles, draws, members, empty_sets) for p in self._outputs(weights, x)
        )

    def statistics(
        self,
        outputs: Float32,
        level: float,
        quantiles: Sequence[float] = (),
        draws: bool = False,
        members: AnchorSamples | None = None,
        empty_sets: bool = False,
    ) -> Columns:
        """The predictive of rows from the network's outputs (S, B, O) on them; arguments and result as in `predict`.

        Args:
            members: where the network's OOD score is wanted too, which samples are whose.
        """
        target, calibration = self.manifest.target, self.manifest.calibration
        if isinstance(target, RegressionTarget):
            assert isinstance(calibration, RegressionCalibration)  # the manifest's schema says so
            found = predictive.regression(outputs, target, calibration, level, self._scores, members)
            if quantiles:
                found["quantiles"] = predictive.calibrated_quantiles(
                    found["mean"], found["variance"], quantiles, self._scores
                )
            if draws:
                found["draws"] = target.mean + target.scale * outputs[..., 0].astype(np.float64).T
            return found
        assert not isinstance(calibration, RegressionCalibration)
        found = predictive.classification(outputs, calibration, level, self._scores, members, empty_sets)
        if draws:
            found["draws"] = predictive.probabilities(outputs, calibration).swapaxes(0, 1)
        return found

    def interval_factor(self, level: float) -> float:
        """How many predictive standard deviations an interval reaches to either side."""
        return predictive.interval_factor(level, self._scores)

    def prediction_sets(self, p: NDArray[np.float64], level: float) -> NDArray[np.bool_]:
        """(B, C) bool, the classes of each set, for probabilities (B, C)."""
        return predictive.prediction_sets(p, level, self._scores)

    def epistemic_score(self, weights: WeightSet, x: Float32) -> NDArray[np.float64]:
        """The network's OOD score (B,) of encoded rows x (B, ...).

        Raises:
            InputError: as `predict`.
        """
        return np.concatenate([self.network_score(p, weights.members) for p in self._outputs(weights, x)])

    def unfamiliarity(self, x: Float32, epistemic: NDArray[np.float64] | None) -> Unfamiliarity:
        """How unfamiliar encoded rows x (B, ...) are.

        Args:
            epistemic: (B,) the network's OOD score of them, where it is asked.
        """
        return self.detectors.judge(x, epistemic, self.engine.features(x) if self.detectors.features else None)

    def network_score(self, outputs: Float32, members: AnchorSamples) -> NDArray[np.float64]:
        """The network's OOD score (B,) of rows from its outputs (S, B, O) on them."""
        target, calibration = self.manifest.target, self.manifest.calibration
        if isinstance(target, RegressionTarget):
            assert isinstance(calibration, RegressionCalibration)
            return predictive.epistemic_to_noise(outputs, members, target, calibration)
        assert not isinstance(calibration, RegressionCalibration)
        return predictive.mutual_information(outputs, members, calibration)

    def outputs(self, weights: WeightSet, x: Float32) -> Float32:
        """The network's outputs (S, B, O) for encoded rows x (B, ...), finite or not."""
        parts = list(self.engine.outputs(weights, x, self._run_size))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _outputs(self, weights: WeightSet, x: Float32) -> Iterable[Float32]:
        done = 0
        for part in self.engine.outputs(weights, x, self._run_size):
            finite = np.isfinite(part)
            if not finite.all():
                raise out_of_range(done + int(np.flatnonzero(~finite.all(axis=(0, 2)))[0]))
            done += part.shape[1]
            yield part


def out_of_range(row: int) -> InputError:
    """The error of a request whose row of this number overflows the network."""
    return InputError(
        f"Row {row} lies so far from the training data that the model's output is no finite number; "
        "send values nearer to it.",
        code="out_of_range",
        field=f"inputs[{row}]",
        expected="values for which the network's output is finite",
        got="values that overflow it",
    )


def _joined(parts: Iterable[Columns]) -> Columns:
    columns = list(parts)
    if len(columns) == 1:
        return columns[0]
    return {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
