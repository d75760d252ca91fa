from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model_store.encoding import TableEncoder
from model_store.manifest import CategoricalColumn, RegressionTarget, TableInput
from model_store.plan import draw_latents
from model_store.store import ModelStore
from service.engine import Engine
from service.schemas import (
    ClassificationAnswer,
    ModelDetail,
    ModelList,
    OodAnswer,
    Readiness,
    RegressionAnswer,
)
from tests import bundles
from tests.servers import Server, counter, wait_until

INPUTS: dict[str, list[Any]] = {
    "sine": [[1, 2], [3.5, -2]],
    "prices": [[5, 80, "Bonn"], [9, 200.5, "Köln"]],
    "behind_a_trunk": [[5, 80, "Bonn"], [9, 200.5, "Köln"]],
    "flowers": [[5, 4], [0, 0]],
    "digits": [list(range(16)), [[[0, 1, 2, 3]] * 4]],
}
PATHS = {"/predict", "/ood", "/feedback", "/models", "/models/{name}", "/models/{name}/files/{file}"}
PATHS |= {"/models/{name}/health", "/models/{name}/report"}
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
    parts = Engine(bundle).decode(latents, anchors)
    columns = [np.array(c, dtype=object) for c in zip(*INPUTS[model], strict=True)]
    x = TableEncoder(m.inputs).encode_columns(columns)
    y = m.target.mean + m.target.scale * bundles.forward(bundle, parts, x)[..., 0]

    answer = ask(client, "/predict", inputs=INPUTS[model], model=model, samples=20, seed=5, level=0.5)
    assert (answer["samples"], answer["seed"], answer["level"]) == (20, 5, 0.5)
    assert answer["mean"] == pytest.approx(y.mean(axis=0), rel=1e-5)
    assert answer["epistemic_variance"] == pytest.approx(y.var(axis=0), rel=1e-4)
    assert answer["variance"] == pytest.approx(y.var(axis=0) + m.calibration.noise_std**2, rel=1e-4)
    half = bundle.arrays()["conformity_scores"][99] * np.sqrt(answer["variance"])
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
    bundle = ModelStore(store).open(model)
    arrays, described = bundle.arrays(), bundle.manifest.ood
    answer = ask(client, "/ood", inputs=INPUTS[model], model=model)
    assert answer["false_alarm_rate"] == described.false_alarm_rate == 0.05
    assert list(answer["detectors"]) == described.detectors
    familiar = dict(zip(described.detectors, arrays["ood_scores"], strict=True)) | {None: arrays["ood_combined"]}
    for name, said in [*answer["detectors"].items(), (None, answer)]:
        assert said["p_value"] == pytest.approx([(1 + (familiar[name] >= s).sum()) / 200 for s in said["score"]])
    assert answer["flag"] == [p <= 0.05 for p in answer["p_value"]]
    assert answer["calibration"] == {"points": 199, "lowest_false_alarm_rate": 1 / 200, "warning": None}
    assert answer["samples"] == 32
    assert "level" not in answer


@pytest.mark.parametrize("model", INPUTS)
def test_predictions_say_on_demand_what_ood_says(client: httpx.Client, model: str) -> None:
    asked = {"inputs": INPUTS[model], "model": model, "samples": 20, "seed": 3}
    plain, more = ask(client, "/predict", **asked), ask(client, "/predict", **asked, ood=True)
    alone = ask(client, "/ood", **asked)
    assert {k: more[k] for k in plain} == plain and set(more) == {*plain, "ood"}
    assert more["ood"] == {k: alone[k] for k in alone if k not in {"model", "version", "samples", "seed"}}
    strict = ask(client, "/predict", **asked, ood=True, false_alarm_rate=0.5)["ood"]
    assert strict["false_alarm_rate"] == 0.5 and strict["flag"] == [p <= 0.5 for p in strict["p_value"]]


def test_a_planted_outlier_names_its_column(client: httpx.Client) -> None:
    """Each column of a familiar row in turn, far from what it is anywhere else."""
    for name, value, sign in (("rooms", -40, -1), ("area", 1500.0, 1)):
        row = {"rooms": 6, "area": 90, "town": "Bonn"}
        answer = ask(client, "/ood", inputs=[row, row | {name: value}], model="prices")
        assert answer["flag"] == [False, True]
        first = answer["columns"][1][0]
        assert first["column"] == name and first["deviation"] * sign > 10
        assert len(answer["columns"][0]) == 3
        assert all(abs(c["deviation"]) < 3 for c in answer["columns"][0])
    assert ask(client, "/ood", inputs=INPUTS["digits"], model="digits")["columns"] is None


def test_a_row_of_an_unseen_category_is_flagged_and_its_column_named(client: httpx.Client) -> None:
    rows = [[6, 90, "Bonn"], [6, 90, "Ulm"], {"rooms": 6, "area": 90, "town": None}]
    scored = ask(client, "/ood", inputs=rows, model="prices")
    assert scored["unseen"] == [[], ["town"], ["town"]] and scored["flag"] == [False, True, True]
    assert scored["p_value"][1] == scored["calibration"]["lowest_false_alarm_rate"]
    assert ask(client, "/ood", inputs=rows[:1], model="prices")["unseen"] is None
    assert ask(client, "/ood", inputs=rows, model="prices", false_alarm_rate=1e-6)["flag"] == [False, True, True]
    said = ask(client, "/predict", inputs=rows, model="prices", ood=True)
    assert said["ood"] == {k: scored[k] for k in said["ood"]}
    alone = ask(client, "/predict", inputs=rows[:1], model="prices")
    assert said["mean"][0] == pytest.approx(alone["mean"][0]) and len(said["interval"]) == 3
    # Without flags nothing would tell it from a row that the model knows.
    refused = client.post("/predict", json={"inputs": rows, "model": "prices"})
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert (error["code"], error["field"]) == ("unknown_category", "inputs[1][2]") and "ood: true" in error["message"]
    told = client.post("/feedback", json={"inputs": rows, "model": "prices", "targets": [1.0, 2.0, 3.0]}).json()
    assert told["taken"] == 3


def test_the_false_alarm_rate_is_the_requests(client: httpx.Client) -> None:
    def flags(rate: float) -> dict[str, Any]:
        rows = [[v, v] for v in np.linspace(0, 30, 40).tolist()]
        return ask(client, "/ood", inputs=rows, model="sine", false_alarm_rate=rate)

    rare, often = flags(0.01), flags(0.5)
    assert rare["score"] == often["score"] and rare["p_value"] == often["p_value"]
    assert sum(rare["flag"]) < sum(often["flag"])
    assert often["flag"] == [p <= 0.5 for p in often["p_value"]]
    # 199 rows cannot tell one in a thousand from none.
    never = flags(0.001)
    assert not any(never["flag"])
    assert "199 familiar rows" in never["calibration"]["warning"] and "0.005" in never["calibration"]["warning"]


def test_quantiles_and_samples_come_on_demand(client: httpx.Client) -> None:
    asked = {"inputs": INPUTS["sine"], "model": "sine", "level": 0.8}
    plain = ask(client, "/predict", **asked)
    more = ask(client, "/predict", **asked, quantiles=[0.9, 0.5, 0.1], **{"return": ["samples"]})
    assert {k: more[k] for k in plain} == plain
    assert [row[::-2] for row in more["quantiles"]] == [pytest.approx(ends) for ends in plain["interval"]]
    assert [row[1] for row in more["quantiles"]] == plain["mean"]
    draws = np.array(more["draws"])
    assert draws.shape == (2, 32)
    assert draws.mean(1) == pytest.approx(plain["mean"]) and draws.var(1) == pytest.approx(plain["epistemic_variance"])


def test_prediction_sets_grow_with_the_level(client: httpx.Client, store: Path) -> None:
    scores = ModelStore(store).open("flowers").arrays()["conformity_scores"]
    sizes = []
    for level, index in ((0.2, 39), (0.9, 179)):
        answer = ask(
            client, "/predict", inputs=INPUTS["flowers"], model="flowers", level=level, **{"return": ["samples"]}
        )
        for p, held, label in zip(answer["mean"], answer["prediction_set"], answer["label"], strict=True):
            names = ["setosa", "versicolor", "virginica"]
            inside = {c for c, v in zip(names, p, strict=True) if 1 - v <= scores[index]} | {label}
            assert set(held) == inside and held[0] == label
            assert [p[names.index(c)] for c in held] == sorted((p[names.index(c)] for c in held), reverse=True)
        sizes.append([len(held) for held in answer["prediction_set"]])
        assert np.array(answer["draws"]).mean(1) == pytest.approx(np.array(answer["mean"]))
    assert (np.array(sizes[0]) <= sizes[1]).all() and np.sum(sizes[0]) < np.sum(sizes[1])


def test_prediction_sets_may_be_empty_where_that_is_asked(client: httpx.Client) -> None:
    asked = {"inputs": INPUTS["flowers"], "model": "flowers", "level": 0.05}
    usual = ask(client, "/predict", **asked)
    empty = ask(client, "/predict", **asked, empty_sets=True)
    assert all(held == [label] for held, label in zip(usual["prediction_set"], usual["label"], strict=True))
    assert [] in empty["prediction_set"]
    assert empty | {"prediction_set": usual["prediction_set"]} == usual


@pytest.mark.parametrize(("model", "told"), [("sine", "as far as the worst"), ("flowers", "every class")])
def test_a_level_that_too_few_rows_stand_behind_is_told(client: httpx.Client, model: str, told: str) -> None:
    fine, beyond = (
        ask(client, "/predict", inputs=INPUTS[model], model=model, level=level)["calibration"]
        for level in (0.995, 0.996)
    )
    assert fine == {"points": 199, "highest_level": 0.995, "warning": None}
    assert "199 calibration rows cannot vouch for the level 0.996" in beyond["warning"] and told in beyond["warning"]


def test_a_quantile_that_too_few_rows_stand_behind_is_told(client: httpx.Client) -> None:
    answer = ask(client, "/predict", inputs=INPUTS["sine"], model="sine", quantiles=[0.999])
    assert "0.998" in answer["calibration"]["warning"]


def test_the_epistemic_score_is_that_of_the_posterior(client: httpx.Client, store: Path) -> None:
    bundle = ModelStore(store).open("sine")
    m = bundle.manifest
    assert isinstance(m.inputs, TableInput) and m.target.task == "regression" and m.calibration.task == "regression"
    latents, anchors = draw_latents(m.latent.plans["predict"], bundle.arrays()["nodes"], 32, 0)
    x = TableEncoder(m.inputs).encode_matrix(np.array(INPUTS["sine"], dtype=float))
    y = m.target.scale * bundles.forward(bundle, Engine(bundle).decode(latents, anchors), x)[..., 0]
    within = np.mean([y[anchors == a].var(axis=0, ddof=1) for a in (0, 1)], axis=0)
    expected = np.log(within / m.calibration.noise_std**2)
    found = ask(client, "/ood", inputs=INPUTS["sine"], model="sine")["detectors"]["epistemic_to_noise"]
    assert found["score"] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_models(client: httpx.Client) -> None:
    listed = ModelList.model_validate(client.get("/models").json(), strict=True).models
    assert [m.name for m in listed] == ["behind_a_trunk", "digits", "flowers", "prices", "sine"]
    prices = listed[3]
    assert (prices.version, prices.versions, prices.task, prices.target) == (1, [1], "regression", "price")


def test_a_models_description(client: httpx.Client, store: Path) -> None:
    detail = ModelDetail.model_validate_json(client.get("/models/prices").content, strict=True)
    assert detail.digest == ModelStore(store).open("prices").digest
    assert detail.card == "# prices\n\nA small model for price.\n"
    (figures,) = detail.metrics
    assert figures.model_dump() == {"predictor": "posterior", "split": "test", "rows": 40, "values": {"nll": 1.25}}
    assert isinstance(detail.inputs, TableInput) and isinstance(detail.target, RegressionTarget)
    assert [c.unit for c in detail.inputs.columns] == [None, "m²", None]
    (towns,) = (c.categories for c in detail.inputs.columns if isinstance(c, CategoricalColumn))
    assert towns == ["Aachen", "Bonn", "Köln"]
    assert detail.target.unit == "k€"
    assert detail.files == ["card.md", "posterior.png"]
    assert client.get("/models/prices@1").json() == detail.model_dump(mode="json")


def test_files_of_a_model(client: httpx.Client) -> None:
    picture = client.get("/models/prices/files/posterior.png")
    assert (picture.content, picture.headers["content-type"]) == (bundles.picture(), "image/png")
    assert picture.headers["x-content-type-options"] == "nosniff"
    card = client.get("/models/prices/files/card.md")
    assert card.headers["content-type"] == "text/markdown; charset=utf-8"
    assert card.text.startswith("# prices")


def test_the_report_is_a_page_that_may_do_nothing(client: httpx.Client) -> None:
    page = client.get("/models/prices@1/report")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text == "<!doctype html><title>prices</title>"
    policy = page.headers["content-security-policy"].split("; ")
    assert policy[0] == "default-src 'none'" and {"sandbox", "form-action 'none'", "base-uri 'none'"} <= set(policy)
    assert page.headers["x-content-type-options"] == "nosniff"
    assert client.get("/models/nothing/report").status_code == 404


def test_health(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = Readiness.model_validate(client.get("/readyz").json(), strict=True)
    assert (ready.status, len(ready.models), ready.problems) == ("ready", 5, [])


def test_the_start_page_names_the_models_and_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for name in INPUTS:
        assert f'<a href="models/{name}/report">' in page.text
    assert not re.search(r'(src|href)="?(https?:)?//', page.text)
    assert "Served: 5 of 5 models." in page.text and '<th scope="row"><a href="models/sine/report">' in page.text
    for address in re.findall(r'href="([^"]+)"', page.text):
        assert client.get(f"/{address}").status_code == 200, address


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
    line = r"request .*path=/predict .*request_id=abc-123\.4 .*status=422"
    wait_until(lambda: re.search(line, server.log) is not None, what="the line")


def test_the_log_holds_no_inputs(client: httpx.Client, server: Server) -> None:
    ask(client, "/predict", inputs=[[123.456789, 0]], model="sine")
    last = {"X-Request-ID": "the-last-of-them"}
    client.post("/predict", json={"inputs": [["987.654321", 0]], "model": "sine"}, headers=last)
    wait_until(lambda: "the-last-of-them" in server.log)
    assert "123.456789" not in server.log
    assert "987.654321" not in server.log
