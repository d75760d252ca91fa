"""Worked examples for the API's documentation: a 1-D regression, a table row and a picture's classes."""

from __future__ import annotations

from typing import Any, Final

_ABOUT: Final = {"version": 1, "samples": 32, "seed": 0}
_PROMISE: Final = {"points": 199, "highest_level": 0.995, "warning": None}

_UNFAMILIAR: Final[dict[str, Any]] = {
    "false_alarm_rate": 0.01,
    "calibration": {"points": 199, "lowest_false_alarm_rate": 0.005, "warning": None},
    "score": [0.51, 9.1],
    "p_value": [0.77, 0.005],
    "flag": [False, True],
    "detectors": {
        "epistemic_to_noise": {"score": [-2.1, 3.4], "p_value": [0.85, 0.005]},
        "nearest_rows": {"score": [-8.2, 4.6], "p_value": [0.4, 0.005]},
        "mahalanobis": {"score": [-1.6, 4.9], "p_value": [0.64, 0.005]},
    },
    "columns": [[{"column": "x", "deviation": -0.45}], [{"column": "x", "deviation": 11.6}]],
    "unseen": None,
}

PREDICT: Final[dict[str, Any]] = {
    "rows in column order": {"value": {"model": "snelson", "inputs": [[2.5], [9.0]]}},
    "rows by column name": {"value": {"model": "snelson@1", "inputs": [{"x": 2.5}, {"x": 9.0}], "level": 0.95}},
    "everything said": {
        "value": {
            "model": "snelson@champion",
            "inputs": [[2.5]],
            "samples": 64,
            "seed": 7,
            "level": 0.8,
            "quantiles": [0.05, 0.5, 0.95],
            "return": ["samples"],
            "ood": True,
            "false_alarm_rate": 0.05,
        }
    },
}

PREDICTED: Final[dict[str, Any]] = {
    "regression: inside the data, and far outside; asked with ood: true": {
        "value": {
            "model": "snelson",
            **_ABOUT,
            "task": "regression",
            "level": 0.9,
            "calibration": _PROMISE,
            "mean": [-0.62, 0.35],
            "variance": [0.09, 1.08],
            "epistemic_variance": [0.01, 1.0],
            "aleatoric_variance": [0.08, 0.08],
            "entropy": [0.21, 1.44],
            "interval": [[-1.11, -0.13], [-1.37, 2.07]],
            "ood": _UNFAMILIAR,
        }
    },
    "classification": {
        "value": {
            "model": "flowers",
            **_ABOUT,
            "task": "classification",
            "level": 0.9,
            "calibration": _PROMISE,
            "mean": [[0.9, 0.08, 0.02]],
            "variance": [[0.004, 0.003, 0.0004]],
            "label": ["setosa"],
            "entropy": [0.375],
            "expected_entropy": [0.34],
            "mutual_information": [0.035],
            "prediction_set": [["setosa"]],
        }
    },
}

OOD: Final[dict[str, Any]] = {"two rows": {"value": {"model": "snelson", "inputs": [[2.5], [30.0]]}}}

SCORED: Final[dict[str, Any]] = {"the second row is far out": {"value": {"model": "snelson", **_ABOUT, **_UNFAMILIAR}}}

FEEDBACK: Final[dict[str, Any]] = {
    "by the id of the prediction": {
        "value": {"request_id": "0f6e1c1b5d0c4f6f9b5f2a4e8d3c7b1a", "targets": [-0.7, 0.9]}
    },
    "with the inputs again": {"value": {"model": "snelson", "inputs": [[2.5], [9.0]], "targets": [-0.7, 0.9]}},
}

TAKEN: Final[dict[str, Any]] = {
    "intervals hold what they should": {
        "value": {
            "model": "snelson",
            "version": 1,
            "taken": 2,
            "scope": "process",
            "warning": None,
            "state": "kept",
            "rows": 2,
            "alarm_at_row": None,
            "evidence": 0.7,
            "evidence_for_alarm": 10000.0,
            "windows": [
                {"rows": 2, "coverage": {"0.8": 1.0, "0.9": 1.0, "0.95": 1.0}, "nll": 0.41, "ece": None},
            ],
            "ood": {"rows": 0, "flagged": None, "false_alarm_rate": 0.01},
        }
    }
}

ERROR: Final[dict[str, Any]] = {
    "wrong width": {
        "value": {
            "error": {
                "code": "wrong_width",
                "message": "Row 0 has 2 values; the model takes 1.",
                "field": "inputs[0]",
                "expected": "1 values, the columns in order: x",
                "got": "2 values",
            }
        }
    }
}
