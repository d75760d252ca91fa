"""Decoded weights shared between servers through Redis; whatever Redis does, an answer never depends on it.

A value is a header and raw little-endian float32, row-major (S, P). The header's checksum covers the key as well,
so that a value which ended up under another key is refused too.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.cache import KEY_PREFIX, WeightKey
from service.redis_link import RedisLink
from service.timing import least_seconds

Float32 = NDArray[np.float32]

MAGIC: Final = b"FIBRWALK"
FORMAT_VERSION: Final = 1
_FLOAT32: Final = 1
_HEADER: Final = struct.Struct("<8sHHIQ32s32s")
"""magic, format version, dtype, S, P, bundle digest, sha256 of key and payload."""

_ASKED: Final = b"asked"
"""In place of weights that were asked for once."""
_ASKED_SECONDS: Final = 3600
"""For which that is remembered."""
_PROBE_BYTES, _PROBE_SECONDS, _PROBE_TRIES = 2**20, 10, 3
_KNOWN_SECONDS: Final = 60.0
"""For which a measurement holds."""
_SHARE_OF_LATEST = 0.25
"""How much of what fetching is thought to cost is what it cost last."""


def pack(key: WeightKey, weights: Float32) -> bytes:
    """The value of weights (S, P)."""
    payload = np.ascontiguousarray(weights, dtype="<f4").tobytes()
    samples, size = weights.shape
    digest = bytes.fromhex(key.digest)
    header = _HEADER.pack(MAGIC, FORMAT_VERSION, _FLOAT32, samples, size, digest, _checksum(key, payload))
    return header + payload


def unpack(key: WeightKey, size: int, value: bytes) -> Float32:
    """The weights (S, P) of a value.

    Args:
        key: the key the value was found under.
        size: P.
        value: what Redis returned.

    Raises:
        ValueError: it is not, to the byte, what `pack` made for this key of finite weights; the message says why.
    """
    if len(value) != _HEADER.size + 4 * key.samples * size:
        raise ValueError("size")
    magic, version, dtype, samples, p, digest, checksum = _HEADER.unpack_from(value)
    if magic != MAGIC or version != FORMAT_VERSION or dtype != _FLOAT32:
        raise ValueError("format")
    if (samples, p, digest.hex()) != (key.samples, size, key.digest):
        raise ValueError("header")
    payload = memoryview(value)[_HEADER.size :]
    if checksum != _checksum(key, payload):
        raise ValueError("checksum")
    weights: Float32 = np.frombuffer(payload, dtype="<f4").reshape(samples, p)
    if not np.isfinite(weights).all():
        raise ValueError("numbers")
    return weights


def _checksum(key: WeightKey, payload: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(str(key).encode())
    digest.update(payload)
    return digest.digest()


@dataclass(frozen=True)
class _Cost:
    """Seconds of fetching a value, checks included: of any, and of each byte."""

    any: float
    byte: float

    def after(self, nbytes: int, seconds: float) -> _Cost:
        """What it is thought to be once a fetch of so many bytes took so long."""
        latest = max(seconds - self.any, 0.0) / nbytes
        return _Cost(self.any, self.byte + _SHARE_OF_LATEST * (latest - self.byte))


class RedisTier:
    """Gets and puts weights, and knows what getting takes."""

    def __init__(self, link: RedisLink, *, ttl: int, max_bytes: int) -> None:
        """Args:
        link: the way to Redis.
        ttl: seconds that a value lives.
        max_bytes: larger values are not put.
        """
        self._link, self._ttl, self._max_bytes = link, ttl, max_bytes
        self._cost: _Cost | None = None
        self._known = 0.0

    def seconds(self, nbytes: int) -> float | None:
        """What fetching weights of so many bytes is expected to take; None where Redis cannot be asked, or would not
        have so many. Measured with a value of a megabyte when first asked, then with every fetch, and again where
        there was none for a while: a slow one may have been the last."""
        if nbytes > self._max_bytes:
            return None
        if self._cost is None or time.monotonic() - self._known > _KNOWN_SECONDS:
            self._cost, self._known = self._link.attempt("measure", self._measured), time.monotonic()
        return None if self._cost is None else self._cost.any + nbytes * self._cost.byte

    def get(self, key: WeightKey, size: int) -> Float32 | None:
        """The weights (S, P = size) of a key; None where Redis has none, or none that is right."""
        started = time.perf_counter()
        pipe = self._link.client.pipeline(transaction=False)
        # Of a value that is too long, one byte more than is right comes, and not the whole of it.
        pipe.getrange(str(key), 0, _HEADER.size + 4 * key.samples * size)
        # What is used lives on: were it to expire on all servers at once, all would decode it anew at once.
        pipe.expire(str(key), self._ttl)
        value, there = self._link.attempt("get", pipe.execute) or (b"", 0)
        if not there or value == _ASKED:
            return None
        try:
            found = unpack(key, size, value)
        except ValueError as e:
            self._link.refuse(str(key), str(e))
            return None
        if self._cost is not None:
            self._cost = self._cost.after(found.nbytes, time.perf_counter() - started)
            self._known = time.monotonic()
        return found

    def put(self, key: WeightKey, size: int, weights: Callable[[], Float32], *, at_once: bool = True) -> None:
        """Keeps weights (S, P = size) under a key for the time to live; they are made only where Redis takes them.

        Unless `at_once`, what is asked for the first time is noted alone, whichever server was asked: clients draw new
        seeds without end, and sets of megabytes that nobody asks for again would fill Redis.
        """
        if 4 * key.samples * size > self._max_bytes:
            return
        client, name, ttl = self._link.client, str(key), min(_ASKED_SECONDS, self._ttl)
        first = not at_once and self._link.attempt("note", lambda: bool(client.set(name, _ASKED, ex=ttl, nx=True)))
        if not first:
            self._link.attempt("put", lambda: client.set(name, pack(key, weights()), ex=self._ttl))

    def _measured(self) -> _Cost:
        client, key = self._link.client, f"{KEY_PREFIX}probe:{os.getpid()}"
        client.set(key, bytes(_PROBE_BYTES), ex=_PROBE_SECONDS)

        def fetched() -> None:
            hashlib.sha256(bytes(client.get(key) or b"")).digest()  # type: ignore[arg-type]

        any_value, probe = (least_seconds(call, _PROBE_TRIES) for call in (client.ping, fetched))
        client.delete(key)
        return _Cost(any_value, max(probe - any_value, 0.0) / _PROBE_BYTES)
