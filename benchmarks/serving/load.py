"""Clients that ask again and again over connections that stay open, as cheaply as can be: they share the machine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, cast
from urllib.parse import urlsplit

import numpy as np

from model_store.errors import FiberwalkError

_WARM_SECONDS: Final = 0.3
_LENGTH: Final = b"content-length:"


@dataclass(frozen=True)
class Load:
    """What clients found.

    Attributes:
        rate: answers a second, of all clients together.
        p50, p99: milliseconds from a request to its answer.
    """

    rate: float
    p50: float
    p99: float


def medians(turns: Sequence[Load]) -> dict[str, float]:
    """The medians of each figure over several turns, by its name."""
    names = [field.name for field in fields(Load)]
    return {n: round(float(np.median([getattr(turn, n) for turn in turns])), 3) for n in names}


def post_json(path: str, content: dict[str, Any]) -> bytes:
    """A request of this content, as it goes over the wire."""
    return post(path, json.dumps(content).encode())


def post(path: str, body: bytes, kind: str = "application/json", wanted: str = "*/*") -> bytes:
    """A request with a body of media type `kind`, for an answer of `wanted`, as it goes over the wire."""
    head = [f"POST {path} HTTP/1.1", "Host: benchmark", f"Content-Type: {kind}", f"Accept: {wanted}"]
    return "\r\n".join([*head, f"Content-Length: {len(body)}"]).encode() + b"\r\n\r\n" + body


Ask = bytes | Callable[[], bytes]
"""A request, or what makes each anew."""


def load(url: str, requests: Sequence[Ask], seconds: float, status: int = 200) -> Load:
    """Asks a server for some seconds: as many clients as requests, each its own again and again.

    Raises:
        FiberwalkError: an answer was none of that status, or a connection was lost.
    """
    return asyncio.run(_load(url, requests, seconds, status))


async def _load(url: str, requests: Sequence[Ask], seconds: float, status: int) -> Load:
    address, loop, times = urlsplit(url), asyncio.get_running_loop(), cast(list[float], [])
    failed: asyncio.Future[None] = loop.create_future()
    clients = []
    for request in requests:
        _, client = await loop.create_connection(
            lambda request=request: _Client(request, status, times, failed),  # type: ignore[misc]
            address.hostname or "",
            address.port or 80,
        )
        clients.append(client)
    await asyncio.wait([failed], timeout=_WARM_SECONDS)
    times.clear()
    started = time.perf_counter()
    await asyncio.wait([failed], timeout=seconds)
    taken, found = time.perf_counter() - started, np.array(times) * 1e3
    for client in clients:
        client.close()
    if failed.done():
        failed.result()
    if not len(found):
        raise FiberwalkError(f"{url} gave no answer in {seconds} s.", code="no_answer")
    return Load(len(found) / taken, float(np.median(found)), float(np.quantile(found, 0.99)))


class _Client(asyncio.Protocol):
    """Sends its request again as soon as the answer is there, and notes how long that took."""

    def __init__(self, request: Ask, status: int, times: list[float], failed: asyncio.Future[None]) -> None:
        self._request, self._times, self._failed = request, times, failed
        self._wanted = f"HTTP/1.1 {status} ".encode()
        self._answer = bytearray()
        self._length = 0
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        request = self._request if isinstance(self._request, bytes) else self._request()
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not self._length:
            head, end, _ = self._answer.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(self._wanted):
                self._fail(bytes(self._answer[:500]).decode(errors="replace"))
                return
            size = head.lower().partition(_LENGTH)[2].partition(b"\r\n")[0]
            self._length = len(head) + len(end) + int(size)
        if len(self._answer) >= self._length:
            self._times.append(time.perf_counter() - self._sent)
            self._answer.clear()
            self._length = 0
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"lost a connection: {exc}")

    def close(self) -> None:
        self._closing = True
        self._transport.close()

    def _fail(self, why: str) -> None:
        if not self._closing and not self._failed.done():
            self._failed.set_exception(FiberwalkError(f"The server {why}", code="load_failed"))
        self.close()
