"""The formats of requests and answers: JSON, msgpack and, for rows alone, .npy. From bytes to content, and back."""

from __future__ import annotations

import codecs
import functools
import itertools
import re
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import msgspec
import numpy as np
import orjson
import pydantic_core

from model_store.errors import InputError
from service.arrays import rows_of_npy, rows_of_object, to_object
from service.bounds import LARGE, MAX_NAMES, SMALL, Count, check_json, named
from service.inputs import NumericRows, brief, refuse

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
NPY: Final = "application/x-npy"
OCTETS: Final = "application/octet-stream"

# What `curl -d` and other simple clients say of JSON.
_ALSO_JSON: Final = {"", JSON, "application/x-www-form-urlencoded", "text/json", "text/plain"}
# Longer arrays are to be sent as bytes: each takes the memory that it claims before its values are read.
_MAX_LIST: Final = 2**20
_ROWS_BEGIN: Final = re.compile(rb'"inputs"\s*:\s*(\[[\[\s]*)[-\d]')
_EXPECTED: Final = 'an object of fields, such as {"inputs": [[...], ...]}'
_MAX_DEPTH: Final = 9
_USUALLY_ACCEPTED: Final = {"": JSON, "*/*": JSON, JSON: JSON, MSGPACK: MSGPACK}
"""What nearly all clients send, and what reading it comes to: it takes longer than to look it up."""
_PATIENCE_SECONDS: Final = 5.0
_AT_ONCE: Final = nullcontext()
_reading: Final = threading.Lock()
_OTHERS: Final = (
    "targets",
    "request_id",
    "model",
    "samples",
    "seed",
    "level",
    "quantiles",
    "return",
    "empty_sets",
    "ood",
    "false_alarm_rate",
)
"""All fields that any request may have beside its inputs."""


@dataclass(frozen=True)
class Body:
    """What came with a request.

    Attributes:
        data: the body's bytes.
        media_type: as the client says it, without parameters and in lower case; empty where it says none.
        query: names and values of the URL, which go with rows that come alone.
    """

    data: bytes
    media_type: str = JSON
    query: tuple[tuple[str, str], ...] = ()


def turn(body: Body) -> AbstractContextManager[None]:
    """To be held while a body is read and its rows are encoded: those that become many objects are read one at a time,
    so that not all of their objects are there at once."""
    return _alone() if len(body.data) > LARGE and body.media_type not in {NPY, OCTETS} else _AT_ONCE


@contextmanager
def _alone() -> Iterator[None]:
    # One that waits for a model must not keep the others for as long.
    held = _reading.acquire(timeout=_PATIENCE_SECONDS)
    try:
        yield
    finally:
        if held:
            _reading.release()


def content_of(body: Body, *, rows_alone: bool) -> dict[str, Any]:
    """The fields of a request, whatever the format that it came in.

    Args:
        body: what came.
        rows_alone: whether it may be rows without more, with the other fields in the query.

    Raises:
        InputError: the body cannot be read, or is of another format.
    """
    kind = body.media_type
    if kind in _ALSO_JSON or kind.endswith("+json"):
        return _from_json(_all_of(body))
    if kind == MSGPACK:
        return _from_msgpack(_all_of(body))
    if rows_alone and kind in {NPY, OCTETS}:
        return _from_query(body.query) | {"inputs": rows_of_npy(body.data)}
    raise InputError(
        "The body's media type is not taken here; send JSON, or name what it is in Content-Type.",
        code="unsupported_media_type",
        field="Content-Type",
        expected=", ".join([JSON, MSGPACK, *([NPY, OCTETS] if rows_alone else [])]),
        got=brief(kind),
    )


def _all_of(body: Body) -> bytes:
    """The bytes of a body that holds all fields. Raises InputError where some are in the query."""
    if body.query:
        name, value = body.query[0]
        message = "The query is for the options of a .npy body; put the field into the body."
        refuse("unknown_field", message, name[:80], "no query", value)
    return body.data


def answer_type(accept: str) -> str:
    """The media type of an answer for an Accept header: MSGPACK where that is named and not wanted less, or JSON."""
    if accept in _USUALLY_ACCEPTED:
        return _USUALLY_ACCEPTED[accept]
    best, found = (0.0, True), JSON
    for each in accept.lower().split(","):
        name, *parameters = (part.strip() for part in each.split(";"))
        weight = _weight(parameters)
        named = name in {JSON, MSGPACK}
        # Of those that are wanted as much, what is named counts, and what is named first.
        if (named or name in {"*/*", "application/*"}) and (weight, named) > best:
            best, found = (weight, named), name if named else JSON
    return found


def to_json(content: Mapping[str, Any]) -> bytes:
    """An answer's JSON; a number that is not finite becomes null, and an array what its rows are."""
    try:
        return orjson.dumps(content, _contiguous, orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # a class is an integer of more than 64 bits
        return pydantic_core.to_json(content, inf_nan_mode="null", fallback=np.ndarray.tolist)


def to_msgpack(content: Mapping[str, Any]) -> bytes:
    """An answer's msgpack, with arrays of numbers as objects of dtype, shape and data (see `arrays`)."""
    packed: bytes = msgpack.packb(content, default=_packed)
    return packed


WRITERS: Final[dict[str, Callable[[Mapping[str, Any]], bytes]]] = {JSON: to_json, MSGPACK: to_msgpack}
"""By media type."""


def _weight(parameters: list[str]) -> float:
    given = next((p[2:] for p in parameters if p.startswith("q=")), "1")
    return float(given) if re.fullmatch(r"[01](\.\d{0,3})?", given) else 0.0


def _contiguous(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value)
    raise TypeError(f"{type(value).__name__} has no JSON")


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return to_object(value) if value.dtype.kind == "f" else value.tolist()
    if isinstance(value, int):  # a class of more than 64 bits, which msgpack has no integers for
        return str(value)
    raise TypeError(f"{type(value).__name__} has no msgpack")


# ---- JSON


def _from_json(body: bytes) -> dict[str, Any]:
    body = body.removeprefix(codecs.BOM_UTF8)  # as some editors and shells write it
    if len(body) > LARGE:
        check_json(body)
    return _quick_json(body) or _slow_json(body)


def _slow_json(body: bytes) -> dict[str, Any]:
    """Any JSON, with what is wrong with it."""
    if not body.strip():
        raise _empty("JSON")
    try:
        # NaN and Infinity are let through, to be refused with the place they stand at.
        content = pydantic_core.from_json(body, allow_inf_nan=True)
    except ValueError as e:
        wrong, expected = str(e), "a JSON object"
        if not _is_utf8(body):
            wrong, expected = "it is not in UTF-8; encode it so", "a JSON object in UTF-8"
        raise InputError(
            f"The body is not valid JSON: {wrong}.", code="invalid_json", expected=expected, got="invalid JSON"
        ) from e
    return _object(content, "JSON")


def _is_utf8(body: bytes) -> bool:
    """Whether JSON may be in UTF-8: in UTF-16 and UTF-32 the first of its characters have bytes of zero."""
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in body[:4]


def _quick_json(body: bytes) -> dict[str, Any] | None:
    """The usual request, whose rows are arrays of finite numbers of one shape; None for any other."""
    begin = _ROWS_BEGIN.search(body)
    depth = begin[1].count(b"[") if begin else 0
    if not 2 <= depth <= _MAX_DEPTH:
        return None
    try:
        request = _decoder(depth).decode(body)
        values = _array(request.inputs, depth)
    except (ValueError, IndexError, RecursionError, struct.error):
        return None
    fields = {n: v for n in _OTHERS if (v := getattr(request, n)) is not msgspec.UNSET}
    # For an error message a row is read once more, as it was written.
    return fields | {"inputs": NumericRows(values, lambda i: _slow_json(body)["inputs"][i])}


@functools.cache
def _decoder(depth: int) -> msgspec.json.Decoder[Any]:
    """Of requests with all fields that any may have, and inputs that are numbers in so many arrays."""
    rows: Any = float
    for _ in range(depth):
        rows = list[rows]
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [("inputs", rows)]
    fields += [(name, Any, msgspec.UNSET) for name in _OTHERS]
    kind = msgspec.defstruct("Request", fields, forbid_unknown_fields=True)
    return msgspec.json.Decoder(kind)


def _array(rows: list[Any], depth: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Floats in nested lists as an array; ValueError, IndexError or struct.error where lengths differ or are 0."""
    shape = [len(rows)]
    for _ in range(depth - 2):
        shape.append(len(rows[0]))
        if set(map(len, rows)) != {shape[-1]}:
            raise ValueError("ragged")
        rows = list(itertools.chain.from_iterable(rows))
    # Three times as fast as numpy on lists of Python's floats.
    pack = struct.Struct(f"{len(rows[0])}d").pack
    return np.frombuffer(b"".join([pack(*row) for row in rows])).reshape(*shape, len(rows[0]))


# ---- msgpack


def _from_msgpack(body: bytes) -> dict[str, Any]:
    if not body:
        raise _empty("msgpack")
    count = Count(len(body)) if len(body) > SMALL else None
    try:
        content = msgpack.unpackb(
            body,
            object_hook=count.map if count else named,
            list_hook=count.array if count else None,
            max_array_len=min(_MAX_LIST, len(body)),
            max_map_len=MAX_NAMES,
            # No field is of an extension; those of a small body are refused with their place.
            max_ext_len=0 if count else -1,
        )
    except (ValueError, msgpack.UnpackException) as e:
        raise InputError(
            f"The body is not valid msgpack: {str(e).rstrip('.') or type(e).__name__}.",
            code="invalid_msgpack",
            expected="a msgpack map, with long arrays as objects of dtype, shape and data",
            got="invalid msgpack",
        ) from e
    fields = _object(content, "msgpack")
    if isinstance(fields.get("inputs"), dict):
        fields["inputs"] = rows_of_object(fields["inputs"])
    return fields


# ---- the query


def _from_query(query: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Fields as JSON has them; `quantiles` and `return` may be given several times, or with commas."""
    found: dict[str, Any] = {}
    for name, text in query:
        if name in {"quantiles", "return"}:
            each = text.split(",")
            found.setdefault(name, []).extend(each if name == "return" else map(_value, each))
            continue
        if name in found:
            refuse("repeated_field", f"The query has {brief(name)} twice.", name[:80], "each field once", text)
        if name == "inputs":
            refuse("unknown_field", "The body is the inputs; leave them out of the query.", name, "no inputs", text)
        found[name] = text if name == "model" else _value(text)
    return found


def _value(text: str) -> Any:
    try:
        return pydantic_core.from_json(text, allow_inf_nan=True)
    except ValueError:
        return text


# ---- all of them


def _object(content: Any, form: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError(
            f"The body must be a {form} object.", code="not_an_object", expected=_EXPECTED, got=brief(content)
        )
    return content


def _empty(form: str) -> InputError:
    return InputError(
        f"The request has no body; send a {form} object.",
        code="empty_body",
        expected=_EXPECTED,
        got="an empty body",
    )
