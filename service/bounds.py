"""How much of a body is read as Python's objects, which take up to seventy times the bytes that they are written in.

What a body holds is counted before it is read, or while it is, and one that holds too much is refused. Rows in bytes
(.npy, or `dtype`, `shape` and `data` in msgpack) become no objects, and no bounds but a body's own are set to them.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

import numpy as np

from model_store.errors import InputError

LARGE: Final = 2**20
"""Bytes of JSON that may be read uncounted: it holds hardly more than `_MOST`, whatever it is."""
SMALL: Final = LARGE // 2
"""The same of msgpack, where an array or an object may be a single byte."""
MAX_NAMES: Final = 2**16
"""Most names in one object: no model has as many columns, and each name that is new takes a microsecond."""
_MOST: Final = 5_000_000
"""Of a number in an array, as which all else is counted: 40 bytes of memory and some 50 nanoseconds."""
_BYTES_EACH: Final = 5
"""Larger bodies may hold one for so many bytes, as usual numbers with their commas take; memory is ten times that."""
_ARRAY: Final = 8
"""Of an array or an object: memory, and time of Python's collector, which looks at all there are again and again."""
_NAME: Final = 5
"""Of a name in an object, beside its value."""
_BLOCK: Final = 2**18


def check_json(body: bytes) -> None:
    """Raises InputError `body_too_large` where JSON holds too much; characters in texts count like others."""
    characters = np.frombuffer(body, np.uint8)
    found = 0
    for start in range(0, len(body), _BLOCK):
        block = characters[start : start + _BLOCK]
        found += _NAME * int(np.count_nonzero(block == ord(":")))
        found += int(np.count_nonzero(block == ord(",")))
        # One bit lies between [ and {.
        found += _ARRAY * int(np.count_nonzero((block | 0x20) == ord("{")))
    if found > _most(len(body)):
        _refuse(len(body))


class Count:
    """Counts what msgpack of so many bytes holds, as it is read: hooks for arrays and objects."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = _most(size)

    def array(self, content: list[Any]) -> list[Any]:
        """Takes an array as it is. Raises InputError `body_too_large` where it is one too many."""
        self._take(_ARRAY + len(content))
        return content

    def map(self, content: dict[Any, Any]) -> dict[str, Any]:
        """Takes an object as it is. Raises InputError as `array`, and ValueError as `named`."""
        self._take(_ARRAY + _NAME * len(content))
        return named(content)

    def _take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            _refuse(self._size)


def named(content: dict[Any, Any]) -> dict[str, Any]:
    """Takes an object as it is. Raises ValueError where a name is no string."""
    if not all(isinstance(key, str) for key in content):
        raise ValueError("names in a map must be strings")
    return content


def _most(size: int) -> int:
    return max(_MOST, size // _BYTES_EACH)


def _refuse(size: int) -> NoReturn:
    most = _most(size)
    raise InputError(
        "The body holds more values than are read of JSON, or of arrays in msgpack; send fewer rows in a request, or "
        "numbers as bytes: a .npy file, or dtype, shape and data in msgpack.",
        code="body_too_large",
        expected=f"at most {most} numbers in arrays; an array or object counts as {_ARRAY}, and a name in one as "
        f"{_NAME} more",
        got="more",
    )
