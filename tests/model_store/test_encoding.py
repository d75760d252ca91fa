"""Encoding: the network's input from a user's columns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model_store.encoding import TableEncoder, TensorEncoder
from model_store.manifest import CategoricalColumn, NumericColumn, TableInput, TensorInput

NUMBERS = TableInput(columns=[NumericColumn(name="a", mean=10, scale=2), NumericColumn(name="b", mean=-1, scale=0.5)])
MIXED = TableInput(
    columns=[
        NumericColumn(name="a", mean=10, scale=2),
        CategoricalColumn(name="town", categories=["Bonn", "Köln", "Aachen"]),
        NumericColumn(name="b", mean=-1, scale=0.5),
    ]
)


def test_numbers_become_z_scores() -> None:
    encoder = TableEncoder(NUMBERS)
    encoded = encoder.encode_matrix(np.array([[10.0, -1.0], [14.0, -2.0]]))
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, [[0, 0], [2, -2]])
    assert (encoder.all_numeric, encoder.width, encoder.names) == (True, 2, ["a", "b"])


def test_a_category_becomes_one_column_each_in_the_order_of_the_manifest() -> None:
    encoder = TableEncoder(MIXED)
    encoded = encoder.encode_columns(
        [np.array([10.0, 12.0]), np.array(["Aachen", "Bonn"], dtype=object), np.array([-1.0, 0.0])]
    )
    np.testing.assert_array_equal(encoded, [[0, 0, 0, 1, 0], [1, 1, 0, 0, 2]])
    assert (encoder.all_numeric, encoder.width) == (False, 5)


@given(arrays(np.float64, st.tuples(st.integers(1, 8), st.just(2)), elements=st.floats(-1e6, 1e6)))
def test_both_paths_agree_on_numeric_tables(rows: np.ndarray) -> None:
    encoder = TableEncoder(NUMBERS)
    np.testing.assert_array_equal(encoder.encode_matrix(rows), encoder.encode_columns(list(rows.T)))


def test_a_category_that_is_not_known_is_none_of_them_and_is_told() -> None:
    encoder = TableEncoder(MIXED)
    towns = np.array(["Bonn", "bonn"], dtype=object)
    x = encoder.encode_columns([np.array([10.0, 12.0]), towns, np.array([-1.0, -1.0])])
    np.testing.assert_array_equal(x, [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    # A number that is average is 0 too, and is known.
    np.testing.assert_array_equal(encoder.unseen(x), [[False, False, False], [False, True, False]])


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 12)])
def test_tensors_come_nested_or_flat(shape: tuple[int, ...]) -> None:
    values = np.arange(24).reshape(shape)
    encoded = TensorEncoder(TensorInput(shape=[3, 4], mean=12, scale=4)).encode(values)
    assert (encoded.dtype, encoded.shape) == (np.float32, (2, 3, 4))
    np.testing.assert_array_equal(encoded.ravel(), (np.arange(24) - 12) / 4)
