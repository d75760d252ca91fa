"""A build from the logarithm of its target, from the file to the answers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import root_mean_squared_error

from builder.data import from_frame, prepare
from builder.pipeline import run_build
from tests.builder.builds import config, serve, table

pytestmark = pytest.mark.usefixtures("rough_pictures")


def test_figures_and_answers_are_of_the_target_itself(tmp_path: Path) -> None:
    frame = table()
    frame["y"] = np.exp(frame["y"] / 2)
    frame.to_csv(tmp_path / "table.csv", index=False)
    options = config(tmp_path, data={"test_fraction": 0.3, "log_target": True}, map={"steps": 150})
    manifest = (bundle := run_build(options).bundle).manifest
    test = frame[prepare(from_frame(frame, options.data), options.data, True, options.seed).test]
    answer = serve(bundle, test[["a", "colour"]].values.tolist())

    y, (low, high) = test["y"].to_numpy(), answer["interval"].T
    mean, variance = answer["log_mean"], answer["log_variance"]
    nll = 0.5 * np.log(2 * math.pi * variance) + 0.5 * (np.log(y) - mean) ** 2 / variance + np.log(y)
    metrics = {(m.predictor, m.split): m.values for m in manifest.metrics}
    assert metrics["posterior", "test"] == pytest.approx(
        {
            "nll": nll.mean(),
            "rmse": root_mean_squared_error(y, answer["mean"]),
            "coverage_90": ((low <= y) & (y <= high)).mean(),
            "width_90": (high - low).mean(),
        },
        rel=1e-3,
    )
    # Rows of the same kind have about the same, in the same units.
    assert metrics["posterior", "out_of_fold"]["nll"] == pytest.approx(nll.mean(), abs=0.5)
    assert (low > 0).all()
    report = (bundle.path / "report.html").read_text()
    assert "The network learns its logarithm" in report and "standard deviation of the logarithm" in report
