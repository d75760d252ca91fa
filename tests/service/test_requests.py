"""Every bad request, over the wire: status, error shape, code and message."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.described import CODES
from service.schemas import ClassificationAnswer, ErrorAnswer, OodAnswer, RegressionAnswer
from tests.servers import Server, wait_until

GOOD = {"inputs": [[1.0, 2.0]], "model": "sine"}


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response that has this status and the one error shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = ErrorAnswer.model_validate(response.json()).error.model_dump()
    assert error["message"].endswith(".")
    assert error["code"] in CODES.get(status, [error["code"]]), "undocumented"
    return error


def with_(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


CASES: list[tuple[str, bytes, int, str, str | None, list[str]]] = [
    ("no body", b"", 400, "empty_body", None, ["no body", '"inputs"']),
    ("blank body", b" \n ", 400, "empty_body", None, ["no body"]),
    ("cut off", b'{"inputs": [[1,', 400, "invalid_json", None, ["not valid JSON", "line 1 column"]),
    ("no JSON", b"inputs=1", 400, "invalid_json", None, ["line 1 column 1"]),
    ("no UTF-8", b'{"inputs": "\xff"}', 400, "invalid_json", None, ["not valid JSON", "not in UTF-8"]),
    ("UTF-16", with_().decode().encode("utf-16"), 400, "invalid_json", None, ["not in UTF-8; encode it so"]),
    ("UTF-16 bare", with_().decode().encode("utf-16-be"), 400, "invalid_json", None, ["object in UTF-8"]),
    ("two byte order marks", b"\xef\xbb\xbf" * 2 + b"{}", 400, "invalid_json", None, ["line 1 column 1"]),
    ("a byte order mark", b"\xef\xbb\xbf", 400, "empty_body", None, ["no body"]),
    ("two values", b"{} {}", 400, "invalid_json", None, ["trailing"]),
    ("deep", b"[" * 5000, 400, "invalid_json", None, ["recursion limit"]),
    ("lone surrogate", b'{"inputs": "\\ud800"}', 400, "invalid_json", None, ["not valid JSON"]),
    ("endless integer", b'{"seed": ' + b"9" * 5000 + b"}", 400, "invalid_json", None, ["number out of range"]),
    ("array", b"[[1, 2]]", 400, "not_an_object", None, ["must be a JSON object", "an array of 1"]),
    ("string", b'"hello"', 400, "not_an_object", None, ['"hello"']),
    ("null", b"null", 400, "not_an_object", None, ["null"]),
    ("unknown field", with_(sample=3), 422, "unknown_field", "sample", ['"sample"', "samples"]),
    ("no inputs", b'{"model": "sine"}', 422, "missing_field", "inputs", ["lacks the field inputs"]),
    ("inputs null", with_(inputs=None), 422, "wrong_type", "inputs", ["array of rows", "null"]),
    ("inputs object", with_(inputs={"x": [1]}), 422, "wrong_type", "inputs", ["an object of 1 fields"]),
    ("empty batch", with_(inputs=[]), 422, "empty_batch", "inputs", ["no row", "1 to 100 rows"]),
    ("too many rows", with_(inputs=[[1, 2]] * 101), 422, "too_many_rows", "inputs", ["101 rows", "at most 100"]),
    ("quantiles no array", with_(quantiles=0.5), 422, "wrong_type", "quantiles", ["array of numbers", "0.5"]),
    ("no quantiles", with_(quantiles=[]), 422, "bad_quantiles", "quantiles", ["1 to 100"]),
    ("many quantiles", with_(quantiles=[0.5] * 101), 422, "bad_quantiles", "quantiles", ["an array of 101"]),
    ("quantile 1", with_(quantiles=[0.5, 1]), 422, "bad_quantiles", "quantiles[1]", ["between 0 and 1"]),
    ("quantile NaN", with_(quantiles=[float("nan")]), 422, "not_finite", "quantiles[0]", ["finite", "NaN"]),
    ("quantile text", with_(quantiles=["0.5"]), 422, "wrong_type", "quantiles[0]", ['"0.5"']),
    ("return text", with_(**{"return": "samples"}), 422, "wrong_type", "return", ["array of names"]),
    ("return what", with_(**{"return": ["weights"]}), 422, "bad_return", "return[0]", ['"weights"', '"samples"']),
    ("wrong width", with_(inputs=[[1, 2], [1, 2, 3]]), 422, "wrong_width", "inputs[1]", ["Row 1 has 3", "x, t"]),
    ("string", with_(inputs=[[1, "2"]]), 422, "wrong_type", "inputs[0][1]", ["Column 't' in row 0", '"2"']),
    ("null value", with_(inputs=[[None, 2]]), 422, "wrong_type", "inputs[0][0]", ["Column 'x'", "null"]),
    ("boolean", with_(inputs=[[1, True]]), 422, "wrong_type", "inputs[0][1]", ["'t'", "true"]),
    ("NaN", with_(inputs=[[float("nan"), 1]]), 422, "not_finite", "inputs[0][0]", ["'x'", "finite", "NaN"]),
    ("infinity", with_(inputs=[[1, float("inf")]]), 422, "not_finite", "inputs[0][1]", ["'t'", "Infinity"]),
    (
        "1e999",
        b'{"inputs": [[1, -1e999]], "model": "sine"}',
        422,
        "not_finite",
        "inputs[0][1]",
        ["finite", "-Infinity"],
    ),
    ("huge integer", with_(inputs=[[10**400, 1]]), 422, "not_finite", "inputs[0][0]", ["an integer of 1329 bits"]),
    ("beyond float32", with_(inputs=[[1e300, 1]]), 422, "out_of_range", "inputs[0][0]", ["'x'", "too large"]),
    ("unknown column", with_(inputs=[{"x": 1, "z": 2}]), 422, "unknown_column", "inputs[0]", ['"z"', "x, t"]),
    ("missing column", with_(inputs=[{"x": 1}]), 422, "missing_column", "inputs[0].t", ["lacks the column 't'"]),
    (
        "wrong image",
        with_(inputs=[[0] * 15], model="digits"),
        422,
        "wrong_width",
        "inputs[0]",
        ["15 entries", "[1, 4, 4]"],
    ),
    ("unknown model", with_(model="nix"), 404, "unknown_model", "model", ["no model 'nix'", "prices, sine"]),
    ("unknown version", with_(model="sine@9"), 404, "unknown_model", "model", ["'sine' has no version or alias '9'"]),
    ("unknown alias", with_(model="sine@best"), 404, "unknown_model", "model", ["'best'"]),
    ("no version", with_(model="sine@"), 404, "unknown_model", "model", ["'sine'"]),
    ("path for a model", with_(model="../store"), 404, "invalid_name", "model", ["cannot be a model's name"]),
    ("empty model", with_(model=""), 404, "invalid_name", "model", ["cannot be a model's name"]),
    ("long version", with_(model="sine@" + "9" * 5000), 422, "bad_model", "model", ["longer than any"]),
    ("model number", with_(model=3), 422, "wrong_type", "model", ["must be a string", "3"]),
    ("no model", b'{"inputs": [[1, 2]]}', 422, "model_required", "model", ["which model", "flowers, prices, sine"]),
    ("no samples", with_(samples=0), 422, "bad_samples", "samples", ["at least 1", "0"]),
    ("too many samples", with_(samples=65), 422, "too_many_samples", "samples", ["at most 64", "65"]),
    ("endless samples", with_(samples=10**400), 422, "too_many_samples", "samples", ["at most 64"]),
    ("samples fraction", with_(samples=2.5), 422, "wrong_type", "samples", ["whole number", "2.5"]),
    ("samples large float", with_(samples=1e300), 422, "wrong_type", "samples", ["whole number", "1e+300"]),
    ("samples true", with_(samples=True), 422, "wrong_type", "samples", ["whole number", "true"]),
    ("negative seed", with_(seed=-1), 422, "bad_seed", "seed", ["out of range", "-1"]),
    ("seed too large", with_(seed=2**63), 422, "bad_seed", "seed", [str(2**63 - 1)]),
    ("seed string", with_(seed="0"), 422, "wrong_type", "seed", ["whole number", '"0"']),
    ("level 0", with_(level=0), 422, "bad_level", "level", ["between 0 and 1"]),
    ("level 1", with_(level=1), 422, "bad_level", "level", ["between 0 and 1", "1"]),
    ("level 90", with_(level=90), 422, "bad_level", "level", ["90"]),
    ("level NaN", with_(level=float("nan")), 422, "not_finite", "level", ["finite", "NaN"]),
    ("empty_sets 1", with_(empty_sets=1), 422, "wrong_type", "empty_sets", ["true or false", "1"]),
    ("ood 1", with_(ood=1), 422, "wrong_type", "ood", ["true or false", "1"]),
    ("ood word", with_(ood="yes", false_alarm_rate=0.1), 422, "wrong_type", "ood", ["true or false", '"yes"']),
    ("level string", with_(level="0.9"), 422, "wrong_type", "level", ["level must be a number", '"0.9"']),
]


@pytest.mark.parametrize(
    ("body", "status", "code", "field", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
@pytest.mark.parametrize("path", ["/predict", "/ood"])
def test_bad_requests(
    client: httpx.Client, path: str, body: bytes, status: int, code: str, field: str | None, words: list[str]
) -> None:
    own = field.partition("[")[0] if field else None
    if path == "/ood" and own in {"level", "quantiles", "return", "empty_sets", "ood"}:
        code, field, words = "unknown_field", own, [f'"{own}"']
        status = 422
    error = refused(client.post(path, content=body), status)
    assert (error["code"], error["field"]) == (code, field)
    text = f"{error['message']} {error['expected']} {error['got']}"
    assert [w for w in words if w not in text] == []
    assert error["expected"] and error["got"] is not None


def test_a_category_that_the_model_was_not_built_with(client: httpx.Client) -> None:
    asked = {"inputs": [[1, 2, "Rom"]], "model": "prices"}
    error = refused(client.post("/predict", json=asked), 422)
    assert (error["code"], error["field"]) == ("unknown_category", "inputs[0][2]")
    assert "'town'" in error["message"] and "Aachen, Bonn, Köln" in error["expected"] and error["got"] == '"Rom"'
    assert client.post("/ood", json=asked).json()["unseen"] == [["town"]]


@pytest.mark.parametrize(
    ("rate", "code"), [(0, "bad_false_alarm_rate"), (1.5, "bad_false_alarm_rate"), ("1%", "wrong_type")]
)
def test_bad_false_alarm_rates(client: httpx.Client, rate: Any, code: str) -> None:
    for path, more in (("/ood", {}), ("/predict", {"ood": True})):
        error = refused(client.post(path, json=GOOD | more | {"false_alarm_rate": rate}), 422)
        assert (error["code"], error["field"]) == (code, "false_alarm_rate")


@pytest.mark.parametrize("more", [{}, {"ood": False}, {"ood": None}])
def test_a_false_alarm_rate_without_flags(client: httpx.Client, more: dict[str, Any]) -> None:
    error = refused(client.post("/predict", json=GOOD | more | {"false_alarm_rate": 0.05}), 422)
    assert (error["code"], error["field"]) == ("bad_false_alarm_rate", "false_alarm_rate")
    assert "add ood: true" in error["message"] and error["got"] == "0.05"


def test_a_whole_number_may_be_written_as_another(client: httpx.Client) -> None:
    """As languages do that know one kind of number."""
    written = client.post("/predict", content=json.dumps(GOOD | {"seed": 7.0, "samples": 8.0}))
    assert written.json() == client.post("/predict", json=GOOD | {"seed": 7, "samples": 8}).json()


def test_a_class_has_no_quantiles(client: httpx.Client) -> None:
    asked = {"inputs": [[1.0, 2.0, 3.0, 4.0]], "model": "flowers", "quantiles": [0.5]}
    error = refused(client.post("/predict", json=asked), 422)
    assert (error["code"], error["field"]) == ("bad_quantiles", "quantiles") and "class" in error["message"]


def test_a_number_has_no_set_of_classes(client: httpx.Client) -> None:
    error = refused(client.post("/predict", json=GOOD | {"empty_sets": True}), 422)
    assert (error["code"], error["field"]) == ("bad_empty_sets", "empty_sets") and "number" in error["message"]
    assert client.post("/predict", json=GOOD | {"empty_sets": False}).status_code == 200


def test_samples_of_many_rows_are_too_many_numbers(client: httpx.Client) -> None:
    def ask(rows: int) -> httpx.Response:
        asked = {"inputs": [[0.0] * 16] * rows, "model": "digits", "samples": 50, "return": ["samples"]}
        return client.post("/predict", json=asked)

    assert ask(10).status_code == 200
    error = refused(ask(11), 422)
    assert error["code"] == "too_many_values" and "2200" in error["message"] and "2000" in error["expected"]


def test_a_body_over_the_limit(client: httpx.Client) -> None:
    error = refused(client.post("/predict", content=b" " * 20_001), 413)
    assert error["code"] == "body_too_large"
    assert "20000 bytes" in error["expected"]
    assert client.post("/predict", json=GOOD).status_code == 200


def test_a_body_of_undeclared_length_over_the_limit(client: httpx.Client) -> None:
    error = refused(client.post("/ood", content=(b" " * 5000 for _ in range(5))), 413)
    assert error["code"] == "body_too_large"


def test_a_body_that_lies_about_its_length(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as s:
        s.sendall(head + b"{")
        assert s.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_goes_away_costs_nothing(server: Server, client: httpx.Client) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as s:
        s.sendall(b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{")
    assert client.post("/predict", json=GOOD, headers={"X-Request-ID": "the-one-after"}).status_code == 200
    wait_until(lambda: "the-one-after" in server.log)
    assert "request_failed" not in server.log


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/predict", 405, "method_not_allowed"),
        ("DELETE", "/models/sine", 405, "method_not_allowed"),
        ("PUT", "/predict", 405, "method_not_allowed"),
        ("POST", "/predict/", 404, "not_found"),
        ("GET", "/nothing/here", 404, "not_found"),
        ("GET", "/models/nix", 404, "unknown_model"),
        ("GET", "/models/sine@7", 404, "unknown_model"),
        ("GET", "/models/.staging", 404, "invalid_name"),
        ("GET", "/models/%00", 404, "invalid_name"),
        ("GET", "/models/sine/files/nix.png", 404, "not_found"),
        ("GET", "/models/sine/files/base.onnx", 404, "not_found"),
        ("GET", "/models/sine/files/..%2Fmanifest.json", 404, "not_found"),
        ("GET", "/models/..%2F..%2Fetc/files/passwd", 404, "not_found"),
        ("GET", "/models/sine@" + "9" * 5000, 404, "unknown_model"),
    ],
)
def test_wrong_paths_and_methods(client: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    error = refused(client.request(method, path), status)
    assert error["code"] == code
    assert len(error["message"]) < 400
    assert status != 405 or f"use {client.request(method, path).headers['allow']}." in error["message"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
ROW = st.lists(st.floats() | st.integers() | JSON, min_size=1, max_size=3) | st.fixed_dictionaries(
    {"x": st.floats() | JSON, "t": st.floats()}
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=2) | ROW, max_size=3) | JSON},
    optional={
        "model": st.sampled_from(["sine", "sine@1", "flowers", "prices"]) | st.text(max_size=8) | JSON,
        "samples": st.integers(-2, 70) | JSON,
        "seed": st.integers(0, 3) | st.integers() | JSON,
        "level": st.floats(0, 1) | JSON,
        "quantiles": st.lists(st.floats(0, 1)) | JSON,
        "return": st.just(["samples"]) | JSON,
        "false_alarm_rate": st.floats(0, 1) | JSON,
    },
)


def check_answer(response: httpx.Response) -> None:
    if response.status_code == 200:
        answer = json.loads(response.content, parse_constant=lambda name: pytest.fail(f"the answer holds {name}"))
        kind = RegressionAnswer if "interval" in answer else OodAnswer if "score" in answer else ClassificationAnswer
        kind.model_validate_json(response.content, strict=True)
    else:
        assert 400 <= response.status_code < 500, response.text
        refused(response, response.status_code)


@given(body=st.binary(max_size=200), path=st.sampled_from(["/predict", "/ood"]))
def test_any_bytes_get_an_answer_or_the_error_shape(client: httpx.Client, body: bytes, path: str) -> None:
    check_answer(client.post(path, content=body))


@given(content=JSON | REQUEST, path=st.sampled_from(["/predict", "/ood"]))
def test_any_json_gets_an_answer_or_the_error_shape(client: httpx.Client, content: Any, path: str) -> None:
    check_answer(client.post(path, content=json.dumps(content).encode()))
