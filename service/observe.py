"""Around every request: its id, its log line, its metrics, and the last resort when something fails."""

from __future__ import annotations

import re
import time
from functools import cache
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model_store.errors import FiberwalkError
from service.memory import forget_frames
from service.protocol import error_body
from service.randomness import RandomBytes
from service.remembered import USABLE_ID
from service.runtime import Runtime

_REQUEST_ID: Final = b"x-request-id"
_QUIET = {"/healthz", "/readyz", "/metrics"}
_METHODS = {"GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"}

_TRACE: Final = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
"""The header `traceparent`: version, trace, parent and flags (W3C Trace Context, section 3.2)."""

_TOLD = ("trace_id", "model", "code")
"""What a request's state says of it for the log, as soon as that is known."""
_FAILED: Final = FiberwalkError("The server failed on this request; its log says why.", code="internal_error")


class ObserveRequests:
    """ASGI middleware: echoes or makes `X-Request-ID`, logs and counts requests, and answers 500 for what escapes."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self._app, self._runtime = app, runtime
        self._ids = RandomBytes(16)
        # Looking series up by their labels takes longer than counting. There are as many as known routes allow.
        self._count = cache(lambda *labels: runtime.metrics.requests.labels(*labels).inc)
        self._time = cache(lambda route: runtime.metrics.seconds.labels(route).observe)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head = dict(scope["headers"])
        given = head.get(_REQUEST_ID, b"").decode("latin-1")
        request_id = given if USABLE_ID.fullmatch(given) else self._ids.take().hex()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        trace = _TRACE.fullmatch(head.get(b"traceparent", b""))
        if trace is not None:
            state["trace_id"] = trace[1].decode()
        started = time.perf_counter()
        status, answered = 0, 0.0

        async def observed(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_REQUEST_ID, request_id.encode())]
            await send(message)
            if message["type"] == "http.response.start" or message.get("body"):
                answered = time.perf_counter()  # and not when a client has sent what nobody reads

        try:
            await self._app(scope, receive, observed)
        except ClientDisconnect as e:
            forget_frames(e)
            status = 499  # as other servers log a client that went away
        except Exception as e:
            self._runtime.log.exception("request_failed", request_id=request_id, path=scope["path"])
            forget_frames(e)
            scope["state"]["code"] = _FAILED.code
            if not status:
                await _internal_error(observed)
            status = 500
        self._record(scope, status, (answered or time.perf_counter()) - started, request_id)

    def _record(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        # Only known routes and methods become label values, so that no client can make series without end.
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._count(method, route, str(status))()
        self._time(route)(seconds)
        state = scope["state"]
        log = self._runtime.log.debug if route in _QUIET else self._runtime.log.info
        log(
            "request",
            request_id=request_id,
            method=method,
            path=scope["path"][:200],
            status=status,
            milliseconds=round(1000 * seconds, 2),
            **{name: state[name] for name in _TOLD if name in state},
        )


async def _internal_error(send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": error_body(_FAILED)})
