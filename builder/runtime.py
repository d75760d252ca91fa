"""How the builder uses the machine: its threads and its memory.

Many small networks at once are memory traffic more than arithmetic. Two defaults cost more than half of the speed then:
threads that spin while they wait, and freed memory that goes back to the system only to be asked for again, page by
page.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 2**25
_VALUES_PER_GIGABYTE = 2**26
"""Of four bytes each, counted four times: autograd and the operation at work keep what they need beside them."""
_CACHED_VALUES = 2**22
"""Values of a batch that a processor's caches hold; larger ones wait for its memory, which halves the speed."""
_memory = 0.5


def _settle() -> None:
    """Sets what must be set before torch is imported."""
    # Threads that wait must sleep, not spin: on a busy machine spinning made small networks ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return  # another C library than glibc, which has its own ways
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, 2**30)


_settle()


def limit_memory(gigabytes: float) -> None:
    """Sets about how much memory one batch of computing may take from now on."""
    global _memory
    _memory = gigabytes


def values_at_once(device: str = "") -> int:
    """Most values that one batch may hold; with a device's type, as many as are also fast there."""
    most = max(1, int(_memory * _VALUES_PER_GIGABYTE))
    return min(most, _CACHED_VALUES) if device == "cpu" else most


@contextmanager
def side_by_side(wanted: bool) -> Iterator[int]:
    """Inside, torch computes each operation on one thread, and what it yields is the number of threads to run such
    operations on side by side, for `concurrently`. Where that is not wanted nothing changes, and it yields 1."""
    import torch

    threads = torch.get_num_threads() if wanted else 1
    if threads == 1:
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def concurrently(threads: int, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`[function(item) for item in items]` on so many threads; torch's operations leave Python's lock."""
    if threads == 1 or len(items) == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))
