"""Which request is worked on when: a bounded queue, worker threads, and rows of several requests in one run.

A request is first read, in the order of arrival, then its rows wait with those of others for the same model and
weights. As soon as a worker is free it takes as many of these as fit into a run; models take turns. What comes while a
run is under way goes together in the next one. That begins beside it only where so many rows wait that another run's
fixed cost is small beside theirs: on short runs of few rows workers would take cores from each other for little.
Nothing ever waits for others to come: a request that finds no run of its weights under way, and a worker free, goes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from starlette.types import Receive

from model_store.errors import OverloadedError
from service.cache import WeightKey
from service.engine import WeightSet
from service.metrics import ServiceMetrics
from service.model import Columns, ServedModel
from service.settings import Settings
from service.ticket import Begin, Ticket, Write, tell, watch
from service.together import Run, run_alone, run_together
from service.weights import WeightSource

_PATIENCE_SECONDS: Final = 0.1
"""After so long in the queue it is watched whether the client is still there; most requests never pay for that."""
_TELL_SECONDS: Final = 0.005
"""Answers of one run go back together, unless writing them takes longer than this."""
_STOP_SECONDS: Final = 10.0


class _Group:
    """Requests that wait for one model and one set of weights.

    Attributes:
        model, key: whose weights, and which.
        waiting: in the order in which they came.
        rows: of all of them.
        claimed: whether a worker is about to take some of them.
        running: runs under way.
    """

    __slots__ = ("claimed", "key", "model", "rows", "running", "waiting")

    def __init__(self, model: ServedModel, key: WeightKey) -> None:
        self.model, self.key = model, key
        self.waiting: deque[Ticket] = deque()
        self.rows = self.running = 0
        self.claimed = False

    def add(self, ticket: Ticket) -> None:
        self.waiting.append(ticket)
        self.rows += len(ticket.run.x)

    def remove(self, ticket: Ticket) -> None:
        self.waiting.remove(ticket)
        self.rows -= len(ticket.run.x)

    def ready(self, most: int) -> bool:
        """Whether a worker should take what waits, of which `most` rows fit into a run."""
        if self.claimed or not self.waiting:
            return False
        return not self.running or self.rows >= most or self.model.pace.worthwhile(self.rows)


class Scheduler:
    """Runs requests in worker threads. What concerns the event loop is said so; the rest is thread-safe."""

    def __init__(self, settings: Settings, weights: WeightSource, metrics: ServiceMetrics) -> None:
        self._settings, self._weights, self._metrics = settings, weights, metrics
        self._lock = threading.Lock()
        self._idle: list[threading.Lock] = []
        """What workers without work wait for. The latest is woken first: its caches know most of what comes."""
        self._arrived: deque[Ticket] = deque()
        self._models: OrderedDict[str, OrderedDict[WeightKey, _Group]] = OrderedDict()
        """Groups by the bundle's digest; whose turn is next comes first, among models and among groups of a model."""
        self._full = False
        """Whether so many rows wait somewhere that a run can take no more."""
        self._reading = 0.0
        """Seconds that may go into reading while they do: as long as the last run took."""
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
        with self._lock:
            self._stopped = True
            while self._idle:
                self._wake()
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
        ticket = Ticket(begin, write, loop)
        self._admit(ticket)
        watcher: list[asyncio.Task[None]] = []
        patience = loop.call_later(
            _PATIENCE_SECONDS, lambda: watcher.append(loop.create_task(watch(receive, ticket.future)))
        )
        try:
            return await ticket.future
        finally:
            patience.cancel()
            for task in watcher:
                task.cancel()
            if ticket.waiting:
                self._abandon(ticket)

    def _admit(self, ticket: Ticket) -> None:
        limit = self._settings.max_waiting
        with self._lock:
            waiting = self._waiting
            if waiting < limit:
                self._arrived.append(ticket)
                ticket.waiting = True
                self._count(+1)
                self._wake()
        if waiting >= limit:
            self._metrics.overloads.inc()
            raise OverloadedError(
                "The server is busy and too many requests wait already; send this one again later.",
                expected=f"at most {limit} requests that wait",
                got=f"{waiting} requests that wait",
            )

    def _abandon(self, ticket: Ticket) -> None:
        """Takes out a request that nobody waits for, so that it takes neither a place nor a worker's time."""
        with self._lock:
            ticket.gone = True
            self._leave(ticket)
            with suppress(ValueError):
                self._arrived.remove(ticket)
            run = getattr(ticket, "run", None)
            group = None if run is None else self._models.get(run.key.digest, {}).get(run.key)
            if group is not None:
                with suppress(ValueError):
                    group.remove(ticket)
                self._drop(group)

    # ---- in the workers

    def _work(self) -> None:
        bell = threading.Lock()
        bell.acquire()
        while (task := self._next(bell)) is not None:
            if isinstance(task, Ticket):
                self._begin(task)
            else:
                self._run(task)
            # A worker without work must not keep what it worked on last.
            del task

    def _next(self, bell: threading.Lock) -> Ticket | _Group | None:
        """What to do next; waits for it, and for its bell. None is the end.

        Requests are read before anything is run: so all that is there by then can go together, and a model that many
        ask does not hide requests for others. Where there are enough for a run, reading takes but half of the time.
        """
        while True:
            with self._lock:
                if self._stopped:
                    return None
                if self._arrived and (not self._full or self._reading > 0):
                    return self._arrived.popleft()
                task = self._claim()
                if task is not None:
                    return task
                if self._arrived:
                    return self._arrived.popleft()
                self._idle.append(bell)
            bell.acquire()

    def _wake(self) -> None:
        """Lets a worker look for work, if one has none; the lock is held."""
        if self._idle:
            self._idle.pop().release()

    def _claim(self) -> _Group | None:
        """The group whose turn it is, of those that can go; the lock is held."""
        for digest, groups in self._models.items():
            for key, group in groups.items():
                if group.ready(self._settings.batch_rows):
                    group.claimed = True
                    self._models.move_to_end(digest)
                    groups.move_to_end(key)
                    return group
        return None

    def _begin(self, ticket: Ticket) -> None:
        started = time.thread_time()
        outcome = ticket.start()
        with self._lock:
            self._reading -= time.thread_time() - started
            if outcome is None and not ticket.gone:
                key = ticket.run.key
                groups = self._models.setdefault(key.digest, OrderedDict())
                if key not in groups:
                    groups[key] = _Group(ticket.run.model, key)
                groups[key].add(ticket)
                self._full = self._full or groups[key].rows >= self._settings.batch_rows
                return
            self._leave(ticket)
        if outcome is not None:
            tell([(ticket, outcome)])

    def _run(self, group: _Group) -> None:
        weights: WeightSet | Exception
        try:
            # Before any are taken: what comes while they are decoded can still go along.
            weights = self._weights.get(group.model, group.key.plan, group.key.samples, group.key.seed)
        except Exception as e:
            weights = e
        batch = self._take(group)
        started = time.thread_time()
        found = _columns(weights, [ticket.run for ticket in batch])
        seconds = time.thread_time() - started
        with self._lock:
            group.running -= 1
            self._reading = seconds
            if batch and not isinstance(weights, Exception):
                rows = sum(len(ticket.run.x) for ticket in batch)
                group.model.pace.add(rows, seconds / group.key.samples)
            if group.waiting:
                self._wake()
            else:
                self._drop(group)
        _finish(batch, found)

    def _take(self, group: _Group) -> list[Ticket]:
        """The first requests of a group whose rows fit into a run; a larger request goes by itself."""
        batch: list[Ticket] = []
        rows = 0
        with self._lock:
            while group.waiting:
                more = len(group.waiting[0].run.x)
                if batch and rows + more > self._settings.batch_rows:
                    break
                rows += more
                ticket = group.waiting[0]
                group.remove(ticket)
                self._leave(ticket)
                batch.append(ticket)
            group.claimed = False
            group.running += 1
            most = self._settings.batch_rows
            self._full = any(g.rows >= most for groups in self._models.values() for g in groups.values())
            if group.waiting:
                # Another worker may have passed it by.
                self._wake()
        if batch:
            self._measure(batch, rows)
        return batch

    def _drop(self, group: _Group) -> None:
        """Forgets a group that nothing waits for and no worker is at; the lock is held."""
        groups = self._models.get(group.key.digest, OrderedDict())
        if group.waiting or group.running or group.claimed or groups.get(group.key) is not group:
            return
        del groups[group.key]
        if not groups:
            del self._models[group.key.digest]

    def _leave(self, ticket: Ticket) -> None:
        """Counts a request out of those that wait; the lock is held."""
        if ticket.waiting:
            ticket.waiting = False
            self._count(-1)

    def _count(self, more: int) -> None:
        self._waiting += more
        self._metrics.waiting.set(self._waiting)

    def _measure(self, batch: Sequence[Ticket], rows: int) -> None:
        name = batch[0].run.model.bundle.name
        self._metrics.batch_rows.labels(name).observe(rows)
        self._metrics.batch_requests.labels(name).observe(len(batch))
        now, waits = time.perf_counter(), self._metrics.queue_seconds.labels(name)
        for ticket in batch:
            waits.observe(now - ticket.arrived)


def _columns(weights: WeightSet | Exception, runs: Sequence[Run]) -> list[Columns | Exception]:
    """What the network finds for each of the requests that run together, or why it finds nothing."""
    if isinstance(weights, Exception):
        return [weights] * len(runs)
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


def _finish(batch: Sequence[Ticket], found: Sequence[Columns | Exception]) -> None:
    """Writes the answers of a run and hands them over."""
    outcomes: list[tuple[Ticket, bytes | Exception]] = []
    since = time.perf_counter()
    for ticket, columns in zip(batch, found, strict=True):
        outcomes.append((ticket, ticket.finish(columns)))
        now = time.perf_counter()
        if now - since > _TELL_SECONDS:
            tell(outcomes)
            outcomes, since = [], now
    tell(outcomes)
