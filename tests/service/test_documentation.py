"""The API's description and the page that shows it."""

from __future__ import annotations

import json
import re

import httpx
import numpy as np
import pytest

from service import examples
from service.schemas import (
    ClassificationAnswer,
    ErrorAnswer,
    OodAnswer,
    OodRequest,
    PredictRequest,
    RegressionAnswer,
)

PATHS = {"/predict", "/ood", "/feedback", "/models", "/models/{name}", "/models/{name}/files/{file}"}
PATHS |= {"/models/{name}/health", "/models/{name}/report"}
PATHS |= {"/healthz", "/readyz", "/metrics"}


def test_the_page_loads_all_it_needs_from_the_server(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200 and "openapi.json" in page.text
    assert '<html lang="en">' in page.text and "<title>fiberwalk: API documentation</title>" in page.text
    back, loaded = "./", re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    loaded.remove(back)
    assert "models/sine/report" in client.get(f"/{back}").text
    assert len(loaded) == 3
    kinds = {}
    for address in loaded:
        assert "//" not in address and not address.startswith("/")
        part = client.get(f"/{address}")
        assert part.status_code == 200 and len(part.content) > 1000
        kinds[address.rpartition(".")[2]] = part.headers["content-type"].partition(";")[0]
    assert kinds == {"js": "text/javascript", "css": "text/css", "png": "image/png"}
    missing = client.get("/docs/none.js")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "not_found"


def test_the_documentation_describes_requests_and_answers(client: httpx.Client) -> None:
    api = client.get("/openapi.json").json()
    assert set(api["paths"]) == PATHS
    for path in ("/predict", "/ood"):
        post = api["paths"][path]["post"]
        assert len(post["description"]) > 80
        content = post["requestBody"]["content"]["application/json"]
        assert content["schema"]["$ref"].rpartition("/")[2] in api["components"]["schemas"]
        assert content["examples"]
        assert post["responses"]["200"]["content"]["application/json"]["examples"]
        kinds = post["requestBody"]["content"]
        assert set(kinds) == {
            "application/json",
            "application/msgpack",
            "application/x-npy",
            "application/octet-stream",
        }
        packed = post["responses"]["200"]["content"]["application/msgpack"]
        for kind in (*[v for k, v in kinds.items() if k != "application/json"], packed):
            assert kind["schema"]["description"].endswith(".")
        fields = api["components"]["schemas"][f"{path[1:].title()}Request"]["properties"]
        assert {p["name"] for p in post["parameters"]} == fields.keys() - {"inputs"}
        # What a query has by default is sent with JSON too, where it is refused.
        assert all("default" not in p["schema"] for p in post["parameters"])
        for status in ("400", "403", "404", "413", "415", "422", "503"):
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
