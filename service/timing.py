"""What a call takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_ENOUGH: Final = 0.01
"""Seconds of trying: longer than another process keeps a core from us as a rule."""


def least_seconds(call: Callable[[], object], tries: int) -> float:
    """The least of some tries: what the machine does besides would only add to it.

    Args:
        call: what is timed.
        tries: how often at the least; calls that take little are tried on until ten milliseconds are spent.
    """
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < tries or time.perf_counter() - began < _ENOUGH:
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)
