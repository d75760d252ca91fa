"""Random bytes, of the operating system's, taken for many uses at once."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

_AT_ONCE: Final = 256


class RandomBytes:
    """So many bytes each time, which no client can foresee. Safe to use from many threads.

    Asking the operating system lets go of the interpreter's lock, and a busy server waits to get it back far longer
    than the bytes take.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: list[bytes] = []

    def take(self) -> bytes:
        """The next."""
        while True:
            with suppress(IndexError):
                return self._kept.pop()
            many = os.urandom(self._size * _AT_ONCE)
            self._kept.extend(many[i : i + self._size] for i in range(0, len(many), self._size))
