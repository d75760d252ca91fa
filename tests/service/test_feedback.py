"""Targets over the wire: by a request's id or with the inputs again, and whatever a client may send instead."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model_store.errors import InputError
from model_store.store import ModelStore
from service import feedback
from service.feedback import Feedback
from service.remembered import Prediction, Remembered
from service.schemas import FeedbackAnswer, ModelHealth
from tests import bundles
from tests.servers import serving
from tests.service.test_requests import refused

ROWS = [[1.0, 2.0], [3.0, -1.0], [0.0, 0.5]]


@pytest.fixture
def client(store: Path) -> Iterator[httpx.Client]:
    """A client of a server of the test's own: what it was told is looked at."""
    with serving(store, max_rows=100, remember_bytes=20_000) as server, server.client() as found:
        yield found


@pytest.fixture(scope="module")
def untold(store: Path) -> Iterator[httpx.Client]:
    """A client of a server that is never told a target: all that it is sent is refused."""
    with serving(store, max_rows=100) as server, server.client() as found:
        yield found


def tell(client: httpx.Client, **content: Any) -> dict[str, Any]:
    response = client.post("/feedback", json=content)
    assert response.status_code == 200, response.text
    FeedbackAnswer.model_validate_json(response.content, strict=True)
    answer: dict[str, Any] = response.json()
    return answer


def health(client: httpx.Client, name: str) -> dict[str, Any]:
    response = client.get(f"/models/{name}/health")
    assert response.status_code == 200, response.text
    ModelHealth.model_validate_json(response.content, strict=True)
    answer: dict[str, Any] = response.json()
    return answer


def test_targets_by_the_requests_id(client: httpx.Client) -> None:
    predicted = client.post("/predict", json={"inputs": ROWS, "model": "sine", "level": 0.8})
    answer = predicted.json()
    (low, high), mean, variance = np.transpose(answer["interval"]), answer["mean"], np.array(answer["variance"])
    # Inside, just outside of the interval of level 0.8, and far outside of all.
    targets = [mean[0], high[1] + 1e-6, low[2] - 100]
    told = tell(client, request_id=predicted.headers["X-Request-ID"], targets=targets)
    (window,) = told["windows"]
    assert (told["taken"], told["rows"], told["state"], window["rows"]) == (3, 3, "kept", 3)
    assert window["coverage"] == pytest.approx({"0.8": 1 / 3, "0.9": 2 / 3, "0.95": 2 / 3})
    nll = 0.5 * np.log(2 * math.pi * variance) + 0.5 * (np.array(targets) - mean) ** 2 / variance
    assert window["nll"] == pytest.approx(nll.mean(), rel=1e-5) and window["ece"] is None
    assert health(client, "sine") == {k: v for k, v in told.items() if k != "taken"}
    assert health(client, "flowers")["state"] == "unknown"


def test_targets_with_the_inputs_again_are_the_same(client: httpx.Client) -> None:
    asked = {"inputs": ROWS, "model": "sine", "samples": 20, "seed": 3}
    predicted = client.post("/predict", json=asked)
    first = tell(client, request_id=predicted.headers["X-Request-ID"], targets=[0.0, 1.0, 2.0])
    second = tell(client, **asked, targets=[0.0, 1.0, 2.0])
    assert second["rows"] == 6
    assert second["windows"][0]["nll"] == pytest.approx(first["windows"][0]["nll"])
    assert second["windows"][0]["coverage"] == first["windows"][0]["coverage"]


def test_an_absurd_target_leaves_figures_that_are_numbers(client: httpx.Client) -> None:
    asked = {"inputs": ROWS, "model": "sine"}
    (window,) = tell(client, **asked, targets=[1e20, -1e308, 0.0])["windows"]
    assert window["nll"] > 1e20 and window["coverage"]["0.9"] == pytest.approx(1 / 3)
    assert tell(client, **asked, targets=[0.0] * 3)["windows"][0]["nll"] < window["nll"]


def test_targets_of_classes(client: httpx.Client) -> None:
    answer = client.post("/predict", json={"inputs": [[5, 4], [0, 0]], "model": "flowers"}).json()
    names = ["setosa", "versicolor", "virginica"]
    told = tell(client, inputs=[[5, 4], [0, 0]], model="flowers", targets=["versicolor", "setosa"])
    p = [answer["mean"][0][1], answer["mean"][1][0]]
    (window,) = told["windows"]
    assert window["nll"] == pytest.approx(-np.log(p).mean(), rel=1e-5)
    held = [t in s for t, s in zip(["versicolor", "setosa"], answer["prediction_set"], strict=True)]
    assert window["coverage"]["0.9"] == np.mean(held)
    confidence = np.max(answer["mean"], axis=1)
    right = [names[int(np.argmax(m))] == t for m, t in zip(answer["mean"], ["versicolor", "setosa"], strict=True)]
    bins = (confidence * 15).astype(int)
    gaps = [abs(sum(r - c for r, c, b in zip(right, confidence, bins, strict=True) if b == k)) for k in set(bins)]
    assert window["ece"] == pytest.approx(sum(gaps) / 2, rel=1e-5)


def test_classes_are_numbers_where_they_were(client: httpx.Client) -> None:
    asked = {"inputs": [[0.0] * 16], "model": "digits"}
    assert tell(client, **asked, targets=[3])["taken"] == 1
    for wrong in (4, "3", True, None, 3.5):
        error = refused(client.post("/feedback", json={**asked, "targets": [wrong]}), 422)
        assert (error["code"], error["field"], error["expected"]) == ("unknown_class", "targets[0]", "0, 1, 2, 3")


def test_broken_calibration_is_told_everywhere(client: httpx.Client) -> None:
    rows = [[float(i), 1.0] for i in range(100)]
    far = tell(client, inputs=rows, model="sine", targets=[1e6] * 100)
    assert far["state"] == "broken" and 1 <= far["alarm_at_row"] <= 20
    assert far["evidence"] > far["evidence_for_alarm"]
    text = client.get("/metrics").text
    assert 'fiberwalk_calibration_broken{model="sine"} 1.0' in text
    assert 'fiberwalk_coverage{level="0.9",model="sine"} 0.0' in text
    assert 'fiberwalk_feedback_rows_total{model="sine"} 100.0' in text


def test_unfamiliar_rows_are_counted(client: httpx.Client) -> None:
    flags = client.post("/ood", json={"inputs": [[v, v] for v in range(40)], "model": "sine"}).json()["flag"]
    found = health(client, "sine")["ood"]
    assert found == {"rows": 40, "flagged": np.mean(flags), "false_alarm_rate": 0.05}
    # Predictions count where they were asked to tell, at the model's own rate whatever rate was asked.
    client.post("/predict", json={"inputs": [[3.0, 3.0]] * 10, "model": "sine"})
    asked = {"inputs": [[3.0, 3.0]] * 10, "model": "sine", "ood": True, "false_alarm_rate": 0.9}
    flags += [p <= 0.05 for p in client.post("/predict", json=asked).json()["ood"]["p_value"]]
    assert health(client, "sine")["ood"] == {"rows": 50, "flagged": np.mean(flags), "false_alarm_rate": 0.05}


# ---- what else a client may send


def test_targets_come_once(client: httpx.Client) -> None:
    asked = {"inputs": ROWS, "model": "sine"}
    request_id = client.post("/predict", json=asked).headers["X-Request-ID"]
    content = {"request_id": request_id, "targets": [0.0, 0.0, 0.0]}
    # A wrong one does not use it up.
    error = refused(client.post("/feedback", json=content | {"targets": [0.0]}), 422)
    assert error["code"] == "wrong_length" and error["expected"] == "3 targets"
    tell(client, **content)
    error = refused(client.post("/feedback", json=content), 404)
    assert error["code"] == "unknown_request" and "already" in error["message"]
    assert health(client, "sine")["rows"] == 3


def test_a_million_ids_are_answered_within_bounded_memory(client: httpx.Client) -> None:
    first = client.post("/predict", json={"inputs": ROWS, "model": "sine"}).headers["X-Request-ID"]
    for _ in range(100):
        client.post("/predict", json={"inputs": ROWS, "model": "sine"})
    last = client.post("/predict", json={"inputs": ROWS, "model": "sine"}).headers["X-Request-ID"]
    error = refused(client.post("/feedback", json={"request_id": first, "targets": [0.0] * 3}), 404)
    assert error["got"] == f'"{first}"'
    assert tell(client, request_id=last, targets=[0.0] * 3)["rows"] == 3
    # Each takes half a kilobyte, of which a megabyte is kept.
    kept = Remembered(2**20)
    prediction = Prediction("m@1", "ab" * 32, np.zeros(1), np.ones(1))
    for i in range(1_000_000):
        kept.put(str(i), prediction)
    found = [i for i in range(1_000_000) if kept.get(str(i)) is not None]
    assert found == list(range(1_000_000 - 2**20 // prediction.size, 1_000_000))


def test_what_does_not_fit_is_not_kept() -> None:
    kept = Remembered(1000)
    kept.put("small", Prediction("m@1", "ab" * 32, np.zeros(10), None))
    kept.put("large", Prediction("m@1", "ab" * 32, np.zeros(1000), None))
    assert kept.get("large") is None
    # It takes nobody's place.
    assert kept.get("small") is not None
    kept.put("again", Prediction("m@1", "ab" * 32, np.zeros(1), None))
    kept.put("again", Prediction("m@1", "ab" * 32, np.ones(1), None))
    found = kept.get("again")
    assert found is not None and found.mean[0] == 1
    assert kept.forget("again", found.token) and not kept.forget("again", found.token)


def test_targets_of_a_prediction_do_not_use_up_a_later_one_of_its_id() -> None:
    kept = Remembered(10_000)
    first, later = (Prediction("m@1", "ab" * 32, np.full(1, value), None) for value in (0.0, 1.0))
    kept.put("same", first)
    assert kept.forget("same", first.token)
    kept.put("same", later)
    # As a second telling of the first would, that was under way when the later one was made.
    assert not kept.forget("same", first.token)
    assert kept.get("same") is later


@pytest.mark.parametrize(
    ("content", "status", "code", "field"),
    [
        ({"request_id": "nothing", "targets": [1]}, 404, "unknown_request", "request_id"),
        ({"request_id": 7, "targets": [1]}, 422, "wrong_type", "request_id"),
        ({"request_id": "nothing", "targets": [1], "model": "sine"}, 422, "unknown_field", "model"),
        ({"request_id": "nothing"}, 422, "missing_field", "targets"),
        ({"request_id": "nothing", "targets": None}, 422, "wrong_type", "targets"),
        ({"request_id": "nothing", "targets": {}}, 422, "wrong_type", "targets"),
        ({"targets": [1]}, 422, "missing_field", "inputs"),
        ({"inputs": ROWS, "model": "sine", "targets": [1, 2]}, 422, "wrong_length", "targets"),
        ({"inputs": ROWS, "model": "sine", "targets": [1, 2, "3"]}, 422, "wrong_type", "targets[2]"),
        ({"inputs": ROWS, "model": "sine", "targets": [1, None, 3]}, 422, "wrong_type", "targets[1]"),
        ({"inputs": ROWS, "model": "sine", "targets": [1, 2, True]}, 422, "wrong_type", "targets[2]"),
        ({"inputs": ROWS, "model": "sine", "targets": [1, 2, 3], "level": 0.5}, 422, "unknown_field", "level"),
        ({"inputs": ROWS, "model": "nothing", "targets": [1, 2, 3]}, 404, "unknown_model", "model"),
        ({"inputs": [[1]], "model": "sine", "targets": [1]}, 422, "wrong_width", "inputs[0]"),
        ({"inputs": [[1, 2]] * 101, "model": "sine", "targets": [1] * 101}, 422, "too_many_rows", "inputs"),
    ],
)
def test_bad_feedback(untold: httpx.Client, content: dict[str, Any], status: int, code: str, field: str) -> None:
    error = refused(untold.post("/feedback", json=content), status)
    assert (error["code"], error["field"]) == (code, field)
    assert health(untold, "sine")["rows"] == 0


def test_the_health_of_an_unknown_model(untold: httpx.Client) -> None:
    assert refused(untold.get("/models/nothing/health"), 404)["code"] == "unknown_model"


def test_monitors_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service import feedback
    from service.metrics import ServiceMetrics
    from service.model import ServedModel
    from service.settings import Settings

    monkeypatch.setattr(feedback, "_MOST_MONITORS", 2)
    unused: Any = None
    found = Feedback(Settings(store=tmp_path), unused, ServiceMetrics())
    for name in ("a", "b", "c"):
        bundles.numeric_regression(name).publish(tmp_path)
    models = [ServedModel(ModelStore(tmp_path).open(name)) for name in ("a", "b", "c")]
    for model in models:
        found.scored(model, np.zeros(1))
    assert list(found._monitors) == [model.bundle.digest for model in models[1:]]


@pytest.mark.parametrize(("value", "classes"), [(True, [0, 1]), (1.0, [0, 1]), (1.0, [7, 1]), (1, [0, 1])])
def test_a_class_is_known_in_every_form_that_a_builder_takes(value: Any, classes: list[int | str]) -> None:
    assert feedback._class(value, 0, classes) == 1


@pytest.mark.parametrize(("value", "classes"), [(True, [7, 1]), ("1", [0, 1]), (0.5, [0, 1]), (1, ["0", "1"])])
def test_what_is_no_class_is_refused(value: Any, classes: list[int | str]) -> None:
    with pytest.raises(InputError, match="no such class"):
        feedback._class(value, 0, classes)
