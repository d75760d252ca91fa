"""What the process remembers: the least recently used values go first, bounded by bytes."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from threading import Lock, Thread
from typing import Final, Generic, Protocol, TypeVar

KEY_PREFIX: Final = "fiberwalk:"

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True)
class WeightKey:
    """What a weight set is a function of.

    Attributes:
        digest: the bundle's, sha256 in hex.
        plan: name of the latent plan.
        samples: S.
        seed: of the draw.
    """

    digest: str
    plan: str
    samples: int
    seed: int

    def __str__(self) -> str:
        return f"{KEY_PREFIX}{self.digest}:{self.plan}:{self.samples}:{self.seed}"


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


S = TypeVar("S", bound=Sized)


class ByteCache(Generic[K, S]):
    """A thread-safe LRU cache of at most `capacity` bytes; a value larger than that is not kept."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: OrderedDict[K, S] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all values held."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: K) -> S | None:
        """The value of a key, which becomes the most recently used; None if it is not held."""
        with self._lock:
            value = self._held.get(key)
            if value is not None:
                self._held.move_to_end(key)
            return value

    def put(self, key: K, value: S) -> None:
        """Keeps a value, and drops the least recently used ones until all fit."""
        with self._lock:
            old = self._held.pop(key, None)
            if old is not None:
                self._bytes -= old.nbytes
            if value.nbytes > self.capacity:
                return
            self._held[key] = value
            self._bytes += value.nbytes
            while self._bytes > self.capacity:
                _, dropped = self._held.popitem(last=False)
                self._bytes -= dropped.nbytes

    def drop(self, unwanted: Callable[[K], bool]) -> None:
        """Drops the values of all keys that are unwanted."""
        with self._lock:
            for key in [key for key in self._held if unwanted(key)]:
                self._bytes -= self._held.pop(key).nbytes


@dataclass(frozen=True)
class Flight(Generic[V]):
    """A value that one thread computes for all that need it, and since when."""

    value: Future[V]
    since: float

    def ends_within(self, seconds: float) -> bool:
        """Whether there is a value, or why there is none, so many seconds after it was begun; waits for that."""
        return bool(wait([self.value], max(self.since + seconds - time.monotonic(), 0.0)).done)


class Flights(Generic[K, V]):
    """Lets threads that need the same value at the same time wait for one of them to compute it."""

    def __init__(self) -> None:
        self._running: dict[K, Flight[V]] = {}
        self._lock = Lock()

    def run(self, key: K, compute: Callable[[], V]) -> V:
        """`compute()`, or the result (or exception) of the thread that is computing this key already."""
        with self._lock:
            flight = self._running.get(key)
            mine = flight is None
            if flight is None:
                flight = self._running[key] = Flight(Future(), time.monotonic())
        if mine:
            self._fly(key, flight, compute)
        return flight.value.result()

    def begin(self, key: K, compute: Callable[[], V]) -> Flight[V]:
        """The computation of this key that is under way, or else one in a thread of its own, which nobody waits for
        who does not want to."""
        with self._lock:
            flight = self._running.get(key)
            if flight is None:
                flight = Flight(Future(), time.monotonic())
                Thread(target=self._fly, args=(key, flight, compute), name="flight", daemon=True).start()
                self._running[key] = flight
        return flight

    def _fly(self, key: K, flight: Flight[V], compute: Callable[[], V]) -> None:
        end: Callable[[], None]
        try:
            end = partial(flight.value.set_result, compute())
        except BaseException as e:
            end = partial(flight.value.set_exception, e)
        # Before those who wait go on: what they ask for then is computed anew.
        with self._lock:
            del self._running[key]
        end()
