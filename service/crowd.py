"""All connections of a server together: how many there may be, and what their clients have still to take."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import resource
import socket
import struct
import sys
import termios
from contextlib import suppress
from typing import Final, cast
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

_LOOK_SECONDS: Final = 2.0
_SECONDS: Final = 30.0
"""For so long a client may take nothing of an answer that waits for it."""
_MOST_BYTES: Final = 256 * 2**20
"""Of all answers that wait to be taken. While there are more, patience is short."""
_SHORT_SECONDS: Final = 5.0
_MANY: Final = 1000
"""While there are more connections, or half of what there may be, those that ask for nothing are kept for as long as
this alone:"""
_IDLE_SECONDS: Final = 5.0
_SPARE: Final = 64
"""Files that the process may open beside its connections; a quarter of all where that is more, half where all are
few."""
_TOLD_SECONDS: Final = 60.0
_crowds: WeakKeyDictionary[ServerState, Crowd] = WeakKeyDictionary()


def crowd_of(connection: HttpToolsProtocol) -> Crowd:
    """The connections of this one's server."""
    crowd = _crowds.get(connection.server_state)
    if crowd is None:
        crowd = _crowds[connection.server_state] = Crowd(connection)
    return crowd


class Crowd:
    """Connections that are looked at every few seconds, so that requests and answers bear no part of its cost."""

    def __init__(self, first: HttpToolsProtocol) -> None:
        self._loop = first.loop
        self._log = logging.getLogger("uvicorn.error")
        self._connections = cast("set[HttpToolsProtocol]", first.connections)
        self._left: dict[HttpToolsProtocol, tuple[int, float]] = {}
        """By connection with something left to send: how much, and since when its client has taken nothing."""
        self._next: asyncio.TimerHandle | None = None
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = (
            sys.maxsize if files == resource.RLIM_INFINITY else files - max(min(_SPARE, files // 2), files // 4)
        )
        self._told = -_TOLD_SECONDS

    def is_too_large(self) -> bool:
        """Whether there are more connections than leave the process the files that it needs to answer any of them."""
        if len(self._connections) <= self._most:
            return False
        now = self._loop.time()
        if now - self._told >= _TOLD_SECONDS:
            self._told = now
            self._log.warning("More than %d connections are open; further ones are refused (ulimit -n).", self._most)
        return True

    def watch(self) -> None:
        """Goes on looking until there are no connections."""
        if self._next is None:
            self._next = self._loop.call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._next = None
        if self._connections:
            self.watch()
        now = self._loop.time()
        left: dict[HttpToolsProtocol, tuple[int, float]] = {}
        waiting = 0
        crowded = len(self._connections) > min(_MANY, self._most // 2)
        for connection in self._connections:
            if crowded and _idle_seconds(connection, now) > _IDLE_SECONDS:
                connection.transport.close()
            size = connection.transport.get_write_buffer_size()
            if size:
                waiting += size
                size += _on_the_way(connection.transport)
                before, since = self._left.get(connection, (size, now))
                left[connection] = (size, now if size < before else since)
        self._left = left
        self._let_go(now, waiting)

    def _let_go(self, now: float, waiting: int) -> None:
        """Ends connections whose clients take nothing, those first that have taken nothing for longest."""
        ended = 0
        for connection, (_, since) in sorted(self._left.items(), key=lambda item: item[1][1]):
            if now - since < (_SECONDS if waiting <= _MOST_BYTES else _SHORT_SECONDS):
                break
            waiting -= connection.transport.get_write_buffer_size()
            _reset(connection.transport)
            ended += 1
        if ended:
            self._log.warning("Connections whose clients did not read their answers were closed: %d.", ended)


def _idle_seconds(connection: HttpToolsProtocol, now: float) -> float:
    """For how long a connection has been waiting for another request."""
    end = connection.timeout_keep_alive_task
    return 0.0 if end is None else now - end.when() + connection.timeout_keep_alive


def _reset(transport: asyncio.Transport) -> None:
    """Ends a connection so that the system as well forgets what was to be sent, which it would offer for minutes."""
    with suppress(OSError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _on_the_way(transport: asyncio.Transport) -> int:
    """Bytes that the system holds until the client has taken them.

    It holds megabytes and takes more only when a third of them has gone: of a slow client a transport sees nothing for
    minutes.
    """
    with suppress(OSError, ValueError):  # not known of every kind of socket, nor by every system
        held: int = struct.unpack(
            "i", fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        )[0]
        return held
    return 0
