"""What a call takes."""

from __future__ import annotations

import time
from collections.abc import Callable


def least_seconds(call: Callable[[], object], tries: int) -> float:
    """The least of a few tries: what the machine does besides would only add to it."""
    found = []
    for _ in range(tries):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)
