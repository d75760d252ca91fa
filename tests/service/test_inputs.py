from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import InputError
from model_store.manifest import CategoricalColumn, NumericColumn, TableInput, TensorInput
from service.inputs import InputEncoder, NumericRows, brief

MIXED = InputEncoder(
    TableInput(
        columns=[
            NumericColumn(name="age", mean=40.0, scale=10.0),
            CategoricalColumn(name="town", categories=["Aachen", "Bonn"]),
            NumericColumn(name="height"),
        ]
    )
)
NUMERIC = InputEncoder(TableInput(columns=[NumericColumn(name="a", mean=1.0, scale=2.0), NumericColumn(name="b")]))
IMAGE = InputEncoder(TensorInput(shape=[2, 1, 3], mean=1.0, scale=0.5))
SEQUENCE = InputEncoder(TensorInput(shape=[4]))
ALL = {"mixed": MIXED, "numeric": NUMERIC, "image": IMAGE, "sequence": SEQUENCE}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("Bonn"),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.sampled_from(["a", "b", "age", "town", "height", "x"]), inner, max_size=4)
    ),
    max_leaves=20,
)


def test_rows_and_objects_mean_the_same() -> None:
    rows = [[50, "Bonn", 1.5], [40.0, "Aachen", -2]]
    objects = [{"height": 1.5, "age": 50, "town": "Bonn"}, {"town": "Aachen", "age": 40, "height": -2}]
    expected = [[1.0, 0.0, 1.0, 1.5], [0.0, 1.0, 0.0, -2.0]]
    for inputs in (rows, objects, [rows[0], objects[1]], [objects[0], rows[1]]):
        found = MIXED.encode(inputs)
        assert found.dtype == np.float32
        assert found.tolist() == expected


def test_numeric_tables() -> None:
    assert NUMERIC.encode([[3, 0.5], [1, 2]]).tolist() == [[1.0, 0.5], [0.0, 2.0]]
    assert NUMERIC.encode([{"b": 2, "a": 1}]).tolist() == [[0.0, 2.0]]
    assert NUMERIC.encode([[2**70, 0]])[0, 0] == np.float32(2**69)


def test_arrays_may_be_nested_or_flat() -> None:
    flat = [1, 2, 3, 4, 5, 6.5]
    nested = [[[1, 2, 3]], [[4, 5, 6.5]]]
    expected = [[[0.0, 2.0, 4.0]], [[6.0, 8.0, 11.0]]]
    for inputs in ([flat], [nested], [nested, flat]):
        found = IMAGE.encode(inputs)
        assert found.shape == (len(inputs), 2, 1, 3)
        assert all(row == expected for row in found.tolist())
    assert SEQUENCE.encode([[1, 2, 3, 4]]).tolist() == [[1, 2, 3, 4]]


def test_typical_rows_are_of_the_networks_shape() -> None:
    assert {name: encoder.typical().shape for name, encoder in ALL.items()} == {
        "mixed": (1, 4),
        "numeric": (1, 2),
        "image": (1, 2, 1, 3),
        "sequence": (1, 4),
    }


@pytest.mark.parametrize(
    ("encoder", "inputs", "code", "field", "words"),
    [
        (NUMERIC, [[1, 2], [1]], "wrong_width", "inputs[1]", ["Row 1", "1 values", "a, b"]),
        (NUMERIC, [[1, 2, 3]], "wrong_width", "inputs[0]", ["3 values", "takes 2"]),
        (NUMERIC, [[]], "wrong_width", "inputs[0]", ["0 values"]),
        (NUMERIC, [1, 2], "wrong_type", "inputs[0]", ["Row 0", "a, b", "1"]),
        (NUMERIC, ["12"], "wrong_type", "inputs[0]", ['"12"']),
        (NUMERIC, [None], "wrong_type", "inputs[0]", ["null"]),
        (NUMERIC, [[1, "2"]], "wrong_type", "inputs[0][1]", ["Column 'b' in row 0", "number", '"2"']),
        (NUMERIC, [[1, None]], "wrong_type", "inputs[0][1]", ["'b'", "null"]),
        (NUMERIC, [[True, 1]], "wrong_type", "inputs[0][0]", ["'a'", "true"]),
        (NUMERIC, [[0.5, 1], [1, [2]]], "wrong_type", "inputs[1][1]", ["row 1", "an array of 1"]),
        (NUMERIC, [[1, float("nan")]], "not_finite", "inputs[0][1]", ["'b'", "finite", "NaN"]),
        (NUMERIC, [[1, 2], [float("-inf"), 2]], "not_finite", "inputs[1][0]", ["'a' in row 1", "-Infinity"]),
        (NUMERIC, [[10**400, 2]], "not_finite", "inputs[0][0]", ["'a'", "an integer of 1329 bits"]),
        (NUMERIC, [[0, 1e39]], "out_of_range", "inputs[0][1]", ["'b' in row 0", "too large", "1e+39"]),
        (NUMERIC, [{"a": 1, "b": 1e39}], "out_of_range", "inputs[0].b", ["'b' in row 0"]),
        (NUMERIC, [{"a": 1}], "missing_column", "inputs[0].b", ["lacks the column 'b'", "a, b"]),
        (NUMERIC, [{}], "missing_column", "inputs[0].a", ["no columns"]),
        (NUMERIC, [{"a": 1, "b": 2, "c": 3}], "unknown_column", "inputs[0]", ['"c"', "a, b"]),
        (NUMERIC, [{"a": 1, "b": "x"}], "wrong_type", "inputs[0].b", ["'b'", '"x"']),
        (
            MIXED,
            [[1, "Bonn", 1], [1, "Köln", 1]],
            "unknown_category",
            "inputs[1][1]",
            ["'town'", "Aachen", "K\\u00f6ln"],
        ),
        (MIXED, [[1, 5, 1]], "unknown_category", "inputs[0][1]", ["'town'", "ood: true", "Bonn", "5"]),
        (MIXED, [[1, None, 1]], "unknown_category", "inputs[0][1]", ["ood: true", "null"]),
        (MIXED, [[1, ["Bonn"], 1]], "wrong_type", "inputs[0][1]", ["'town'", "one of the model's categories"]),
        (MIXED, [["1", "Bonn", 1]], "wrong_type", "inputs[0][0]", ["'age'", '"1"']),
        (MIXED, [{"age": 1, "town": "", "height": 1}], "unknown_category", "inputs[0].town", ['""']),
        (MIXED, [[1, "Bonn", 1e300]], "out_of_range", "inputs[0][2]", ["'height'", "too large"]),
        (IMAGE, [[1, 2, 3]], "wrong_width", "inputs[0]", ["3 entries", "6", "[2, 1, 3]"]),
        (IMAGE, [[[[1, 2, 3]], [[4, 5]]]], "wrong_width", "inputs[0][1][0]", ["2 entries", "[2, 1, 3]"]),
        (IMAGE, [[[[1, 2, 3]], 4]], "wrong_type", "inputs[0][1]", ["4", "array"]),
        (IMAGE, [[[[1, 2, 3]], [[4, 5, "6"]]]], "wrong_type", "inputs[0][1][0][2]", ['"6"']),
        (IMAGE, [[1, 2, 3, 4, 5, True]], "wrong_type", "inputs[0][5]", ["true"]),
        (IMAGE, [[1, 2, 3, 4, 5, float("inf")]], "not_finite", "inputs[0][5]", ["Infinity"]),
        (IMAGE, [{"a": 1}], "wrong_type", "inputs[0]", ["an object of 1 fields"]),
        (IMAGE, [[1, 2, 3, 4, 5, 1e300]], "out_of_range", "inputs[0]", ["too large"]),
        (IMAGE, ["abcdef"], "wrong_type", "inputs[0]", ['"abcdef"']),
    ],
)
def test_what_is_wrong_is_named(
    encoder: InputEncoder, inputs: list[Any], code: str, field: str, words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        encoder.encode(inputs)
    error = caught.value
    assert (error.code, error.field) == (code, field)
    assert error.expected and error.got
    text = f"{error.message} {error.expected} {error.got}"
    assert [w for w in words if w not in text] == []


@pytest.mark.parametrize("name", ALL)
@given(inputs=st.lists(JSON, min_size=1, max_size=4))
def test_anything_else_is_an_input_error(name: str, inputs: list[Any]) -> None:
    try:
        found = ALL[name].encode(inputs)
    except InputError as e:
        json.dumps(e.as_dict())
        assert e.field is not None and e.field.startswith("inputs[")
    else:
        assert len(found) == len(inputs)
        assert np.isfinite(found).all()


@given(JSON)
def test_values_are_told_in_brief(value: Any) -> None:
    assert 0 < len(brief(value)) < 400
    brief(10**6000)


LIKE_NUMBERS = InputEncoder(
    TableInput(
        columns=[
            NumericColumn(name="garden", mean=0.5, scale=0.5, minimum=0, maximum=1),
            CategoricalColumn(name="rooms", categories=["", "2", "2.5", "11"]),
        ]
    )
)


@pytest.mark.parametrize("values", [[True, 2], [1, 2.0], [True, "2"], [1, "2"], {"rooms": 2, "garden": True}], ids=repr)
def test_values_are_taken_as_a_builder_takes_them(values: Any) -> None:
    np.testing.assert_array_equal(LIKE_NUMBERS.encode([values]), [[1, 0, 1, 0, 0]])


def test_what_is_missing_is_a_category_where_it_was_one() -> None:
    np.testing.assert_array_equal(LIKE_NUMBERS.encode([[False, None], [0, 2.5]]), [[-1, 1, 0, 0, 0], [-1, 0, 0, 1, 0]])


@pytest.mark.parametrize("value", ["Ulm", "", None, 5, 2.5, True], ids=repr)
def test_a_category_that_is_not_known_is_none_where_that_is_taken(value: Any) -> None:
    expected = [[1, 0, 0, 0], [0, 0, 1, 0]]
    for inputs in ([[50, value, 0], [40, "Bonn", 0]], [{"age": 50, "town": value, "height": 0}, [40, "Bonn", 0]]):
        np.testing.assert_array_equal(MIXED.encode(inputs, unseen=True), expected)


@pytest.mark.parametrize("value", [["Bonn"], {"town": "Bonn"}, b"Bonn"], ids=repr)
def test_what_can_be_no_category_is_refused_all_the_same(value: Any) -> None:
    with pytest.raises(InputError) as e:
        MIXED.encode([[50, value, 0]], unseen=True)
    assert (e.value.code, e.value.field) == ("wrong_type", "inputs[0][1]")


def test_an_array_may_hold_categories_that_are_numbers() -> None:
    rows = np.array([[0.0, 2.0], [1.0, 11.0], [0.0, 2.5]])
    found = LIKE_NUMBERS.encode(NumericRows(rows, lambda i: rows[i].tolist()))
    np.testing.assert_array_equal(found[:, 1:], [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    with pytest.raises(InputError, match="'rooms' in row 1") as e:
        rows[1, 1] = 12
        LIKE_NUMBERS.encode(NumericRows(rows, lambda i: rows[i].astype(int).tolist()))
    assert e.value.got == "12"
    found = LIKE_NUMBERS.encode(NumericRows(rows, lambda i: rows[i].tolist()), unseen=True)
    np.testing.assert_array_equal(found[:, 1:], [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_no_unseen_category(value: float) -> None:
    x = np.array([[50.0, value, 0.0]])
    for inputs in ([[50, value, 0]], NumericRows(x, lambda i: x[i].tolist())):
        with pytest.raises(InputError) as e:
            MIXED.encode(inputs, unseen=True)
        assert (e.value.code, e.value.field) == ("wrong_type", "inputs[0][1]")


def test_rows_among_which_a_category_is_unseen_are_read_as_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.inputs._TableRows._slow_columns", None)
    x = MIXED.encode([[50, "Bonn", 0], [50, "Paris", 0]], unseen=True)
    assert x.shape[0] == 2 and np.count_nonzero(x[0] != x[1]) == 1
