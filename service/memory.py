"""Memory that goes back: by errors that let go of what they saw, and by the C library, where it is glibc."""

from __future__ import annotations

import ctypes
import sys
import threading
from typing import Final

_ARENA_MAX: Final = -8
"""`M_ARENA_MAX` of malloc.h."""
_MMAP_THRESHOLD: Final = -3
"""`M_MMAP_THRESHOLD` of malloc.h."""
_TRIM_THRESHOLD: Final = -1
"""`M_TRIM_THRESHOLD` of malloc.h."""
_ARENAS: Final = 2
_LARGE: Final = 2**20
"""Bytes: weight sets are larger, what most requests need is smaller."""
_TURN_SECONDS: Final = 30.0
"""Between two times that memory is given back: so seldom it costs requests nothing."""
_AT_HAND: Final = 4 * 2**20
"""Bytes at the end of a heap that stay when they are freed: what a request needed, the next one needs again."""


def forget_frames(error: BaseException) -> None:
    """Lets go of the frames that an error came through, and those that it came from, once it needs no tracing.

    A request's error, its frames and what waits for it refer to each other. Without this its body would stay until the
    next full collection, which hardly ever comes in a process whose objects are frozen.
    """
    found: BaseException | None = error
    while found is not None and found.__traceback__ is not None:
        found.__traceback__ = None
        found = found.__cause__ or found.__context__


def share_arenas() -> None:
    """Threads share two heaps from here on. By default each has its own, and keeps what it once needed."""
    _call("mallopt", _ARENA_MAX, _ARENAS)


def keep_large_apart() -> None:
    """What is large comes from the system and goes back to it as soon as it is freed. By default it comes from the
    heaps as well, once such has been freed: what is small then settles in between, and weight sets that come and go
    leave holes there.

    With that said, a heap would give back all but 128 KB at its end as soon as it is free, and of each request of many
    rows every page would come anew from the system.
    """
    _call("mallopt", _MMAP_THRESHOLD, _LARGE)
    _call("mallopt", _TRIM_THRESHOLD, _AT_HAND)


def give_back() -> None:
    """Gives back to the system what was freed: of loading a model, as much as its networks take."""
    _call("malloc_trim", 0)


def keep_giving_back(stop: threading.Event) -> None:
    """Gives back what was freed again and again, until told to stop.

    Blocks that come and go leave room between those that stay, other room each time: in hundreds of thousands of
    requests a process would come to hold some megabytes that it does not use.
    """
    while not stop.wait(_TURN_SECONDS):
        give_back()


def _call(function: str, *arguments: int) -> None:
    found = getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None
    if found is not None:
        found(*arguments)
