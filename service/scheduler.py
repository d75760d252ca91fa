"""Which request is worked on when: a bounded queue, worker threads, and rows of several requests in one run.

A request is first read, in the order of arrival, then its rows wait with those of others for the same model and
weights. Whenever a worker is free it takes as many of these as fit into a run; models take turns. Nothing ever waits
for others to come: a request that finds a worker free runs at once, by itself.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from model_store.errors import OverloadedError
from service.cache import WeightKey
from service.engine import WeightSet
from service.metrics import ServiceMetrics
from service.model import Columns
from service.settings import Settings
from service.together import Run, Steps, run_alone, run_together
from service.weights import WeightSource

_PATIENCE_SECONDS: Final = 0.1
"""After so long in the queue it is watched whether the client is still there; most requests never pay for that."""
_TELL_SECONDS: Final = 0.005
"""Answers of one run go back together, unless writing them takes longer than this."""
_STOP_SECONDS: Final = 10.0

Begin = Callable[[], Steps]
Write = Callable[[dict[str, Any]], bytes]


class _Ticket:
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


class _Group:
    """Requests that wait for one model and one set of weights.

    Attributes:
        waiting: in the order in which they came.
        claimed: whether a worker is about to take some of them.
    """

    __slots__ = ("claimed", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Ticket] = deque()
        self.claimed = False


class Scheduler:
    """Runs requests in worker threads. What concerns the event loop is said so; the rest is thread-safe."""

    def __init__(self, settings: Settings, weights: WeightSource, metrics: ServiceMetrics) -> None:
        self._settings, self._weights, self._metrics = settings, weights, metrics
        self._ready = threading.Condition()
        self._arrived: deque[_Ticket] = deque()
        self._models: OrderedDict[str, OrderedDict[WeightKey, _Group]] = OrderedDict()
        """Groups by the bundle's digest; whose turn is next comes first, among models and among groups of a model."""
        self._waiting = 0
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{i}", daemon=True) for i in range(settings.concurrency)
        ]

    def start(self) -> None:
        """Starts the workers."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets the workers finish what they are at, and end; what still waits is not answered."""
        with self._ready:
            self._stopped = True
            self._ready.notify_all()
        end = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0.0))

    # ---- on the event loop

    async def answer(self, begin: Begin, write: Write, receive: Receive) -> bytes:
        """The answer to a request, once it was its turn; called on the event loop.

        Args:
            begin: starts the request's way, in a worker.
            write: turns the answer's content into bytes, in a worker.
            receive: tells, by ASGI, when the client has gone, and the request needs no answer any more.

        Raises:
            OverloadedError: too many requests wait already.
            ClientDisconnect: the client went away before its turn.
            Exception: whatever `begin`, the network or `write` raised.
        """
        loop = asyncio.get_running_loop()
        ticket = _Ticket(begin, write, loop)
        self._admit(ticket)
        watcher: list[asyncio.Task[None]] = []
        patience = loop.call_later(
            _PATIENCE_SECONDS, lambda: watcher.append(loop.create_task(_watch(receive, ticket.future)))
        )
        try:
            return await ticket.future
        finally:
            patience.cancel()
            for task in watcher:
                task.cancel()
            if ticket.waiting:
                self._abandon(ticket)

    def _admit(self, ticket: _Ticket) -> None:
        limit = self._settings.max_waiting
        with self._ready:
            waiting = self._waiting
            if waiting < limit:
                self._arrived.append(ticket)
                ticket.waiting = True
                self._waiting += 1
                self._ready.notify()
        if waiting >= limit:
            self._metrics.overloads.inc()
            raise OverloadedError(
                "The server is busy and too many requests wait already; send this one again later.",
                expected=f"at most {limit} requests that wait",
                got=f"{waiting} requests that wait",
            )

    def _abandon(self, ticket: _Ticket) -> None:
        """Takes out a request that nobody waits for, so that it takes neither a place nor a worker's time."""
        with self._ready:
            ticket.gone = True
            self._leave(ticket)
            with suppress(ValueError):
                self._arrived.remove(ticket)
            run = getattr(ticket, "run", None)
            group = None if run is None else self._models.get(run.key.digest, {}).get(run.key)
            if group is not None:
                with suppress(ValueError):
                    group.waiting.remove(ticket)

    # ---- in the workers

    def _work(self) -> None:
        while (task := self._next()) is not None:
            if isinstance(task, _Ticket):
                self._begin(task)
            else:
                self._run(*task)
            # A worker without work must not keep what it worked on last.
            del task

    def _next(self) -> _Ticket | tuple[WeightKey, _Group] | None:
        """What to do next; waits for it. None is the end.

        Requests are read before anything is run: so all that is there by then can go together, and a model that
        answers slowly does not hold up the reading of requests for others.
        """
        with self._ready:
            while not self._stopped:
                if self._arrived:
                    return self._arrived.popleft()
                for digest, groups in self._models.items():
                    for key, group in groups.items():
                        if not group.claimed:
                            group.claimed = True
                            self._models.move_to_end(digest)
                            groups.move_to_end(key)
                            return key, group
                self._ready.wait()
            return None

    def _begin(self, ticket: _Ticket) -> None:
        outcome = ticket.start()
        with self._ready:
            if outcome is None and not ticket.gone:
                key = ticket.run.key
                groups = self._models.setdefault(key.digest, OrderedDict())
                groups.setdefault(key, _Group()).waiting.append(ticket)
                return
            self._leave(ticket)
        if outcome is not None:
            _tell([(ticket, outcome)])

    def _run(self, key: WeightKey, group: _Group) -> None:
        with self._ready:
            first = group.waiting[0].run if group.waiting else None
        weights: WeightSet | Exception | None = None
        if first is not None:
            try:
                # Before any are taken: what comes while they are decoded can still go along.
                weights = self._weights.get(first.model, key.plan, key.samples, key.seed)
            except Exception as e:
                weights = e
        batch = self._take(key, group)
        if not batch or weights is None:
            return
        self._measure(batch)
        if isinstance(weights, Exception):
            _tell([(ticket, ticket.finish(weights)) for ticket in batch])
            return
        found = _columns(weights, [ticket.run for ticket in batch])
        told, since = 0, time.perf_counter()
        outcomes = []
        for ticket, columns in zip(batch, found, strict=True):
            outcomes.append((ticket, ticket.finish(columns)))
            now = time.perf_counter()
            if now - since > _TELL_SECONDS:
                _tell(outcomes[told:])
                told, since = len(outcomes), now
        _tell(outcomes[told:])

    def _take(self, key: WeightKey, group: _Group) -> list[_Ticket]:
        """The first requests of a group whose rows fit into a run; a larger request goes by itself."""
        batch: list[_Ticket] = []
        rows = 0
        with self._ready:
            while group.waiting:
                more = len(group.waiting[0].run.x)
                if batch and rows + more > self._settings.batch_rows:
                    break
                rows += more
                ticket = group.waiting.popleft()
                self._leave(ticket)
                batch.append(ticket)
            group.claimed = False
            if group.waiting:
                # Another worker may have passed it by.
                self._ready.notify()
            else:
                groups = self._models[key.digest]
                del groups[key]
                if not groups:
                    del self._models[key.digest]
        return batch

    def _leave(self, ticket: _Ticket) -> None:
        """Counts a request out of those that wait; the lock is held."""
        if ticket.waiting:
            ticket.waiting = False
            self._waiting -= 1

    def _measure(self, batch: Sequence[_Ticket]) -> None:
        name = batch[0].run.model.bundle.name
        self._metrics.batch_rows.labels(name).observe(sum(len(ticket.run.x) for ticket in batch))
        self._metrics.batch_requests.labels(name).observe(len(batch))
        self._metrics.waiting.set(self._waiting)
        now, waits = time.perf_counter(), self._metrics.queue_seconds.labels(name)
        for ticket in batch:
            waits.observe(now - ticket.arrived)


def _columns(weights: WeightSet, runs: Sequence[Run]) -> list[Columns | Exception]:
    """What the network finds for each of the requests that run together."""
    if len(runs) > 1:
        with suppress(Exception):
            return list(run_together(weights, runs))
    # One alone; or, where something failed that no check foresaw, each alone, so that it fails for its own sake only.
    found: list[Columns | Exception] = []
    for run in runs:
        try:
            found.append(run_alone(weights, run))
        except Exception as e:
            found.append(e)
    return found


def _tell(outcomes: Sequence[tuple[_Ticket, bytes | Exception]]) -> None:
    """Hands answers over to the event loop, which waits for them."""
    if outcomes:
        with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
            outcomes[0][0].loop.call_soon_threadsafe(_settle, outcomes)


def _settle(outcomes: Sequence[tuple[_Ticket, bytes | Exception]]) -> None:
    for ticket, outcome in outcomes:
        if ticket.future.done():
            continue
        if isinstance(outcome, Exception):
            ticket.future.set_exception(outcome)
        else:
            ticket.future.set_result(outcome)


async def _watch(receive: Receive, future: asyncio.Future[bytes]) -> None:
    """Ends the wait for an answer once the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if not future.done():
        future.set_exception(ClientDisconnect())
