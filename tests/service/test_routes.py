from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model_store.encoding import TableEncoder
from model_store.manifest import TableInput
from model_store.plan import draw_latents
from model_store.store import ModelStore
from service import examples
from service.engine import Engine
from service.schemas import (
    ClassificationAnswer,
    ErrorAnswer,
    ModelDetail,
    ModelList,
    OodAnswer,
    OodRequest,
    PredictRequest,
    Readiness,
    RegressionAnswer,
)
from tests import bundles
from tests.servers import Server, counter

INPUTS: dict[str, list[Any]] = {
    "sine": [[1, 2], [3.5, -2]],
    "prices": [[5, 80, "Bonn"], [9, 200.5, "Köln"]],
    "behind_a_trunk": [[5, 80, "Bonn"], [9, 200.5, "Köln"]],
    "flowers": [[5, 4], [0, 0]],
    "digits": [list(range(16)), [[[0, 1, 2, 3]] * 4]],
}
PATHS = {"/predict", "/ood", "/models", "/models/{name}", "/models/{name}/files/{file}"}
PATHS |= {"/healthz", "/readyz", "/metrics"}
ROWS = ["mean", "variance", "entropy"]
REGRESSION = [*ROWS, "epistemic_variance", "aleatoric_variance", "interval"]
CLASSIFICATION = [*ROWS, "label", "expected_entropy", "mutual_information"]


def ask(client: httpx.Client, path: str, **content: Any) -> dict[str, Any]:
    response = client.post(path, json=content)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    regression = content["model"] in {"sine", "prices", "behind_a_trunk"}
    schema = OodAnswer if path == "/ood" else RegressionAnswer if regression else ClassificationAnswer
    schema.model_validate_json(response.content, strict=True)
    return answer


@pytest.mark.parametrize("model", INPUTS)
def test_predictions_have_one_entry_a_row(client: httpx.Client, model: str) -> None:
    answer = ask(client, "/predict", inputs=INPUTS[model], model=model)
    regression = model in {"sine", "prices", "behind_a_trunk"}
    assert {k: answer[k] for k in ("model", "version", "samples", "seed", "level")} == {
        "model": model,
        "version": 1,
        "samples": 32,
        "seed": 0,
        "level": 0.9,
    }
    assert [len(answer[name]) for name in (REGRESSION if regression else CLASSIFICATION)] == [2] * 6


@pytest.mark.parametrize(("model", "trunk"), [("prices", False), ("behind_a_trunk", True)])
def test_predictions_are_those_of_the_posterior(client: httpx.Client, store: Path, model: str, trunk: bool) -> None:
    """The served numbers against the bundle's parts, put together in numpy."""
    bundle = ModelStore(store).open(model)
    m = bundle.manifest
    assert isinstance(m.inputs, TableInput) and m.target.task == "regression" and m.calibration.task == "regression"
    latents, anchors = draw_latents(m.latent.plans["predict"], bundle.arrays()["nodes"], 20, 5)
    weights = Engine(bundle).decode(latents, anchors)
    columns = [np.array(c, dtype=object) for c in zip(*INPUTS[model], strict=True)]
    x = TableEncoder(m.inputs).encode_columns(columns)
    y = m.target.mean + m.target.scale * bundles.forward(bundle, weights, x)[..., 0]

    answer = ask(client, "/predict", inputs=INPUTS[model], model=model, samples=20, seed=5, level=0.5)
    assert (answer["samples"], answer["seed"], answer["level"]) == (20, 5, 0.5)
    assert answer["mean"] == pytest.approx(y.mean(axis=0), rel=1e-5)
    assert answer["epistemic_variance"] == pytest.approx(y.var(axis=0), rel=1e-4)
    assert answer["variance"] == pytest.approx(y.var(axis=0) + m.calibration.noise_std**2, rel=1e-4)
    half = bundle.arrays()["interval_scores"][99] * np.sqrt(answer["variance"])
    assert np.diff(answer["interval"])[:, 0] == pytest.approx(2 * half, rel=1e-4)


def test_labels_keep_their_type(client: httpx.Client) -> None:
    assert set(ask(client, "/predict", inputs=INPUTS["flowers"], model="flowers")["label"]) <= {
        "setosa",
        "versicolor",
        "virginica",
    }
    digits = ask(client, "/predict", inputs=INPUTS["digits"], model="digits")
    assert [type(v) for v in digits["label"]] == [int, int]
    assert digits["label"] == np.argmax(digits["mean"], axis=1).tolist()


def test_the_seed_decides_the_samples(client: httpx.Client) -> None:
    def body(**more: Any) -> bytes:
        return client.post("/predict", json={"inputs": INPUTS["sine"], "model": "sine", **more}).content

    assert body() == body() == body(seed=0, samples=32, level=0.9) == body(seed=None, samples=None, level=None)
    assert body(seed=1) == body(seed=1)
    assert body(seed=1) != body()


def test_rows_do_not_influence_each_other(client: httpx.Client) -> None:
    rows = [[float(i), 1.0] for i in range(9)]
    together = ask(client, "/predict", inputs=rows, model="sine")["mean"]
    alone = [ask(client, "/predict", inputs=[row], model="sine")["mean"][0] for row in rows]
    assert together == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("model", INPUTS)
def test_ood_scores(client: httpx.Client, store: Path, model: str) -> None:
    answer = ask(client, "/ood", inputs=INPUTS[model], model=model)
    threshold = ModelStore(store).open(model).manifest.ood.threshold
    assert answer["threshold"] == [threshold] * 2
    assert answer["flag"] == [s > threshold for s in answer["score"]]
    assert answer["samples"] == 16  # the wider plan's own
    assert "level" not in answer


def test_ood_takes_the_detectors_plan(client: httpx.Client, store: Path) -> None:
    bundle = ModelStore(store).open("sine")
    m = bundle.manifest
    assert isinstance(m.inputs, TableInput) and m.target.task == "regression" and m.calibration.task == "regression"
    latents, anchors = draw_latents(m.latent.plans["ood"], bundle.arrays()["nodes"], 16, 0)
    x = TableEncoder(m.inputs).encode_matrix(np.array(INPUTS["sine"], dtype=float))
    y = m.target.scale * bundles.forward(bundle, Engine(bundle).decode(latents, anchors), x)[..., 0]
    within = np.mean([y[anchors == a].var(axis=0, ddof=1) for a in (0, 1)], axis=0)
    expected = np.log(within / m.calibration.noise_std**2)
    assert ask(client, "/ood", inputs=INPUTS["sine"], model="sine")["score"] == pytest.approx(expected, rel=1e-4)


def test_models(client: httpx.Client) -> None:
    listed = ModelList.model_validate(client.get("/models").json(), strict=True).models
    assert [m.name for m in listed] == ["behind_a_trunk", "digits", "flowers", "prices", "sine"]
    prices = listed[3]
    assert (prices.version, prices.versions, prices.task, prices.target) == (1, [1], "regression", "price")


def test_a_models_description(client: httpx.Client, store: Path) -> None:
    detail = ModelDetail.model_validate(client.get("/models/prices").json(), strict=True)
    assert detail.digest == ModelStore(store).open("prices").digest
    assert detail.card == "# prices\n\nA small model for price.\n"
    assert detail.metrics == [{"predictor": "posterior", "split": "test", "rows": 40, "values": {"nll": 1.25}}]
    assert [c["unit"] for c in detail.inputs["columns"]] == [None, "m²", None]
    assert detail.inputs["columns"][2]["categories"] == ["Aachen", "Bonn", "Köln"]
    assert detail.target["unit"] == "k€"
    assert detail.files == ["card.md", "posterior.png"]
    assert client.get("/models/prices@1").json() == detail.model_dump()


def test_files_of_a_model(client: httpx.Client) -> None:
    picture = client.get("/models/prices/files/posterior.png")
    assert (picture.content, picture.headers["content-type"]) == (bundles.picture(), "image/png")
    assert picture.headers["x-content-type-options"] == "nosniff"
    card = client.get("/models/prices/files/card.md")
    assert card.headers["content-type"] == "text/markdown; charset=utf-8"
    assert card.text.startswith("# prices")


def test_health(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = Readiness.model_validate(client.get("/readyz").json(), strict=True)
    assert (ready.status, len(ready.models), ready.problems) == ("ready", 5, [])


def test_the_start_page_names_the_models_and_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for name in INPUTS:
        assert f'<a href="models/{name}">' in page.text
    assert not re.search(r'(src|href)="?(https?:)?//', page.text)


def test_metrics_count(client: httpx.Client, server: Server) -> None:
    before = client.get("/metrics").text
    ask(client, "/predict", inputs=INPUTS["sine"], model="sine", seed=77)
    ask(client, "/predict", inputs=INPUTS["sine"], model="sine", seed=77)
    client.post("/predict", json={})
    client.get("/such/a/path")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")

    def grown(name: str, **labels: str) -> float:
        return counter(response.text, name, **labels) - counter(before, name, **labels)

    assert grown("fiberwalk_requests_total", route="/predict", status="200") == 2
    assert grown("fiberwalk_requests_total", route="/predict", status="422") == 1
    assert grown("fiberwalk_requests_total", route="other", status="404") == 1
    assert grown("fiberwalk_request_seconds_count", route="/predict") == 3
    assert grown("fiberwalk_rows_total", route="/predict", model="sine") == 4
    assert grown("fiberwalk_decodes_total", model="sine") == 1
    assert grown("fiberwalk_cache_hits_total", tier="process") == 1
    assert grown("fiberwalk_cache_misses_total", tier="process") == 1
    assert counter(response.text, "fiberwalk_models_loaded") == 5
    assert counter(response.text, "fiberwalk_cache_bytes") > 0
    assert "such" not in response.text


def test_request_ids(client: httpx.Client, server: Server) -> None:
    given = client.post("/predict", json={}, headers={"X-Request-ID": "abc-123.4"})
    assert given.headers["x-request-id"] == "abc-123.4"
    made = [client.get("/healthz").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    forged = client.get("/healthz", headers={"X-Request-ID": "a b; status=200"}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", forged)
    assert re.search(r"request .*path=/predict .*request_id=abc-123\.4 .*status=422", server.log)


def test_the_log_holds_no_inputs(client: httpx.Client, server: Server) -> None:
    ask(client, "/predict", inputs=[[123.456789, 0]], model="sine")
    client.post("/predict", json={"inputs": [["987.654321", 0]], "model": "sine"})
    assert "123.456789" not in server.log
    assert "987.654321" not in server.log


def test_the_documentation_describes_requests_and_answers(client: httpx.Client) -> None:
    assert "openapi.json" in client.get("/docs").text
    api = client.get("/openapi.json").json()
    assert set(api["paths"]) == PATHS
    for path in ("/predict", "/ood"):
        post = api["paths"][path]["post"]
        assert len(post["description"]) > 80
        content = post["requestBody"]["content"]["application/json"]
        assert content["schema"]["$ref"].rpartition("/")[2] in api["components"]["schemas"]
        assert content["examples"]
        assert post["responses"]["200"]["content"]["application/json"]["examples"]
        for status in ("400", "404", "413", "422", "503"):
            schema = post["responses"][status]["content"]["application/json"]["schema"]
            assert schema["$ref"].endswith("/ErrorAnswer")
    for schema in ("PredictRequest", "OodRequest", "RegressionAnswer", "ClassificationAnswer", "OodAnswer"):
        for name, field in api["components"]["schemas"][schema]["properties"].items():
            assert field.get("description", "").endswith("."), (schema, name)


def test_every_reference_of_the_documentation_leads_somewhere(client: httpx.Client) -> None:
    api = client.get("/openapi.json").json()
    found = set(re.findall(r'"#/components/schemas/(\w+)"', client.get("/openapi.json").text))
    assert found <= set(api["components"]["schemas"])


def test_the_examples_are_of_the_documented_shape() -> None:
    for example in examples.PREDICT.values():
        PredictRequest.model_validate(example["value"], strict=True)
    for example in examples.OOD.values():
        OodRequest.model_validate(example["value"], strict=True)
    for example in examples.SCORED.values():
        OodAnswer.model_validate(example["value"], strict=True)
    for example in examples.ERROR.values():
        ErrorAnswer.model_validate(example["value"], strict=True)
    regression, classification = (e["value"] for e in examples.PREDICTED.values())
    answer = RegressionAnswer.model_validate_json(json.dumps(regression), strict=True)
    assert answer.variance == pytest.approx(np.add(answer.epistemic_variance, answer.aleatoric_variance))
    label = ClassificationAnswer.model_validate(classification, strict=True)
    assert label.entropy == pytest.approx(np.add(label.expected_entropy, label.mutual_information))
    assert label.entropy[0] == pytest.approx(-sum(p * np.log(p) for p in label.mean[0]), abs=2e-3)
