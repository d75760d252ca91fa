"""When Redis is taken for up, and when it is tried again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import CapturingLogger

from service.metrics import ServiceMetrics
from service.redis_link import RedisLink
from tests.servers import RedisServer, free_port, serving, wait_until


class Link:
    """A way to Redis with metrics and a log of its own."""

    def __init__(self, url: str, retry: float = 0.05) -> None:
        self.metrics, self.log = ServiceMetrics(), CapturingLogger()
        self.link = RedisLink(url, timeout=0.5, retry=retry, metrics=self.metrics, log=self.log)  # type: ignore[arg-type]

    @property
    def up(self) -> float | None:
        return self.metrics.registry.get_sample_value("fiberwalk_redis_up")

    @property
    def logged(self) -> list[str]:
        return [str(call.args[0]) for call in self.log.calls]

    def write(self) -> bool | None:
        return self.link.attempt("put", lambda: bool(self.link.client.set("key", b"value")))


@contextmanager
def linked(url: str, retry: float = 0.05) -> Iterator[Link]:
    made = Link(url, retry)
    try:
        yield made
    finally:
        made.link.close()


class Pauses:
    """Takes the place of the event that a link waits for; ends it after some pauses."""

    def __init__(self, most: int) -> None:
        self.most, self.seconds = most, list[float]()

    def is_set(self) -> bool:
        return False

    def set(self) -> None:
        pass

    def wait(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return len(self.seconds) > self.most


def test_redis_is_up_once_it_has_answered(redis_server: RedisServer) -> None:
    with linked(redis_server.url) as asked, linked(redis_server.url) as started:
        assert asked.up == started.up == 0
        assert asked.write() is True and asked.up == 1
        started.link.start()
        wait_until(lambda: started.up == 1)


def test_a_redis_that_is_not_there_never_was_up() -> None:
    with linked(f"redis://127.0.0.1:{free_port()}/0") as one:
        one.link.start()
        wait_until(lambda: "redis_failed" in one.logged)
        assert one.up == 0 and one.write() is None


@pytest.mark.parametrize("there", [True, False])
def test_a_server_asks_redis_as_it_starts(store: Path, redis_server: RedisServer, there: bool) -> None:
    url = redis_server.url if there else f"redis://127.0.0.1:{free_port()}/0"
    with serving(store, redis_url=url, redis_weights="never") as server:
        if there:
            wait_until(lambda: server.counter("fiberwalk_redis_up") == 1)
        else:
            wait_until(lambda: "redis_failed" in server.log)
            assert server.counter("fiberwalk_redis_up") == 0


def test_a_redis_that_takes_no_writes_is_not_back(redis_server: RedisServer) -> None:
    with linked(redis_server.url) as one, redis_server.client() as client:
        assert one.write() is True
        client.config_set("min-replicas-to-write", 1)
        pauses = Pauses(6)
        usual, one.link._closed = one.link._closed, pauses  # type: ignore[assignment]
        assert one.write() is None
        wait_until(lambda: len(pauses.seconds) == 7)
        assert one.logged == ["redis_failed"] and one.up == 0
        one.link._closed = usual
        client.config_set("min-replicas-to-write", 0)
        one.link._wait_for_redis()
        assert one.logged == ["redis_failed", "redis_back"] and one.up == 1
        assert one.write() is True


def test_each_attempt_waits_longer_than_the_one_before(redis_server: RedisServer) -> None:
    with linked(redis_server.url, retry=2.0) as one:
        redis_server.kill()
        pauses = Pauses(6)
        one.link._closed = pauses  # type: ignore[assignment]
        assert one.write() is None
        wait_until(lambda: len(pauses.seconds) == 7)
        assert pauses.seconds == [2, 4, 8, 16, 30, 30, 30]

        # One that fails again soon is no sounder for having answered once.
        redis_server.start()
        for up_for, pause in ((0.0, 30), (60.0, 2)):
            pauses.seconds.clear()
            one.link._wait_for_redis()
            assert one.up == 1
            one.link._back -= up_for
            one.link._failed("put", OSError())
            wait_until(lambda pause=pause: one.up == 1 and pauses.seconds[1:] == [pause])  # type: ignore[misc]
