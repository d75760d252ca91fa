"""A model of its target's logarithm, served."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.schemas import RegressionAnswer
from tests import bundles
from tests.servers import serving

ROWS = [[1.0], [3.0], [5.0]]


def durations(**target_of: float) -> bundles.Parts:
    """What `sine` says, as the logarithm of a target."""
    sine = bundles.numeric_regression()
    target = sine.manifest.target.model_copy(update={"log": True, **target_of})
    return replace(sine, manifest=sine.manifest.model_copy(update={"name": "durations", "target": target}))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    store = tmp_path_factory.mktemp("store")
    durations().publish(store)
    bundles.numeric_regression("sine").publish(store)
    with serving(store) as server, server.client() as found:
        yield found


def predict(client: httpx.Client, model: str = "durations", **more: Any) -> tuple[dict[str, Any], str]:
    response = client.post("/predict", json={"model": model, "inputs": ROWS, **more})
    assert response.status_code == 200, response.text
    RegressionAnswer.model_validate_json(response.content, strict=True)
    return response.json(), response.headers["X-Request-ID"]


def test_answers_are_in_the_targets_own_units(client: httpx.Client) -> None:
    asked = {"quantiles": [0.05, 0.5, 0.95], "return": ["samples"], "ood": True}
    found, _ = predict(client, **asked)
    logs, _ = predict(client, "sine", **asked)
    assert found["log_mean"] == logs["mean"] and found["log_variance"] == logs["variance"]
    assert found["log_epistemic_variance"] == logs["epistemic_variance"]
    assert found["median"] == pytest.approx(np.exp(logs["mean"]))
    assert not {"median", "log_mean", "log_variance", "log_epistemic_variance"} & set(logs)
    assert found["interval"] == pytest.approx(np.exp(logs["interval"]))
    assert found["quantiles"] == pytest.approx(np.exp(logs["quantiles"]))
    assert np.mean(found["draws"], axis=1) == pytest.approx(found["mean"])
    assert found["ood"] == logs["ood"]
    assert client.get("/models/durations").json()["target"]["log"] is True


def test_feedback_is_of_the_target_itself(client: httpx.Client) -> None:
    found, request_id = predict(client)
    told = client.post("/feedback", json={"request_id": request_id, "targets": [1.1, 2.0, 0.7]}).json()
    mean, variance, y = np.array(found["log_mean"]), np.array(found["log_variance"]), np.log([1.1, 2.0, 0.7])
    nll = 0.5 * np.log(2 * math.pi * variance) + 0.5 * (y - mean) ** 2 / variance + y
    (window,) = told["windows"]
    assert window["nll"] == pytest.approx(nll.mean(), rel=1e-5)
    low, high = np.transpose(found["interval"])
    assert window["coverage"]["0.9"] == pytest.approx(np.mean((low <= np.exp(y)) & (np.exp(y) <= high)))


@pytest.mark.parametrize("targets", [[1.0, 0.0, 1.0], [1.0, -3.0, 1.0]])
def test_a_target_without_a_logarithm_is_refused(client: httpx.Client, targets: list[float]) -> None:
    before = client.get("/models/durations/health").json()
    response = client.post("/feedback", json={"model": "durations", "inputs": ROWS, "targets": targets})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["field"]) == (422, "not_positive", "targets[1]")
    assert client.get("/models/durations/health").json() == before


def test_rows_whose_prediction_is_no_number_are_scored_and_not_predicted(tmp_path: Path) -> None:
    far = [[1e6]]
    durations(scale=130.0).publish(tmp_path)
    with serving(tmp_path) as server, server.client() as client:
        refused = client.post("/predict", json={"inputs": [*ROWS, *far]})
        scored = client.post("/ood", json={"inputs": [*ROWS, *far]})
        assert client.post("/predict", json={"inputs": ROWS}).status_code == 200
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["field"]) == (422, "out_of_range", "inputs[3]")
    assert scored.status_code == 200 and scored.json()["flag"][3] is True
