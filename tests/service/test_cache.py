from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cache import ByteCache, Flights


@dataclass(frozen=True)
class Block:
    nbytes: int


def test_the_least_recently_used_goes_first() -> None:
    cache: ByteCache[str, Block] = ByteCache(100)
    for key in "abc":
        cache.put(key, Block(40))
        cache.get("a")
    assert cache.get("a") == Block(40)
    assert cache.get("b") is None
    assert cache.get("c") == Block(40)
    assert cache.nbytes == 80


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache: ByteCache[str, Block] = ByteCache(10)
    cache.put("small", Block(10))
    cache.put("large", Block(11))
    assert cache.get("large") is None
    assert cache.get("small") == Block(10)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60), st.booleans()), max_size=60), st.integers(0, 100))
def test_bytes_are_those_held_and_never_above_capacity(steps: list[tuple[int, int, bool]], capacity: int) -> None:
    cache: ByteCache[int, Block] = ByteCache(capacity)
    for key, size, put in steps:
        if put:
            cache.put(key, Block(size))
        else:
            cache.get(key)
        held = [block for k in range(6) if (block := cache.get(k)) is not None]
        assert cache.nbytes == sum(b.nbytes for b in held) <= capacity


def test_one_thread_computes_and_the_others_wait() -> None:
    flights: Flights[str, int] = Flights()
    computed: list[int] = []
    found: list[int] = []

    def compute() -> int:
        time.sleep(0.2)
        computed.append(1)
        return 7

    threads = [threading.Thread(target=lambda: found.append(flights.run("key", compute))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [7] * 8
    assert len(computed) == 1
    assert flights.run("key", lambda: 8) == 8


def test_a_failure_reaches_the_caller_and_is_not_remembered() -> None:
    flights: Flights[str, int] = Flights()

    def fail() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        flights.run("key", fail)
    assert flights.run("key", lambda: 1) == 1
