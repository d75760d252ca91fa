"""The API's description and the page that shows it."""

from __future__ import annotations

import json
import re
from urllib.parse import urljoin

import httpx
import numpy as np
import pytest

from model_store import manifest
from service import examples
from service.request_schemas import FeedbackById, FeedbackWithInputs, OodRequest, PredictRequest
from service.schemas import ClassificationAnswer, ErrorAnswer, FeedbackAnswer, OodAnswer, RegressionAnswer

PATHS = {"/predict", "/ood", "/feedback", "/models", "/models/{name}", "/models/{name}/files/{file}"}
PATHS |= {"/models/{name}/health", "/models/{name}/report"}
PATHS |= {"/healthz", "/readyz", "/metrics"}
OPERATIONS = {"predict", "ood", "feedback", "list_models", "describe_model", "model_file", "model_report"}
OPERATIONS |= {"model_health", "healthz", "readyz", "metrics"}


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
    # Behind a proxy's prefix too, where what begins with a slash would be asked of the proxy's root.
    assert [urljoin("https://host/prefix/openapi.json", each["url"]) for each in api["servers"]] == [
        "https://host/prefix/"
    ]
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
        assert {p["name"] for p in post["parameters"]} == (fields.keys() - {"inputs"}) | {"X-Request-ID"}
        assert {"400", "403", "404", "413", "415", "422", "503"} <= post["responses"].keys()


def test_every_field_is_described(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert len(schemas) > 30
    bundle = {name for name in schemas if hasattr(manifest, name)}  # described as a whole
    assert all(schemas[name]["description"] for name in schemas)
    for schema in schemas.keys() - bundle:
        for name, field in schemas[schema].get("properties", {}).items():
            assert field.get("description", "").endswith("."), (schema, name)


def test_every_operation_tells_its_headers_and_errors(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path, operation in ((path, each) for path, methods in paths.items() for each in methods.values()):
        assert path in {"/healthz", "/readyz"} or "500" in operation["responses"]
        for status, answer in operation["responses"].items():
            headers = {"X-Request-ID", *(["Retry-After"] if status == "503" else [])}
            assert answer["headers"].keys() == headers, (path, status)
            assert answer["content"] and all("schema" in kind for kind in answer["content"].values())
            if status != "200" and (path, status) != ("/readyz", "503"):
                assert answer["content"].keys() == {"application/json"}, (path, status)
                assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")
    told = client.get("/models/nothing/report")
    assert told.status_code == 404 and told.headers["content-type"] == "application/json"


def test_clients_that_are_generated_have_names_and_types_to_go_by(client: httpx.Client) -> None:
    api = client.get("/openapi.json").json()
    names = [each["operationId"] for path in api["paths"].values() for each in path.values()]
    assert set(names) == OPERATIONS and len(names) == len(OPERATIONS)
    schemas = api["components"]["schemas"]
    # What a schema names is sent, by some clients always: a feedback by an id was refused for its seed.
    assert not re.search(r'"default"', json.dumps([schemas, api["paths"]]))
    answer = schemas["PredictAnswer"]
    assert answer["discriminator"]["propertyName"] == "task" and len(answer["oneOf"]) == 2
    assert schemas["ModelSummary"]["properties"]["task"]["enum"] == ["regression", "classification", None]
    assert schemas["PredictRequest"]["properties"]["model"]["type"] == ["string", "null"]
    assert schemas["RegressionAnswer"]["properties"]["quantiles"]["type"] == "array"  # absent, and never null
    assert schemas["RegressionAnswer"]["properties"]["mean"]["items"] == {"type": "number", "format": "double"}
    assert schemas["PredictRequest"]["properties"]["seed"]["format"] == "int64"
    assert not any(schemas[name].get("additionalProperties") is False for name in schemas if name.endswith("Answer"))
    asked = client.post("/predict", json={"inputs": [[1, 2]], "model": "sine"}, headers={"X-Request-ID": "mine"})
    assert (asked.json()["task"], asked.headers["x-request-id"]) == ("regression", "mine")
    fields = schemas["FeedbackById"]["properties"].keys()
    told = client.post("/feedback", json={name: {"request_id": "mine", "targets": [1.0]}[name] for name in fields})
    assert told.status_code == 200


def test_every_reference_of_the_documentation_leads_somewhere(client: httpx.Client) -> None:
    api = client.get("/openapi.json").json()
    found = set(re.findall(r'"#/components/schemas/(\w+)"', client.get("/openapi.json").text))
    assert found <= set(api["components"]["schemas"])


def test_the_examples_are_shown_as_they_are(client: httpx.Client) -> None:
    """With what is null in them, which their schemas ask for."""
    paths = client.get("/openapi.json").json()["paths"]
    for path, answers in (("/predict", examples.PREDICTED), ("/ood", examples.SCORED), ("/feedback", examples.TAKEN)):
        assert paths[path]["post"]["responses"]["200"]["content"]["application/json"]["examples"] == answers


def test_the_examples_are_of_the_documented_shape() -> None:
    by_id, again = (example["value"] for example in examples.FEEDBACK.values())
    FeedbackById.model_validate(by_id, strict=True)
    FeedbackWithInputs.model_validate(again, strict=True)
    for example in examples.TAKEN.values():
        FeedbackAnswer.model_validate(example["value"], strict=True)
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
