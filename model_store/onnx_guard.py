"""Refuses ONNX files that point outside themselves, before any ONNX library reads them.

External tensor data lets a model file name any path on the machine (several CVEs in ONNX readers). The server
does not carry the `onnx` package, so this reads the protobuf wire format itself, and only as far as needed.
Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator

from model_store.errors import IntegrityError

_MAX_DEPTH = 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# message -> {field number: message}: the fields through which a tensor can be reached.
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def refuse_external_data(data: bytes, name: str) -> None:
    """Raises IntegrityError if `data` is no ONNX model or any of its tensors lies in another file."""
    try:
        _scan(memoryview(data), "Model", name, 0)
    except (IndexError, ValueError) as e:
        raise IntegrityError(f"{name} is not a readable ONNX file; publish the bundle again.") from e


def _scan(data: memoryview, message: str, name: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    children = _CHILDREN[message]
    for number, value in _fields(data):
        if message == "Tensor":
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                raise IntegrityError(
                    f"{name} keeps tensors in another file, which is refused; export it as one file.",
                    code="external_data",
                )
        elif number in children:
            if not isinstance(value, memoryview):
                raise ValueError("wrong wire type")
            _scan(value, children[number], name, depth + 1)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        # Protobuf's C++ reader keeps the low 32 bits of a tag: a longer one would name another field there than here.
        if key > 0xFFFFFFFF:
            raise ValueError("tag too long")
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError("field number 0")
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
        elif wire == _BYTES:
            size, at = _varint(data, at)
            if size > end - at:
                raise ValueError("truncated")
            yield number, data[at : at + size]
            at += size
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
            if at > end:
                raise ValueError("truncated")
            yield number, 0
        else:
            raise ValueError(f"wire type {wire}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("varint too long")
