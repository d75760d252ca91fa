"""Connections: how long a request's head may take, and how many bytes; requests that come before earlier ones are
answered; offers of other protocols; and what is told to connections that are too many."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from model_store.errors import FiberwalkError, InputError, OverloadedError
from service.crowd import crowd_of
from service.protocol import error_body

_HEAD_SECONDS: Final = 10.0
"""From a connection's start, or a later request's first byte, to the end of the request's head."""
_HEAD_BYTES: Final = 64 * 2**10
_LINGER_SECONDS: Final = 2.0
_STEP: Final = 8 * 2**10
"""Most bytes that are parsed at once: by so much a head may pass its bound, and requests that wait theirs."""
_QUEUED: Final = 16
"""While so many requests of a connection wait for the answer to an earlier one, no more are looked at."""


class _Flow(FlowControl):
    """uvicorn's, which begins to read again with each answer, however much is there already."""

    held = b""
    """What came and is not parsed yet; until it is, nothing more is read."""

    def resume_reading(self) -> None:
        if self.read_paused and not self.held:
            self.read_paused = False
            self._transport.resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP, with bounds for heads and for requests that wait; a body's time is the matter of who reads it."""

    flow: _Flow

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._answered: RequestResponseCycle | None = None
        """The request that is being answered, or was last."""
        self._refused = False
        self._loose = 0
        """Bytes since the last head or part of a body: those of a head, or of trailers, that have not ended."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)
        crowd = crowd_of(self)
        crowd.watch()
        if crowd.is_too_large():
            error = OverloadedError("The server has as many connections as it can; connect again later.")
            self._answer(503, error, (b"retry-after", b"1"))
            transport.close()
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        # uvicorn tells the request that came last, which of several is not the one that is being answered; none of the
        # others waits for anything any more.
        self.pipeline.clear()
        self.flow.held = b""
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if len(data) <= _STEP and len(self.pipeline) < _QUEUED and not self.flow.held:
            self._take(data)
        else:
            self._take_some(self.flow.held + data)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.flow.held and not self.transport.is_closing():
            self._take_some(self.flow.held)
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def on_headers_complete(self) -> None:
        self._loose = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._loose = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, InputError("This is no HTTP request that can be read; send HTTP/1.1.", code="invalid_http"))

    def _take_some(self, data: bytes) -> None:
        """Takes bytes step by step and leaves those that there is no room for."""
        start = 0
        while start < len(data) and len(self.pipeline) < _QUEUED:
            self._take(data[start : start + _STEP])
            start += _STEP
        self.flow.held = data[start:]
        if self.flow.held:
            self.flow.pause_reading()

    def _take(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._loose += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._loose > _HEAD_BYTES:
            error = InputError(
                "The request's head is too large; send fewer headers, or shorter ones, and what is long in the body.",
                code="headers_too_large",
                expected=f"at most {_HEAD_BYTES} bytes",
                got="more",
            )
            self._refuse(431, error)
        elif self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._stop_waiting()

    def _parse(self, data: bytes) -> None:
        """Hands bytes to the parser, as uvicorn does, but leaves offers of other protocols aside.

        At the end of a head with an `Upgrade`, the parser stops: what follows would be of that protocol. It is the body
        of a request that asks for an answer all the same (RFC 9110, section 7.8), and clients that know HTTP/2 offer it
        with every request. So a new parser gets the head again, without the offer, and what follows it.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as e:
                if self.scope["method"] == "CONNECT":  # which always leaves HTTP
                    self.send_400_response("")
                    return
                data = self._head_without_offer() + data[e.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            except httptools.HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("")
                return
            else:
                return

    def _should_upgrade(self) -> bool:
        """Has uvicorn do nothing at the end of a head that the parser stops at."""
        return True

    def _head_without_offer(self) -> bytes:
        start = f"{self.scope['method']} ".encode() + self.url + f" HTTP/{self.scope['http_version']}\r\n".encode()
        lines = [name + b": " + value + b"\r\n" for name, value in self.headers if name != b"upgrade"]
        return b"".join([start, *lines, b"\r\n"])

    def _wait(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(_HEAD_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if not self._loose:
            self.transport.close()  # who has asked for nothing expects no answer
            return
        error = InputError(
            "The request's head did not come to its end; send it again at once.",
            code="request_timeout",
            expected=f"a whole head within {_HEAD_SECONDS:g} s",
            got="a part of it",
        )
        self._refuse(408, error)

    def _refuse(self, status: int, error: InputError) -> None:
        """Ends the connection, with an answer where none has begun that this would fall into."""
        if self.transport.is_closing():
            return
        busy = self.cycle is not None and not self.cycle.response_complete
        if not (busy and (self.pipeline or self.cycle.response_started)):
            self._answer(status, error)
        if busy:
            self.transport.close()
            return
        # Closed while the client still sends, the connection would take the answer with it.
        self._refused = True
        self.transport.write_eof()
        self._stop_waiting()
        self._deadline = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _answer(self, status: int, error: FiberwalkError, *more: tuple[bytes, bytes]) -> None:
        body = error_body(error)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *more,
        ]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + body)
