"""A request on its way from the event loop through a worker thread and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.model import Columns
from service.together import Run, Steps

Begin = Callable[[], Steps]
Write = Callable[[dict[str, Any]], bytes]


class Ticket:
    """A request from its arrival to its answer.

    Attributes:
        begin, write: the start of its way, and what turns the answer's content into bytes.
        future: the answer, of the event loop.
        arrived: by the clock of `time.perf_counter`.
        waiting: whether it counts as one that waits; guarded by the scheduler's lock.
        gone: whether nobody wants the answer any more.
        steps: its way, once begun; stands at what it wants of the network.
    """

    __slots__ = ("arrived", "begin", "future", "gone", "loop", "run", "steps", "waiting", "write")

    steps: Steps
    run: Run

    def __init__(self, begin: Begin, write: Write, loop: asyncio.AbstractEventLoop) -> None:
        self.begin, self.write, self.loop = begin, write, loop
        self.future: asyncio.Future[bytes] = loop.create_future()
        self.arrived = time.perf_counter()
        self.waiting = self.gone = False

    def finish(self, columns: Columns | Exception) -> bytes | Exception:
        """The answer, or why there is none, from what the network found."""
        try:
            if isinstance(columns, Exception):
                self.steps.throw(columns)
            self.steps.send(columns)  # type: ignore[arg-type]
        except StopIteration as end:
            return self._written(end)
        except Exception as e:
            return e
        return AssertionError("a request runs the network once")

    def start(self) -> bytes | Exception | None:
        """Reads the request; the answer or the error where it does not need the network, else None."""
        try:
            self.steps = self.begin()
            self.run = next(self.steps)
        except StopIteration as end:
            return self._written(end)
        except Exception as e:
            return e
        return None

    def _written(self, end: StopIteration) -> bytes | Exception:
        try:
            return self.write(end.value)
        except Exception as e:
            return e


def tell(outcomes: Sequence[tuple[Ticket, bytes | Exception]]) -> None:
    """Hands answers over to the event loop, which waits for them."""
    if outcomes:
        with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
            outcomes[0][0].loop.call_soon_threadsafe(_settle, outcomes)


def _settle(outcomes: Sequence[tuple[Ticket, bytes | Exception]]) -> None:
    for ticket, outcome in outcomes:
        if ticket.future.done():
            continue
        if isinstance(outcome, Exception):
            ticket.future.set_exception(outcome)
        else:
            ticket.future.set_result(outcome)


async def watch(receive: Receive, future: asyncio.Future[bytes]) -> None:
    """Ends the wait for an answer once the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if not future.done():
        future.set_exception(ClientDisconnect())
