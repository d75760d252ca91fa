"""The bodies of requests, and how much memory they take together."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

from model_store.errors import InputError, OverloadedError
from service.metrics import ServiceMetrics
from service.settings import Settings

_SMALL: Final = 64 * 2**10
"""Bytes of a body that is always read: few large ones that come slowly must not keep everyone else out."""


class Bodies:
    """Counts the bytes of bodies from their arrival until their requests are answered; of the event loop alone."""

    def __init__(self, settings: Settings, metrics: ServiceMetrics) -> None:
        self._largest, self._most = settings.max_body_bytes, settings.max_waiting_bytes
        self._metrics = metrics
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """A request's body, which counts until it is released; what a client says of its length is not relied on.

        Raises:
            InputError: the body is too large for one request.
            OverloadedError: it would be too much beside those of others that are not answered yet.
        """
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and len(declared) < 20:
            self._check(int(declared), 0)
        body = bytearray()
        try:
            async for part in request.stream():
                self._check(len(body) + len(part), len(body))
                body += part
                self._held += len(part)
        except BaseException:
            self._held -= len(body)
            raise
        return bytes(body)

    def release(self, body: bytes) -> None:
        """Counts a body out whose request is answered, or has failed."""
        self._held -= len(body)

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
