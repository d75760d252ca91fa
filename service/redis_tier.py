"""Decoded weights shared between servers through Redis; whatever Redis does, an answer never depends on it.

A value is a header and raw little-endian float32, row-major (S, P). The header's checksum covers the key as well,
so that a value which ended up under another key is refused too. After a failure Redis is left alone, and a thread of
its own tries until it answers again: no request waits for a Redis that is known to be down.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Callable
from typing import Final, TypeVar

import numpy as np
import redis
import structlog
from numpy.typing import NDArray
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.cache import WeightKey
from service.metrics import ServiceMetrics

Float32 = NDArray[np.float32]
T = TypeVar("T")

MAGIC: Final = b"FIBRWALK"
FORMAT_VERSION: Final = 1
_FLOAT32: Final = 1
_HEADER: Final = struct.Struct("<8sHHIQ32s32s")
"""magic, format version, dtype, S, P, bundle digest, sha256 of key and payload."""


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
        ValueError: it is not, to the byte, what `pack` made for this key; the message says why.
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
    return weights


def _checksum(key: WeightKey, payload: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(str(key).encode())
    digest.update(payload)
    return digest.digest()


class RedisTier:
    """Gets and puts weights; every failure costs a counter and a log line, and nothing else."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        retry: float,
        ttl: int,
        max_bytes: int,
        metrics: ServiceMetrics,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """Connects to nothing yet.

        Args:
            url: Redis address, with credentials where it needs them; it is never logged.
            timeout: seconds for connecting and for each answer.
            retry: seconds between attempts to reach a Redis that failed.
            ttl: seconds that a value lives.
            max_bytes: larger values are not put.
            metrics: where failures are counted.
            log: where they are logged.
        """
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
        )
        self._retry, self._ttl, self._max_bytes = retry, ttl, max_bytes
        self._metrics, self._log = metrics, log
        self._lock = threading.Lock()
        self._up = True
        self._closed = threading.Event()
        metrics.redis_up.set(1)

    def get(self, key: WeightKey, size: int) -> Float32 | None:
        """The weights (S, P = size) of a key; None where Redis has none, or none that is right."""
        value = self._try("get", lambda: self._client.get(str(key)))
        if value is None:
            return None
        try:
            # A client that decodes responses, or another type under the key, would not give bytes.
            return unpack(key, size, bytes(value))  # type: ignore[arg-type]
        except (ValueError, TypeError) as e:
            self._metrics.redis_errors.labels("rubbish").inc()
            self._log.warning("redis_value_refused", key=str(key), wrong=str(e))
            return None

    def put(self, key: WeightKey, weights: Float32) -> None:
        """Keeps weights (S, P) under a key for the time to live."""
        if weights.nbytes > self._max_bytes:
            return
        value = pack(key, weights)
        self._try("put", lambda: self._client.set(str(key), value, ex=self._ttl))

    def close(self) -> None:
        """Stops trying and closes all connections."""
        self._closed.set()
        self._client.close()

    def _try(self, operation: str, call: Callable[[], T]) -> T | None:
        if not self._up:
            return None
        try:
            return call()
        except (redis.RedisError, OSError, ValueError) as e:
            self._failed(operation, e)
            return None

    def _failed(self, operation: str, error: Exception) -> None:
        kind = _kind(error)
        self._metrics.redis_errors.labels(kind).inc()
        # The error's own text could quote the address, and with it a password.
        self._log.warning("redis_failed", operation=operation, kind=kind, error=type(error).__name__)
        with self._lock:
            if not self._up or self._closed.is_set():
                return
            self._up = False
        self._metrics.redis_up.set(0)
        threading.Thread(target=self._wait_for_redis, name="redis-retry", daemon=True).start()

    def _wait_for_redis(self) -> None:
        while not self._closed.wait(self._retry):
            try:
                self._client.ping()
            except (redis.RedisError, OSError, ValueError):
                continue
            self._up = True
            self._metrics.redis_up.set(1)
            self._log.info("redis_back")
            return


def _kind(error: Exception) -> str:
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return "timeout"
    if isinstance(error, redis.AuthenticationError | redis.ResponseError):
        return "refused"
    return "connection"
