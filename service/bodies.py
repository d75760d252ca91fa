"""The bodies of requests, and how much memory they take together."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from model_store.errors import InputError, OverloadedError
from service.metrics import ServiceMetrics
from service.settings import Settings

_SMALL: Final = 64 * 2**10
"""Bytes of a body that is always read: few large ones that come slowly must not keep everyone else out."""
_SECONDS: Final = 30.0
"""For each `_SMALL` bytes of a body, or its end."""
_LOOK_SECONDS: Final = 1.0


class _Reader:
    """A body that is being read.

    Attributes:
        task: who reads it.
        due: when it is late, by the event loop's clock.
        late: whether its task was interrupted for that.
    """

    __slots__ = ("due", "late", "task")

    def __init__(self, task: asyncio.Task[object], due: float) -> None:
        self.task, self.due, self.late = task, due, False


class Bodies:
    """Counts the bytes of bodies from their arrival until their requests are answered; of the event loop alone."""

    def __init__(self, settings: Settings, metrics: ServiceMetrics) -> None:
        self._largest, self._most = settings.max_body_bytes, settings.max_waiting_bytes
        self._metrics = metrics
        self._held = 0
        self._readers: set[_Reader] = set()
        self._looking = False

    async def read(self, receive: Receive, declared: bytes) -> bytes:
        """A request's body, which counts until it is released.

        Args:
            receive: where it comes from.
            declared: its length as the client says it, which is not relied on; empty where it says nothing.

        Raises:
            InputError: the body is too large for one request, or comes too slowly.
            OverloadedError: it would be too much beside those of others that are not answered yet.
            ClientDisconnect: the client went away before its end.
        """
        if declared.isdigit() and len(declared) < 20:
            self._check(int(declared), 0)
        # Not a list of parts, each of which may be a single byte.
        body = bytearray()
        reader, loop = self._begin(), asyncio.get_running_loop()
        enough = _SMALL
        try:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                part = message.get("body", b"")
                self._check(len(body) + len(part), len(body))
                body += part
                self._held += len(part)
                if len(body) >= enough:
                    reader.due, enough = loop.time() + _SECONDS, len(body) + _SMALL
                more = message.get("more_body", False)
        except BaseException:
            self._held -= len(body)
            if not reader.late:
                raise
            reader.task.uncancel()
            raise InputError(
                "The body did not come to its end; send the request again, and its body at once.",
                code="request_timeout",
                expected=f"{_SMALL} bytes, or the end, within {_SECONDS:g} s",
                got=f"{len(body)} bytes of all",
            ) from None
        finally:
            self._readers.discard(reader)
        return bytes(body)

    def release(self, body: bytes) -> None:
        """Counts a body out whose request is answered, or has failed."""
        self._held -= len(body)

    def _begin(self) -> _Reader:
        """Has the task that runs watched. One timer for all: one of each body's own costs more than reading it."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        reader = _Reader(task, loop.time() + _SECONDS)
        self._readers.add(reader)
        if not self._looking:
            self._looking = True
            loop.call_later(_LOOK_SECONDS, self._look, loop)
        return reader

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Interrupts who reads a body that is late; again and again while any is read."""
        now = loop.time()
        for reader in self._readers:
            if now > reader.due and not reader.late:
                reader.late = True
                reader.task.cancel()
        self._looking = bool(self._readers)
        if self._looking:
            loop.call_later(_LOOK_SECONDS, self._look, loop)

    def _check(self, size: int, held: int) -> None:
        """Refuses a body of a size, of which so much is held already."""
        if size > self._largest:
            raise InputError(
                "The body is too large; send fewer rows in a request.",
                code="body_too_large",
                expected=f"at most {self._largest} bytes",
                got="more",
            )
        others = self._held - held
        if size > _SMALL and others and others + size > self._most:
            self._metrics.overloads.inc()
            raise OverloadedError(
                "The server is busy and the requests that wait already are large; send this one again later, or fewer "
                "rows in a request.",
                expected=f"at most {self._most} bytes of all requests that wait",
                got=f"{others} bytes that wait",
            )
