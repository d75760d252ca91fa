"""Arrays in bytes: .npy bodies, and in msgpack the objects `{"dtype": "<f8", "shape": [rows, ...], "data": bytes}`.

numpy's own reader of .npy evaluates the header as Python, and takes the memory that it claims; this one matches the few
headers that plain arrays have, and holds their claim against the bytes that came.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from model_store.errors import InputError
from service.inputs import NumericRows, refuse

_MAGIC: Final = b"\x93NUMPY"
# Of each version of the format: how the header's length is written.
_LENGTHS: Final = {b"\x01\x00": "<H", b"\x02\x00": "<I", b"\x03\x00": "<I"}
_MAX_HEADER: Final = 10_000
_MAX_DIMENSIONS: Final = 16
_DTYPE: Final = re.compile(r"[<>]?(f[48]|[iu][248])|[<>|]?[iu]1")
_ENTRY: Final = re.compile(
    r"""\s*['"](?P<key>descr|fortran_order|shape)['"]\s*:\s*(?P<value>'[^']*'|"[^"]*"|True|False|\([\d,\s]*\))\s*(,|(?=}))"""
)
_SHAPE: Final = re.compile(r"\(\s*(\d{1,15}\s*,\s*)*(\d{1,15}\s*)?\)")


def rows_of_npy(body: bytes) -> NumericRows:
    """The rows of a .npy body, of shape (B, ...), in C or Fortran order.

    Raises:
        InputError: `invalid_npy`, or as `rows_of_object`.
    """
    if not body.startswith(_MAGIC):
        _refuse_npy("The body is no .npy file; write one with numpy.save.", f"{len(body)} bytes of another kind")
    length = _LENGTHS.get(body[6:8])
    if length is None:
        _refuse_npy("The .npy file is of a version that is not known.", f"version {list(body[6:8])}")
    start = 8 + struct.calcsize(length)
    if len(body) < start:
        _refuse_npy("The .npy file ends within its header.", f"{len(body)} bytes")
    end = start + struct.unpack_from(length, body, 8)[0]
    if end - start > _MAX_HEADER or len(body) < end:
        _refuse_npy("The .npy file ends within its header, or that is too long.", f"a header of {end - start} bytes")
    dtype, fortran, shape = _header(body[start:end].decode("latin-1"))
    return _rows(memoryview(body)[end:], dtype, shape, fortran)


def rows_of_object(value: dict[Any, Any]) -> NumericRows:
    """The rows of an object of `dtype`, `shape` and `data`.

    Raises:
        InputError: `wrong_type` where it is none; `bad_dtype`, `bad_shape`; `wrong_size` where its bytes are fewer or
            more than its shape and dtype say.
    """
    expected = "an array of rows, or an object of dtype, shape and data"
    if value.keys() != {"dtype", "shape", "data"}:
        refuse("wrong_type", "inputs as an object must have dtype, shape and data alone.", "inputs", expected, value)
    dtype, shape, data = value["dtype"], value["shape"], value["data"]
    if not isinstance(dtype, str):
        refuse("wrong_type", "The dtype of inputs must be a string.", "inputs.dtype", 'such as "<f4"', dtype)
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        refuse("wrong_type", "The shape of inputs must be an array of lengths.", "inputs.shape", "[rows, ...]", shape)
    if not isinstance(data, bytes):
        refuse("wrong_type", "The data of inputs must be bytes.", "inputs.data", "the array's bytes", data)
    return _rows(memoryview(data), dtype, shape, fortran=False)


def to_object(array: NDArray[np.floating[Any]]) -> dict[str, Any]:
    """An array as such an object: float64, little-endian, row-major."""
    return {"dtype": "<f8", "shape": list(array.shape), "data": np.ascontiguousarray(array, dtype="<f8").tobytes()}


def _rows(data: memoryview, dtype: str, shape: Sequence[int], fortran: bool) -> NumericRows:
    if not _DTYPE.fullmatch(dtype):
        expected = "float32, float64 or integers, as numpy's dtype.str: <f4, <f8, <i8"
        refuse("bad_dtype", "The array's dtype cannot be taken; convert it first.", "inputs", expected, dtype)
    if not 2 <= len(shape) <= _MAX_DIMENSIONS or 0 in shape[1:]:
        raise InputError(
            "The array must hold its rows along the first axis, and values along further ones.",
            code="bad_shape",
            field="inputs",
            expected="a shape (rows, values) or (rows, *shape of a row)",
            got=f"the shape {list(shape[:_MAX_DIMENSIONS])}",
        )
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if size != len(data):
        raise InputError(
            f"The array's bytes are {'fewer' if len(data) < size else 'more'} than its shape and dtype say.",
            code="wrong_size",
            field="inputs",
            expected=f"{size} bytes" if size < 10**18 else "more bytes than any request may have",
            got=f"{len(data)} bytes",
        )
    # What has no rows may claim any width.
    flat = np.frombuffer(data, kind) if size else np.empty(0)
    values = flat.reshape(shape, order="F" if fortran else "C") if size else flat
    return NumericRows(values, lambda i: values[i].tolist())


def _header(text: str) -> tuple[str, bool, list[int]]:
    """`dtype`, whether in Fortran order, and shape, of the keys in any order."""
    found: dict[str, str] = {}
    text = text.strip()
    at = 1
    while entry := _ENTRY.match(text, at):
        found[entry["key"]] = entry["value"]
        at = entry.end()
    dtype, order, shape = (found.get(key, "") for key in ("descr", "fortran_order", "shape"))
    plain = text[:1] == "{" and text[at:].strip() == "}" and dtype[:1] in {"'", '"'} and order in {"True", "False"}
    if not plain or not _SHAPE.fullmatch(shape):
        _refuse_npy("The .npy file's header is not that of a plain array of numbers.", ascii(text[:80]))
    return dtype[1:-1], order == "True", [int(n) for n in re.findall(r"\d+", shape)]


def _refuse_npy(message: str, got: str) -> NoReturn:
    expected = "a .npy file of numbers, of shape (rows, ...)"
    raise InputError(message, code="invalid_npy", expected=expected, got=got)
