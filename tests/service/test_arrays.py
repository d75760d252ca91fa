"""Arrays as bytes: what numpy writes is read as it is, and whatever else comes is refused with what is wrong."""

from __future__ import annotations

import io
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from model_store.errors import InputError
from service.arrays import rows_of_npy, rows_of_object, to_object
from service.inputs import NumericRows
from tests.service.test_formats import saved

DTYPES = ["<f4", ">f4", "<f8", ">f8", "|i1", "|u1", "<i2", ">i4", "<u4", "<i8", ">u8"]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=2, max_dims=4, max_side=4))
)
DESCRIBED = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"


def written(header: str, data: bytes = bytes(24), version: bytes = b"\x01\x00") -> bytes:
    """A .npy file of any header."""
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header.encode() + data


def same(rows: NumericRows, array: NDArray[Any]) -> bool:
    """Equal in dtype, shape and every bit; rows in lists too."""
    little = array.astype(array.dtype.newbyteorder("<"))
    found = rows.values.astype(rows.values.dtype.newbyteorder("<"))
    listed = [np.array(rows[i], dtype=little.dtype) for i in range(len(rows))]
    return (
        rows.values.dtype == array.dtype
        and rows.values.shape == array.shape
        and found.tobytes() == little.tobytes() == np.array(listed).tobytes()
    )


@given(array=ARRAYS, fortran=st.booleans())
def test_what_numpy_saves_is_read(array: NDArray[Any], fortran: bool) -> None:
    array = np.nan_to_num(array)  # NaN in lists may lose its bits
    assert same(rows_of_npy(saved(np.asfortranarray(array) if fortran else array)), array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_of_the_format(version: tuple[int, int]) -> None:
    array, file = np.arange(6.0).reshape(2, 3), io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    assert same(rows_of_npy(file.getvalue()), array)


@pytest.mark.parametrize(
    "header",
    [
        DESCRIBED,
        "{'shape': (2, 3), 'fortran_order': False, 'descr': '<f4'}",
        '{"descr":"<f4","fortran_order":False,"shape":(2,3)}',
        "  { 'descr' : '<f4' , 'fortran_order' : False , 'shape' : ( 2 , 3 , ) , }  \n",
    ],
)
def test_headers_as_other_writers_have_them(header: str) -> None:
    assert same(rows_of_npy(written(header)), np.zeros((2, 3), dtype="<f4"))


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"", "invalid_npy", ["no .npy file", "0 bytes"]),
        (b'{"inputs": [[1]]}', "invalid_npy", ["no .npy file", "numpy.save"]),
        (b"\x93NUMPY", "invalid_npy", ["version"]),
        (written(DESCRIBED, version=b"\x09\x00"), "invalid_npy", ["version", "[9, 0]"]),
        (b"\x93NUMPY\x01\x00\x40", "invalid_npy", ["ends within"]),
        (written(DESCRIBED)[:40], "invalid_npy", ["ends within"]),
        (written(" " * 20_000 + DESCRIBED), "invalid_npy", ["too long"]),
        (written("[]"), "invalid_npy", ["not that of a plain array", "[]"]),
        (written(DESCRIBED[:-1]), "invalid_npy", ["not that of a plain array"]),
        (written(DESCRIBED + "}"), "invalid_npy", ["not that of a plain array"]),
        (written("{'descr': '<f4', 'shape': (2, 3), }"), "invalid_npy", ["not that of a plain array"]),
        (written(DESCRIBED.replace("(2, 3)", "6")), "invalid_npy", ["not that of a plain array"]),
        (written(DESCRIBED.replace("(2, 3)", "(2 3)")), "invalid_npy", ["not that of a plain array"]),
        (written(DESCRIBED.replace("False", "'no'")), "invalid_npy", ["not that of a plain array"]),
        (written(DESCRIBED.replace("'<f4'", "print(1)")), "invalid_npy", ["not that of a plain array", "print"]),
        (saved(np.zeros((2, 3), dtype=[("a", "f4")])), "invalid_npy", ["not that of a plain array"]),
        (written(DESCRIBED.replace("<f4", "|O")), "bad_dtype", ["|O", "float32"]),
        (saved(np.zeros((2, 3), dtype=bool)), "bad_dtype", ["|b1", "convert"]),
        (saved(np.zeros((2, 3), dtype=np.float16)), "bad_dtype", ["<f2"]),
        (saved(np.zeros((2, 3), dtype=complex)), "bad_dtype", ["<c16"]),
        (saved(np.array([["a", "b"]])), "bad_dtype", ["<U1"]),
        (saved(np.float64(1)), "bad_shape", ["first axis", "the shape []"]),
        (saved(np.zeros(3)), "bad_shape", ["first axis", "[3]"]),
        (saved(np.zeros((3, 0))), "bad_shape", ["[3, 0]"]),
        (saved(np.zeros((1,) * 17)), "bad_shape", ["first axis"]),
        (saved(np.zeros((2, 3)))[:-1], "wrong_size", ["fewer", "48 bytes", "47 bytes"]),
        (saved(np.zeros((2, 3))) + b"\x00", "wrong_size", ["more", "48 bytes", "49 bytes"]),
        (saved(np.zeros((2, 3))) * 2, "wrong_size", ["more"]),
        # More than any machine has: what is claimed must not be taken first.
        (written(DESCRIBED.replace("2, 3", "99999999999, 99999")), "wrong_size", ["fewer", "24 bytes"]),
        (written(DESCRIBED.replace("2, 3", "999999999999999, " * 10)), "wrong_size", ["more bytes than any"]),
    ],
)
def test_npy_that_cannot_be_taken(body: bytes, code: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        rows_of_npy(body)
    error = caught.value
    assert error.code == code
    text = f"{error.message} {error.expected} {error.got}"
    assert [w for w in words if w not in text] == []


def test_an_array_without_rows_may_claim_any_width() -> None:
    for width in ("5", "999999999999999, 999999999999999"):
        assert len(rows_of_npy(written(DESCRIBED.replace("2, 3", f"0, {width}"), b""))) == 0


@given(body=st.binary(max_size=200), header=st.text(max_size=80))
def test_any_bytes_are_rows_or_an_input_error(body: bytes, header: str) -> None:
    for file in (body, b"\x93NUMPY\x01\x00" + body, written(header, body)):
        with pytest.raises(InputError):
            rows_of_npy(file)


@given(data=st.data(), array=ARRAYS)
def test_a_damaged_file_is_rows_or_an_input_error(data: st.DataObject, array: NDArray[Any]) -> None:
    file = bytearray(saved(array))
    for _ in range(data.draw(st.integers(1, 3))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        rows = rows_of_npy(bytes(file))
    except InputError as e:
        assert e.message.endswith(".") and e.expected and e.got is not None
    else:
        assert rows.values.nbytes <= len(file) and len(rows) == rows.values.shape[0]


# ---- objects


@given(array=ARRAYS)
def test_objects_of_arrays_are_read(array: NDArray[Any]) -> None:
    array = np.nan_to_num(array)
    packed = {"dtype": array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}
    assert same(rows_of_object(packed), array)


@given(arrays.arrays(np.float64, arrays.array_shapes(max_dims=3)), st.booleans())
def test_arrays_of_answers_keep_every_bit(array: NDArray[Any], turned: bool) -> None:
    array = array.T if turned else array
    packed = to_object(array)
    found = np.frombuffer(packed["data"], packed["dtype"]).reshape(packed["shape"])
    assert found.tobytes() == array.tobytes() and found.shape == array.shape


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"more": 1}, "wrong_type", "inputs"),
        ({"dtype": 4}, "wrong_type", "inputs.dtype"),
        ({"dtype": "float32"}, "bad_dtype", "inputs"),
        ({"dtype": "<f4\n"}, "bad_dtype", "inputs"),
        ({"shape": 6}, "wrong_type", "inputs.shape"),
        ({"shape": [2, 3.0]}, "wrong_type", "inputs.shape"),
        ({"shape": [2, True]}, "wrong_type", "inputs.shape"),
        ({"shape": [-2, -3]}, "wrong_type", "inputs.shape"),
        ({"shape": [6]}, "bad_shape", "inputs"),
        ({"shape": [2, 3, 2**62, 2**62]}, "wrong_size", "inputs"),
        ({"data": "text"}, "wrong_type", "inputs.data"),
        ({"data": [0.0]}, "wrong_type", "inputs.data"),
        ({"data": bytes(23)}, "wrong_size", "inputs"),
    ],
)
def test_objects_that_cannot_be_taken(changes: dict[str, Any], code: str, field: str) -> None:
    whole = {"dtype": "<f4", "shape": [2, 3], "data": bytes(24)}
    assert math.prod(rows_of_object(whole).values.shape) == 6
    with pytest.raises(InputError) as caught:
        rows_of_object(whole | changes)
    assert (caught.value.code, caught.value.field) == (code, field)
    assert caught.value.expected and caught.value.got
