"""Predictions that wait for their targets, and what became known of models, shared between servers through Redis.

Predictions of all models lie in one hash by their request's id, and their order in a sorted set; the oldest go first,
by age or where all together are too large. What became known of a model lies under its bundle's digest: the state of
the sequential test, and the latest rows and flags as rings of bytes like those of `service.monitor`. The test itself is
that of `service.monitor`: a server computes its next state, and Redis takes it only if nobody else was faster. In the
same step a prediction is marked as told, so that its targets count once, whichever server they are told to.

What is written and read is a matter of `service.redis_values`, and in which steps of `service.redis_scripts`. Key names
carry the format's version.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.cache import KEY_PREFIX
from service.metrics import ServiceMetrics
from service.monitor import FIELDS, NO_ROWS, WINDOWS, Labelled, health_of
from service.redis_link import RedisLink
from service.redis_scripts import DROP, KNOWN, PUT, RECALL, SCORE, TELL
from service.redis_values import (
    ROW,
    TOKEN,
    pack_prediction,
    pack_rows,
    pack_test,
    unpack_count,
    unpack_flags,
    unpack_prediction,
    unpack_rows,
    unpack_test,
)
from service.remembered import OVERHEAD, Prediction, Remembered

_FORMAT: Final = 2
_PREDICTIONS: Final = [f"{KEY_PREFIX}predictions{_FORMAT}:{part}" for part in ("held", "order")]
_WAITING: Final = 4096
"""Most predictions and scores that wait to be written."""
_AT_ONCE: Final = 128
_MOST_STATES: Final = 256
_STOP_SECONDS: Final = 2.0


@dataclass(frozen=True)
class _Scores:
    digest: str
    flags: bytes


class RedisMonitor:
    """What all servers on one Redis know together. Where Redis does not answer, methods say so by None."""

    def __init__(
        self, link: RedisLink, remembered: Remembered, *, ttl: int, limit: int, metrics: ServiceMetrics
    ) -> None:
        """Starts the thread that writes.

        Args:
            link: the way to Redis.
            remembered: what this process predicted.
            ttl: seconds that predictions live, and what became known of a model after the last that did.
            limit: bytes of all predictions.
            metrics: where what is dropped is counted.
        """
        self._link, self._remembered, self._metrics = link, remembered, metrics
        self._bounds = [limit, ttl, OVERHEAD]
        self._ttl = ttl
        script = link.client.register_script
        self._put, self._recall, self._drop = script(PUT), script(RECALL), script(DROP)
        self._tell, self._score, self._known = script(TELL), script(SCORE), script(KNOWN)
        self._telling = threading.Lock()
        # What Redis last said of a model's test: seldom has another process been told something since.
        self._states: dict[str, bytes] = {}
        # Ids alone: the predictions themselves lie in `remembered`, whose size is bounded.
        self._waiting: queue.Queue[str | _Scores | None] = queue.Queue(_WAITING)
        self._writer = threading.Thread(target=self._write, name="redis-monitor", daemon=True)
        self._writer.start()

    # ---- in the background

    def remember(self, request_id: str) -> None:
        """Lets other processes know what was predicted for a request, soon; waits for nothing."""
        self._soon(request_id)

    def add_scores(self, digest: str, flags: NDArray[np.bool_]) -> None:
        """Takes up which rows were unfamiliar, soon; waits for nothing."""
        self._soon(_Scores(digest, flags.tobytes()))

    def close(self) -> None:
        """Writes what waits, as far as that is a matter of moments."""
        try:
            self._waiting.put(None, timeout=_STOP_SECONDS)
        except queue.Full:
            return
        self._writer.join(_STOP_SECONDS)

    def _soon(self, item: str | _Scores) -> None:
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            self._metrics.redis_dropped.inc()

    def _write(self) -> None:
        going_on = True
        while going_on:
            items = [self._waiting.get()]
            while len(items) < _AT_ONCE and not self._waiting.empty():
                items.append(self._waiting.get())
            going_on = None not in items
            self._write_all([item for item in items if item is not None])

    def _write_all(self, items: list[str | _Scores]) -> None:
        pipe = self._link.client.pipeline(transaction=False)
        known: list[tuple[str, Prediction]] = []
        for item in items:
            if isinstance(item, _Scores):
                self._score(_monitor_keys(item.digest), [self._ttl, WINDOWS[-1], item.flags], client=pipe)
                continue
            prediction = self._remembered.unshared(item)
            if prediction is not None:
                arguments: list[Any] = [*self._bounds, item, prediction.token, pack_prediction(prediction)]
                self._put(_PREDICTIONS, arguments, client=pipe)
                known.append((item, prediction))
        refused = self._link.attempt("remember", pipe.execute)
        if refused is None:
            self._metrics.redis_dropped.inc(len(items))
            return
        for wrong in refused:
            self._refused(wrong)
        for request_id, prediction in known:
            self._remembered.share(request_id, prediction)

    # ---- at once

    def recall(self, request_id: str) -> Prediction | None:
        """The prediction of a request, made by any process, that was not told yet; where Redis does not answer, or with
        what is none, what this process itself knows."""
        arguments: list[Any] = [*self._bounds, request_id]
        said = self._link.attempt("recall", lambda: self._recall(_PREDICTIONS, arguments))
        if said is None:
            return self._remembered.get(request_id)
        value, wrong = said
        self._refused(wrong)
        own = self._remembered.unshared(request_id)
        if not value:
            return own
        if len(value) == TOKEN:
            return None if own is None or own.token == value else own
        if own is not None:
            return own
        try:
            return unpack_prediction(value)
        except ValueError as e:
            self.drop(request_id, str(e))
            return self._remembered.get(request_id)

    def drop(self, request_id: str, wrong: str) -> None:
        """Lets Redis forget the prediction of a request, which is none; says why in the log."""
        self._link.refuse(request_id, wrong)
        arguments: list[Any] = [*self._bounds, request_id]
        self._link.attempt("drop", lambda: self._drop(_PREDICTIONS, arguments))

    def tell(self, digest: str, labelled: Labelled, request_id: str | None, token: bytes) -> bool | None:
        """Counts rows whose targets became known.

        Args:
            digest: the bundle's.
            labelled: the rows.
            request_id: whose targets they are, where they came with an id.
            token: of the prediction.

        Returns:
            Whether they were counted; False where they had been told already; None where Redis does not answer.
        """
        keys, rows = [*_PREDICTIONS, *_monitor_keys(digest)], pack_rows(labelled)
        # One thread of a process at a time: with few rivals somebody else is seldom faster.
        with self._telling:
            end = time.monotonic() + self._link.timeout
            state = self._states.get(digest, b"")
            while time.monotonic() < end:
                try:
                    before = unpack_test(state)
                except ValueError as e:
                    # It is what the script expects to find, and what is counted from the first row on replaces it.
                    self._link.refuse(keys[2], f"test, {e}")
                    before = NO_ROWS
                after = before.after(labelled)
                next_state = pack_test(after)
                arguments = [*self._bounds, request_id or "", token, state, next_state, before.count, rows]
                said = self._link.attempt("tell", lambda a=arguments: self._tell(keys, [*a, WINDOWS[-1], ROW]))  # type: ignore[misc]
                if said is None:
                    return None
                result, found, wrong = said
                self._refused(wrong)
                if result == b"counted":
                    if len(self._states) >= _MOST_STATES:
                        self._states.clear()
                    self._states[digest] = next_state
                if result != b"again":
                    return bool(result == b"counted")
                state = found
        return None

    def health(self, digest: str, rate: float, *, classes: bool) -> dict[str, Any] | None:
        """As `Monitor.health`, of what was told to all processes; None where Redis does not answer.

        Args:
            digest: the bundle's.
            rate: the share of familiar rows that is flagged.
            classes: whether the model is of classes, and not of a number.
        """
        keys = _monitor_keys(digest)
        said = self._link.attempt("health", lambda: self._known(keys, [ROW * WINDOWS[-1], WINDOWS[-1]]))
        if said is None:
            return None
        test_value, scored_value, rows_value, flags_value, wrong = said
        self._refused(wrong)
        test, scored = NO_ROWS, 0
        # Without the one of a test and its rows, or of a count and its flags, the other says nothing.
        rows, flags = None, None
        try:
            test = unpack_test(test_value)
            rows = unpack_rows(rows_value, test.count, classes)
        except ValueError as e:
            self._forget(keys[0], "test", keys[1], str(e))
        try:
            scored = unpack_count(scored_value)
            flags = unpack_flags(flags_value, scored)
        except ValueError as e:
            self._forget(keys[0], "scored", keys[2], str(e))
        if rows is None:
            test, rows = NO_ROWS, np.zeros((0, FIELDS), dtype=np.float32)
        if flags is None:
            scored, flags = 0, np.zeros(0, dtype=np.bool_)
        return health_of(test, rows, flags, scored, rate)

    def _forget(self, state: str, field: str, ring: str, wrong: str) -> None:
        """Lets Redis forget a field of a state and the ring that goes with it, as one of both is wrong."""
        self._link.refuse(ring, f"{field}, {wrong}")
        pipe = self._link.client.pipeline()
        pipe.hdel(state, field)
        pipe.delete(ring)
        self._link.attempt("forget", pipe.execute)

    def _refused(self, wrong: list[bytes]) -> None:
        """Tells of what a script refused."""
        for key, why in zip(wrong[::2], wrong[1::2], strict=True):
            self._link.refuse(key.decode(errors="replace"), why.decode())


def _monitor_keys(digest: str) -> list[str]:
    return [f"{KEY_PREFIX}{digest}:monitor{_FORMAT}:{part}" for part in ("state", "rows", "flags")]
