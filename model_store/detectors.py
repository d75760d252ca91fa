"""How unfamiliar rows are: the detectors of a bundle, side by side and combined, as the server answers and the report
shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.detection import Mahalanobis, NearestRows, Scaler, Surprise, combined, p_values
from model_store.encoding import TableEncoder
from model_store.manifest import DetectorName, InputSpec, OodDetection, TableInput

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_SHOWN_COLUMNS: Final = 3
_BLOCK_VALUES: Final = 2**21
"""Distances worked on at once."""


@dataclass(frozen=True)
class Unfamiliarity:
    """How unfamiliar B rows are.

    Attributes:
        score, p_value: (B,) of all detectors together.
        detectors: by name, scores and p-values (B,).
        columns: (B, K) indices of the table's columns that are furthest from what the others suggest, the furthest
            first; deviations: (B, K) by how many standard deviations. None where inputs have no columns or too many.
    """

    score: Float64
    p_value: Float64
    detectors: dict[DetectorName, tuple[Float64, Float64]]
    columns: NDArray[np.intp] | None
    deviations: Float64 | None


class Detectors:
    """The detectors of one bundle, ready to score."""

    def __init__(self, ood: OodDetection, inputs: InputSpec, arrays: dict[str, NDArray[Any]]) -> None:
        """Args:
        arrays: those of `ARRAYS_FILE` that detectors need.
        """
        self._familiar: Float64 = arrays["ood_combined"]
        self._names = ood.detectors
        self._scores: Float64 = arrays["ood_scores"]
        self._surprises = [Surprise(scores) for scores in self._scores]
        self._scaler: Scaler | None = None
        self._nearest: NearestRows | None = None
        self._mahalanobis: Mahalanobis | None = None
        if "ood_scale" in arrays and isinstance(inputs, TableInput):
            self._scaler = Scaler(arrays["ood_center"], arrays["ood_scale"])
            if "nearest_rows" in self._names:
                self._nearest = NearestRows(arrays["ood_rows"])
            if "mahalanobis" in self._names:
                self._mahalanobis = Mahalanobis(arrays["ood_precision"], TableEncoder(inputs).groups)

    @property
    def ask_the_network(self) -> bool:
        """Whether some detector needs the network's outputs."""
        return bool({"epistemic_to_noise", "mutual_information"} & set(self._names))

    @property
    def points(self) -> int:
        """Familiar rows that stand behind p-values."""
        return len(self._familiar)

    def judge(self, x: Float32, epistemic: Float64 | None) -> Unfamiliarity:
        """How unfamiliar encoded rows x (B, ...) are.

        Args:
            epistemic: (B,) the network's score of them, where it is asked.
        """
        found: dict[DetectorName, Float64] = {}
        if epistemic is not None:
            found["epistemic_to_noise"] = found["mutual_information"] = epistemic
        columns = deviations = None
        if self._scaler is not None:
            u = self._scaler(x)
            if self._nearest is not None:
                step = max(1, _BLOCK_VALUES // len(self._nearest.rows))
                parts = [self._nearest.scores(u[i : i + step]) for i in range(0, len(u), step)]
                found["nearest_rows"] = np.concatenate(parts)
            if self._mahalanobis is not None:
                found["mahalanobis"], every = self._mahalanobis(u)
                columns = np.argsort(-np.abs(every), axis=1, kind="stable")[:, :_SHOWN_COLUMNS]
                deviations = every[np.arange(len(x))[:, None], columns]
        score = combined([s(found[name]) for name, s in zip(self._names, self._surprises, strict=True)])
        each = {
            name: (found[name], p_values(found[name], familiar))
            for name, familiar in zip(self._names, self._scores, strict=True)
        }
        return Unfamiliarity(score, p_values(score, self._familiar), each, columns, deviations)
