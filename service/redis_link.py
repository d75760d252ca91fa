"""The way to Redis that all that is shared between servers takes: short waits, none for one that is known to be down.

After a failure Redis is left alone, and a thread of its own tries until it takes something again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar
from urllib.parse import parse_qs, urlsplit

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from model_store.errors import ConfigError
from service.cache import KEY_PREFIX
from service.metrics import ServiceMetrics

T = TypeVar("T")

_READ_BYTES = 2**20
_LONGEST_SECONDS: Final = 30.0
"""Between attempts to reach a Redis that goes on failing; one that was up for so long is tried soon again."""


def make_client(url: str, timeout: float) -> redis.Redis:
    """A client that is not connected yet.

    Args:
        url: Redis address.
        timeout: seconds for connecting and for each answer.

    Raises:
        ConfigError: the address has options, or values of them, that clients do not take.
    """
    try:
        client = redis.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
            # Weight sets have megabytes, and the client's own 64 KiB a read make it a multiple slower.
            socket_read_size=_READ_BYTES,
        )
        # Most of what the address says a client learns as it connects.
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except (redis.RedisError, TypeError, ValueError, AttributeError):
        query = urlsplit(url).query
        # Names of options alone: values are secrets, and so is what only looks like a query within a password.
        named = "" if "@" in query else f" ({', '.join(parse_qs(query, keep_blank_values=True))})"
        raise ConfigError(
            f"FIBERWALK_REDIS_URL has an option{named} that Redis clients do not know, or not with this value; mend it "
            "or leave it out.",
            field="redis_url",
        ) from None
    return client


class RedisLink:
    """Calls Redis; every failure costs a counter and a log line, and nothing else. Safe to use from many threads."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        retry: float,
        metrics: ServiceMetrics,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """Connects to nothing yet.

        Args:
            url: Redis address, with credentials where it needs them; it is never logged.
            timeout: seconds for connecting and for each answer.
            retry: seconds to the first attempt to reach a Redis that failed; each later one waits twice as long.
            metrics: where failures are counted.
            log: where they are logged.

        Raises:
            ConfigError: as of `make_client`.
        """
        self.client = make_client(url, timeout)
        self.timeout = timeout
        self._retry = self._pause = retry
        self._metrics, self._log = metrics, log
        self._lock = threading.Lock()
        self._up = True
        self._answered = False
        self._back = 0.0
        self._closed = threading.Event()
        metrics.redis_up.set(0)

    def start(self) -> None:
        """Asks Redis in the background, so that it is known soon whether it is there."""
        threading.Thread(target=self.attempt, args=("start", self._probe), name="redis-start", daemon=True).start()

    def attempt(self, operation: str, call: Callable[[], T]) -> T | None:
        """What `call` returns; None where Redis failed now, or is left alone since it did.

        A key that holds something of another type is no failure of Redis, which goes on being asked.
        """
        if not self._up:
            return None
        try:
            found = call()
        except redis.ResponseError as e:
            if "WRONGTYPE" not in str(e):
                self._failed(operation, e)
                return None
            self.refuse(operation, "type")
            found = None
        except (redis.RedisError, OSError, ValueError) as e:
            self._failed(operation, e)
            return None
        if not self._answered:
            self._tell_up()
        return found

    def refuse(self, key: str, wrong: str) -> None:
        """Counts and logs a value that is not usable, by its key or by what it was wanted for."""
        self._metrics.redis_errors.labels("rubbish").inc()
        self._log.warning("redis_value_refused", key=key, wrong=wrong)

    def close(self) -> None:
        """Stops trying and closes all connections."""
        self._closed.set()
        self.client.close()

    def _failed(self, operation: str, error: Exception) -> None:
        kind = _kind(error)
        self._metrics.redis_errors.labels(kind).inc()
        # The error's own text could quote the address, and with it a password.
        self._log.warning("redis_failed", operation=operation, kind=kind, error=type(error).__name__)
        with self._lock:
            if not self._up or self._closed.is_set():
                return
            self._up = self._answered = False
            self._metrics.redis_up.set(0)
            if time.monotonic() - self._back > _LONGEST_SECONDS:
                self._pause = self._retry
        threading.Thread(target=self._wait_for_redis, name="redis-retry", daemon=True).start()

    def _wait_for_redis(self) -> None:
        while not self._closed.wait(self._pause):
            self._pause = min(2 * self._pause, max(self._retry, _LONGEST_SECONDS))
            try:
                self._probe()
            except (redis.RedisError, OSError, ValueError):
                continue
            self._back = time.monotonic()
            self._up = True
            self._tell_up()
            self._log.info("redis_back")
            return

    def _probe(self) -> None:
        # One that is full or takes no writes answers a ping, and then fails again at once.
        self.client.set(f"{KEY_PREFIX}up", b"", ex=int(_LONGEST_SECONDS))

    def _tell_up(self) -> None:
        with self._lock:
            if self._up:  # and no other thread has seen it fail meanwhile
                self._answered = True
                self._metrics.redis_up.set(1)


def _kind(error: Exception) -> str:
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return "timeout"
    if isinstance(error, redis.AuthenticationError | redis.ResponseError):
        return "refused"
    return "connection"
