"""One request in every format: the same answer, bit for bit; and how a format is chosen."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import httpx
import msgpack
import numpy as np
import pydantic_core
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_store.errors import InputError
from service.formats import Body, answer_type, content_of, to_json, to_msgpack
from service.inputs import NumericRows
from tests.service.test_requests import refused

MSGPACK = {"Content-Type": "application/msgpack"}
NPY = {"Content-Type": "application/x-npy"}
RNG = np.random.default_rng(0)
ROWS: dict[str, NDArray[np.float64]] = {
    "sine": RNG.normal(3, 2, (7, 2)),
    "flowers": RNG.normal(4, 1, (5, 2)),
    "digits": RNG.uniform(0, 16, (3, 1, 4, 4)),
}
ASKED: dict[str, Any] = {"samples": 20, "seed": 3, "level": 0.8, "return": ["samples"], "ood": True}
ASKED["false_alarm_rate"] = 0.1
QUERY = ASKED | {"return": "samples"}


def saved(array: NDArray[Any]) -> bytes:
    """A .npy file as numpy writes it."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def packed(array: NDArray[Any]) -> dict[str, Any]:
    """An array as msgpack has it."""
    return {"dtype": array.dtype.str, "shape": array.shape, "data": array.tobytes()}


def from_msgpack(value: Any, arrays: list[str], at: str = "") -> Any:
    """An answer with its arrays as JSON has them; where they were is added to `arrays`."""
    if isinstance(value, list):
        return [from_msgpack(each, arrays, at) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"dtype", "shape", "data"}:
        assert value["dtype"] == "<f8"
        arrays.append(at)
        return np.frombuffer(value["data"], "<f8").reshape(value["shape"]).tolist()
    return {k: from_msgpack(v, arrays, f"{at}.{k}") for k, v in value.items()}


# ---- the same answer


@pytest.mark.parametrize("model", ROWS)
def test_every_format_gets_the_same_answer(client: httpx.Client, model: str) -> None:
    x = ROWS[model]
    quantiles = {} if model != "sine" else {"quantiles": [0.05, 0.5]}
    expected = client.post("/predict", json={"inputs": x.tolist(), "model": model, **ASKED, **quantiles})
    assert expected.status_code == 200, expected.text
    query = {"model": model, **QUERY, **quantiles}
    for array in (x, np.asfortranarray(x), x.astype(">f8"), x.reshape(len(x), -1)):
        for kind in (NPY, {"Content-Type": "application/octet-stream; charset=binary"}):
            assert client.post("/predict", content=saved(array), params=query, headers=kind).content == expected.content
    for inputs in (x.tolist(), packed(x), packed(x.astype(">f8"))):
        body = msgpack.packb({"inputs": inputs, "model": model, **ASKED, **quantiles})
        assert client.post("/predict", content=body, headers=MSGPACK).content == expected.content


@pytest.mark.parametrize("dtype", ["<f4", "<i4", "|u1", "<u8"])
def test_other_numbers_mean_what_they_mean_in_json(client: httpx.Client, dtype: str) -> None:
    x = np.abs(ROWS["sine"]).astype(dtype)
    expected = client.post("/ood", json={"inputs": x.tolist(), "model": "sine"}).raise_for_status()
    assert client.post("/ood?model=sine", content=saved(x), headers=NPY).content == expected.content
    body = msgpack.packb({"inputs": packed(x), "model": "sine"})
    assert client.post("/ood", content=body, headers=MSGPACK).content == expected.content


def test_rows_of_text_and_by_name_come_in_msgpack_too(client: httpx.Client) -> None:
    for row in ([5, 80.5, "Köln"], {"rooms": 5, "area": 80.5, "town": "Köln"}):
        asked = {"inputs": [row], "model": "prices"}
        expected = client.post("/predict", json=asked).raise_for_status()
        assert client.post("/predict", content=msgpack.packb(asked), headers=MSGPACK).content == expected.content


@pytest.mark.parametrize("path", ["/predict", "/ood"])
@pytest.mark.parametrize("model", ROWS)
def test_answers_in_msgpack_hold_the_same_bits(client: httpx.Client, path: str, model: str) -> None:
    asked = {"inputs": ROWS[model].tolist(), "model": model} | (ASKED if path == "/predict" else {})
    expected = client.post(path, json=asked).raise_for_status()
    found = client.post(path, json=asked, headers={"Accept": "application/msgpack"}).raise_for_status()
    assert found.headers["content-type"] == "application/msgpack"
    arrays: list[str] = []
    # Python's repr of floats tells every bit of them, but of NaN, which no answer holds.
    assert repr(from_msgpack(msgpack.unpackb(found.content), arrays)) == repr(expected.json())
    ood = ".ood" if path == "/predict" else ""
    detector = "mahalanobis_features" if model == "digits" else "mahalanobis"
    assert {f"{ood}.score", f"{ood}.p_value", f"{ood}.detectors.{detector}.score"} <= {*arrays}
    assert path == "/ood" or {".mean", ".variance", ".entropy", ".draws"} <= {*arrays}


def test_classes_may_be_integers_of_any_size() -> None:
    answer = {"label": [10**30, 1], "mean": np.array([[0.25, np.nan]])[:, ::-1]}
    assert json.loads(to_json(answer)) == {"label": [10**30, 1], "mean": [[None, 0.25]]}
    assert from_msgpack(msgpack.unpackb(to_msgpack(answer | {"mean": 0})), []) == {"label": [str(10**30), 1], "mean": 0}


def test_errors_are_json_whatever_is_accepted(client: httpx.Client) -> None:
    headers = MSGPACK | {"Accept": "application/msgpack"}
    assert refused(client.post("/predict", content=b"\xc1", headers=headers), 400)["code"] == "invalid_msgpack"


def test_targets_of_rows_in_any_format(client: httpx.Client) -> None:
    x = ROWS["sine"]
    by_npy = client.post("/predict?model=sine", content=saved(x), headers=NPY).raise_for_status()
    by_msgpack = client.post(
        "/predict", content=msgpack.packb({"inputs": packed(x), "model": "sine"}), headers=MSGPACK
    ).raise_for_status()
    for predicted in (by_npy, by_msgpack):
        told = {"request_id": predicted.headers["X-Request-ID"], "targets": predicted.json()["mean"]}
        response = client.post(
            "/feedback", content=msgpack.packb(told), headers=MSGPACK | {"Accept": "application/msgpack"}
        )
        assert msgpack.unpackb(response.raise_for_status().content)["taken"] == len(x)
    again = {"inputs": packed(x), "model": "sine", "targets": [0.0] * len(x)}
    response = client.post("/feedback", content=msgpack.packb(again), headers=MSGPACK)
    assert response.raise_for_status().json()["taken"] == len(x)


# ---- which format


@pytest.mark.parametrize(
    "kind",
    [
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/problem+json",
        "",
        None,
    ],
)
def test_json_needs_no_name(client: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    response = client.post("/predict", content=b'{"inputs": [[1, 2]], "model": "sine"}', headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("kind", ["application/xml", "image/png", "multipart/form-data; boundary=x", "application/zip"])
@pytest.mark.parametrize("path", ["/predict", "/ood", "/feedback"])
def test_media_types_that_are_not_taken(client: httpx.Client, path: str, kind: str) -> None:
    error = refused(client.post(path, content=b"{}", headers={"Content-Type": kind}), 415)
    assert (error["code"], error["field"]) == ("unsupported_media_type", "Content-Type")
    assert kind.partition(";")[0] in error["got"] and "application/msgpack" in error["expected"]
    assert ("application/x-npy" in error["expected"]) == (path != "/feedback")


def test_targets_do_not_come_as_npy(client: httpx.Client) -> None:
    refused(client.post("/feedback", content=saved(ROWS["sine"]), headers=NPY), 415)


@pytest.mark.parametrize(
    ("accept", "packed"),
    [
        ("", False),
        ("*/*", False),
        ("text/html", False),
        ("application/msgpack", True),
        ("Application/MsgPack; q=0.5", True),
        ("application/msgpack, application/json", True),
        ("application/json, application/msgpack", False),
        ("application/json;q=0.5, application/msgpack", True),
        ("application/msgpack;q=0.5, application/json", False),
        ("*/*, application/msgpack", True),
        ("*/*;q=0.9, application/msgpack;q=0.5", False),
        ("application/msgpack;q=0", False),
        ("application/msgpack;q=2", False),
        ("application/msgpack;q=nan", False),
        (",;q=,;", False),
    ],
)
def test_the_format_of_answers_is_what_is_wanted_most(accept: str, packed: bool) -> None:
    assert answer_type(accept) == f"application/{'msgpack' if packed else 'json'}"


# ---- the quick way through JSON is the same way


def is_same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether fields are equal, and of rows that came as an array every bit."""
    rows = found.get("inputs")
    if isinstance(rows, NumericRows):
        bits = np.array(expected["inputs"], dtype=np.float64)
        listed = [rows[i] for i in range(len(rows))]
        if rows.values.shape != bits.shape or rows.values.tobytes() != bits.tobytes():
            return False
        found = found | {"inputs": listed}
    return repr(found) == repr({k: expected[k] for k in found}) and found.keys() == expected.keys()


NUMBERS = st.floats(allow_nan=False, allow_infinity=False).map(repr) | st.integers(-(2**70), 2**70).map(str)
NUMBERS |= st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
SHAPES = st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 1, 2), (1, 2, 1, 2)])


def nested(shape: tuple[int, ...], number: Callable[[], str]) -> str:
    return number() if not shape else "[" + ", ".join(nested(shape[1:], number) for _ in range(shape[0])) + "]"


@st.composite
def json_bodies(draw: st.DrawFn) -> bytes:
    rows = nested(draw(SHAPES), lambda: draw(NUMBERS))
    values = st.sampled_from(
        ['"sine"', "null", "3", "-0", "1e2", "true", "[0.5, 1]", '["samples"]', '{"a": [1]}', '"[["']
    )
    names = st.sampled_from(["model", "samples", "return", "quantiles", "seed", "ood"])
    others = [f'"{name}": {draw(values)}' for name in draw(st.lists(names, max_size=3))]
    # Of two fields of a name the last counts.
    again = st.sampled_from(
        ["[]", "[[]]", "[[], [1]]", "[[[]]]", "[[1], [2]]", "[[1], [2, 3]]", "[1]", "[[true]]", "7"]
    )
    others += draw(st.lists(again.map(lambda value: f'"inputs": {value}'), max_size=1))
    fields = draw(st.permutations([f'"inputs": {rows}', *others]))
    return ("{" + ",\n ".join(fields) + "}").encode()


def accepted(body: bytes) -> dict[str, Any] | None:
    try:
        content = pydantic_core.from_json(body.removeprefix(b"\xef\xbb\xbf"), allow_inf_nan=True)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


@given(body=json_bodies())
def test_numbers_in_json_are_read_exactly(body: bytes) -> None:
    expected = accepted(body)
    assert expected is not None and is_same(content_of(Body(body), rows_alone=True), expected)


@given(data=st.data(), body=json_bodies())
def test_json_that_is_damaged_is_told_as_ever(data: st.DataObject, body: bytes) -> None:
    at = data.draw(st.integers(0, len(body)))
    cut = data.draw(st.integers(0, 2))
    new = data.draw(
        st.sampled_from([b"", b"[", b"]", b",", b"0", b"NaN", b"\xff", b"\xef\xbb\xbf", b"true", b'"', b"\\"])
    )
    body = body[:at] + new + body[at + cut :]
    expected = accepted(body)
    try:
        found = content_of(Body(body), rows_alone=True)
    except InputError as e:
        assert expected is None and e.code in {"invalid_json", "not_an_object", "empty_body"}
    else:
        assert expected is not None and is_same(found, expected)


def test_usual_rows_do_come_as_an_array() -> None:
    for inputs in ("[[1, 2.5]]", "[ [\n1], [2]]", "[[[1, 2]], [[3, 4]]]"):
        assert isinstance(content_of(Body(b'{"inputs": %b}' % inputs.encode()), rows_alone=True)["inputs"], NumericRows)


def test_many_brackets_and_blanks_are_read_in_no_time() -> None:
    for body in (b'{"inputs":' + b" " * 10**6 + b"x", b'{"inputs":' + b"[" * 10**6, b'"inputs":[ ' * 10**5):
        with pytest.raises(InputError):
            content_of(Body(body), rows_alone=True)


def test_lists_claim_no_more_than_was_sent() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="msgpack"):
            content_of(Body(b"\xdd\x00\x10\x00\x00" * 1000, MSGPACK["Content-Type"]), rows_alone=True)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
def test_options_in_the_query_of_another_body_are_refused(kind: str) -> None:
    with pytest.raises(InputError, match="put the field into the body") as e:
        content_of(Body(b'{"inputs": [[1]]}', kind, (("level", "0.5"),)), rows_alone=True)
    assert (e.value.code, e.value.field) == ("unknown_field", "level")
