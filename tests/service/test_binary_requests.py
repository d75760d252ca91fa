"""Requests in .npy and msgpack that cannot be taken: the same errors as in JSON, and never a failure."""

from __future__ import annotations

import json
import struct
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.service.test_formats import MSGPACK, NPY, ROWS, packed, saved
from tests.service.test_requests import check_answer, refused


@pytest.mark.parametrize(
    ("rows", "code", "field", "words"),
    [
        ([[0.0, 1.0], [np.nan, 1.0]], "not_finite", "inputs[1][0]", ["'x' in row 1", "NaN"]),
        ([[0.0, 1.0], [0.0, -np.inf]], "not_finite", "inputs[1][1]", ["'t' in row 1", "-Infinity"]),
        ([[0.0, 1.0], [1e300, 1.0]], "out_of_range", "inputs[1][0]", ["'x' in row 1", "too large"]),
        ([[0.0, 1.0, 2.0]], "wrong_width", "inputs[0]", ["Row 0 has 3", "x, t"]),
        (np.zeros((1, 2, 2)), "wrong_type", "inputs[0][0]", ["'x'", "an array of 2"]),
        (np.zeros((0, 2)), "empty_batch", "inputs", ["no row"]),
        (np.zeros((101, 2)), "too_many_rows", "inputs", ["101 rows", "at most 100"]),
    ],
)
def test_wrong_rows_are_told_as_in_json(
    client: httpx.Client, rows: Any, code: str, field: str, words: list[str]
) -> None:
    x = np.array(rows, dtype=np.float64)
    as_json = client.post("/predict", content=json.dumps({"inputs": x.tolist(), "model": "sine"}))
    error = refused(as_json, 422)
    assert (error["code"], error["field"]) == (code, field)
    assert [w for w in words if w not in f"{error['message']} {error['expected']} {error['got']}"] == []
    as_npy = client.post("/predict?model=sine", content=saved(x), headers=NPY)
    as_object = client.post("/predict", content=msgpack.packb({"inputs": packed(x), "model": "sine"}), headers=MSGPACK)
    assert as_npy.json() == as_object.json() == as_json.json()


@pytest.mark.parametrize(
    ("model", "shape", "code", "field"),
    [
        ("prices", (2, 3), "unknown_category", "inputs[0][2]"),
        ("digits", (2, 15), "wrong_width", "inputs[0]"),
        ("digits", (2, 4, 4), "wrong_width", "inputs[0]"),
        ("digits", (2, 1, 4, 4, 1), "wrong_type", "inputs[0][0][0][0]"),
    ],
)
def test_arrays_of_another_shape(
    client: httpx.Client, model: str, shape: tuple[int, ...], code: str, field: str
) -> None:
    for x in (np.ones(shape), np.full(shape, np.nan)[:, ::-1]):
        x[0] = 1
        as_npy = client.post("/predict", content=saved(x), params={"model": model}, headers=NPY)
        as_object = client.post(
            "/predict", content=msgpack.packb({"inputs": packed(x), "model": model}), headers=MSGPACK
        )
        error = refused(as_npy, 422)
        assert (error["code"], error["field"]) == (code, field) and as_object.json() == as_npy.json()


def test_the_value_in_a_message_is_as_it_was_sent(client: httpx.Client) -> None:
    """A whole number is one, although the rows were read as floats."""
    error = refused(client.post("/predict", json={"inputs": [[1, 2, 3]], "model": "prices"}), 422)
    assert error["field"] == "inputs[0][2]" and error["got"] == "3"


@pytest.mark.parametrize(
    ("query", "code", "field", "got"),
    [
        ("samples=2.5", "wrong_type", "samples", "2.5"),
        ("samples=many", "wrong_type", "samples", '"many"'),
        ("samples=", "wrong_type", "samples", '""'),
        ("samples=" + "9" * 5000, "wrong_type", "samples", None),
        ("seed=-1", "bad_seed", "seed", "-1"),
        ("seed=1&seed=2", "repeated_field", "seed", '"2"'),
        ("level=NaN", "not_finite", "level", "NaN"),
        ("level=[0.9]", "wrong_type", "level", "an array of 1"),
        ("quantiles=0.1,2", "bad_quantiles", "quantiles[1]", "2"),
        ("quantiles=0.1&quantiles=a", "wrong_type", "quantiles[1]", '"a"'),
        ("quantiles=", "wrong_type", "quantiles[0]", '""'),
        ("return=weights", "bad_return", "return[0]", '"weights"'),
        ("ood=1", "wrong_type", "ood", "1"),
        ("false_alarm_rate=0.1", "bad_false_alarm_rate", "false_alarm_rate", "0.1"),
        ("inputs=[[1,2]]", "unknown_field", "inputs", '"[[1,2]]"'),
        ("sample=1", "unknown_field", "sample", '"sample"'),
        ("%ff=%00", "unknown_field", "\ufffd", None),
    ],
)
def test_fields_in_the_query_are_held_to_the_same_rules(
    client: httpx.Client, query: str, code: str, field: str, got: str | None
) -> None:
    error = refused(client.post(f"/predict?model=sine&{query}", content=saved(ROWS["sine"]), headers=NPY), 422)
    assert (error["code"], error["field"]) == (code, field)
    assert got is None or error["got"] == got


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        (b"", 400, "empty_body", ["msgpack"]),
        (b"\x81", 400, "invalid_msgpack", ["not valid msgpack"]),
        (b"\x80\x80", 400, "invalid_msgpack", ["extra"]),
        (b"\xc1", 400, "invalid_msgpack", ["FormatError"]),
        (b"\x91" * 3000, 400, "invalid_msgpack", ["StackError"]),
        (b"\x81\xa6inputs\xdd\xff\xff\xff\xff", 400, "invalid_msgpack", ["exceeds"]),
        (b"\x81\xa6inputs" + (b"\xdd" + struct.pack(">I", 2**24)) * 500, 400, "invalid_msgpack", ["exceeds"]),
        (msgpack.packb({1: 2}), 400, "invalid_msgpack", ["key"]),
        (msgpack.packb({b"inputs": [[1, 2]]}), 400, "invalid_msgpack", ["must be strings"]),
        (msgpack.packb({"inputs": [{b"x": 1}]}), 400, "invalid_msgpack", ["must be strings"]),
        (b"\x81\xa6inputs\xa1\xff", 400, "invalid_msgpack", ["utf-8"]),
        (msgpack.packb([[1, 2]]), 400, "not_an_object", ["msgpack object"]),
        (msgpack.packb(b"{}"), 400, "not_an_object", ["2 bytes"]),
        (msgpack.packb({"inputs": {}, "model": "sine"}), 422, "wrong_type", ["dtype, shape and data"]),
        (msgpack.packb({"inputs": b"12", "model": "sine"}), 422, "wrong_type", ["2 bytes"]),
        (msgpack.packb({"inputs": [[1, b"2"]], "model": "sine"}), 422, "wrong_type", ["'t' in row 0", "1 bytes"]),
        (msgpack.packb({"inputs": [[1, msgpack.Timestamp(0)]], "model": "sine"}), 422, "wrong_type", ["another kind"]),
        (msgpack.packb({"inputs": [[1, 2]], "model": msgpack.ExtType(5, b"")}), 422, "wrong_type", ["another kind"]),
        (msgpack.packb({"inputs": [[1, True]], "model": "sine"}), 422, "wrong_type", ["true"]),
        (msgpack.packb({"inputs": [[1, float("nan")]], "model": "sine"}), 422, "not_finite", ["'t' in row 0", "NaN"]),
    ],
)
def test_msgpack_that_cannot_be_taken(
    client: httpx.Client, body: bytes, status: int, code: str, words: list[str]
) -> None:
    error = refused(client.post("/predict", content=body, headers=MSGPACK), status)
    assert error["code"] == code
    assert [w for w in words if w not in f"{error['message']} {error['expected']} {error['got']}"] == []


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.binary(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["<f4", "<f8", "|u1", "|O"]) | VALUES,
        "shape": st.lists(st.integers(0, 3), max_size=3) | VALUES,
        "data": st.binary(max_size=32) | VALUES,
    }
)
FIELDS = st.fixed_dictionaries({"inputs": OBJECTS | VALUES}, optional={"model": st.just("sine"), "samples": VALUES})


@given(content=FIELDS | VALUES, junk=st.binary(max_size=100), path=st.sampled_from(["/predict", "/ood", "/feedback"]))
def test_any_msgpack_gets_an_answer_or_the_error_shape(
    client: httpx.Client, content: Any, junk: bytes, path: str
) -> None:
    for body in (msgpack.packb(content), junk):
        check_answer(client.post(path, content=body, headers=MSGPACK))


@given(junk=st.binary(max_size=100), query=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
def test_any_npy_gets_an_answer_or_the_error_shape(client: httpx.Client, junk: bytes, query: dict[str, str]) -> None:
    for body in (junk, b"\x93NUMPY\x01\x00" + junk, saved(ROWS["sine"])[: 128 + len(junk)]):
        check_answer(client.post("/predict", content=body, params={"model": "sine"} | query, headers=NPY))
