"""Predictions that wait for their targets, and what became known of models, shared between servers through Redis.

Predictions of all models lie in one hash by their request's id, and their order in a sorted set; the oldest go first,
by age or where all together are too large. What became known of a model lies under its bundle's digest: the state of
the sequential test, and the latest rows and flags as rings of bytes like those of `service.monitor`. The test itself is
that of `service.monitor`: a server computes its next state, and Redis takes it only if nobody else was faster. In the
same step a prediction is marked as told, so that its targets count once, whichever server they are told to.

Numbers are little-endian. Key names carry the format's version.
"""

from __future__ import annotations

import queue
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.cache import KEY_PREFIX
from service.metrics import ServiceMetrics
from service.monitor import FIELDS, NO_ROWS, WINDOWS, Labelled, SequentialTest, health_of
from service.redis_link import RedisLink
from service.remembered import OVERHEAD, Prediction, Remembered

_FORMAT: Final = 2
_PREDICTIONS: Final = [f"{KEY_PREFIX}predictions{_FORMAT}:{part}" for part in ("held", "order")]
_ROW: Final = 4 * FIELDS
_TEST: Final = struct.Struct(f"<qq{len(NO_ROWS.wealth)}d")
"""rows, row of the alarm or 0, wealth."""
_HEADER: Final = struct.Struct("<8s32sHII")
"""token, digest, bytes of the reference, B, C or 0 for a number."""
_TOKEN: Final = 8
_WAITING: Final = 4096
"""Most predictions and scores that wait to be written."""
_AT_ONCE: Final = 128
_MOST_STATES: Final = 256
_STOP_SECONDS: Final = 2.0

# ---- scripts: KEYS held, order; ARGV bytes of all predictions, seconds they live, bytes an entry takes beside itself
_PREDICTION = """
local held, order = KEYS[1], KEYS[2]
local limit, ttl, entry = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local function drop(id)
  local size = redis.call('HSTRLEN', held, id)
  if redis.call('HDEL', held, id) == 1 then redis.call('HINCRBY', held, '#bytes', -(size + 2 * #id + entry)) end
  redis.call('ZREM', order, id)
end
local function keep(id, value)
  local t = redis.call('TIME')
  local now = t[1] * 1000000 + t[2]
  drop(id)
  if #value + 2 * #id + entry > limit then return end
  redis.call('HSET', held, id, value)
  redis.call('HINCRBY', held, '#bytes', #value + 2 * #id + entry)
  redis.call('ZADD', order, string.format('%.0f', now), id)
  local old = string.format('%.0f', now - ttl * 1000000)
  for _, each in ipairs(redis.call('ZRANGEBYSCORE', order, '-inf', old, 'LIMIT', 0, 16)) do drop(each) end
  while tonumber(redis.call('HGET', held, '#bytes')) > limit do
    local first = redis.call('ZRANGE', order, 0, 0)[1]
    if not first then redis.call('DEL', held) return end
    drop(first)
  end
  redis.call('EXPIRE', held, ttl)
  redis.call('EXPIRE', order, ttl)
end
"""
_PUT = f"""{_PREDICTION}
local id, token, value = ARGV[4], ARGV[5], ARGV[6]
-- It may have been told before it was written.
if redis.call('HGET', held, id) ~= token then keep(id, value) end
"""
_RING = """
local function sound(ring, count, capacity, size)
  return redis.call('STRLEN', ring) == math.min(count, capacity) * size
end
local function write(ring, count, capacity, size, bytes)
  local rows = #bytes / size
  local skipped = math.max(rows - capacity, 0)
  local at = (count + skipped) % capacity
  local ahead = math.min(rows - skipped, capacity - at)
  redis.call('SETRANGE', ring, at * size, string.sub(bytes, skipped * size + 1, (skipped + ahead) * size))
  redis.call('SETRANGE', ring, 0, string.sub(bytes, (skipped + ahead) * size + 1))
end
local function live(ttl, first)
  for i = first, first + 2 do redis.call('EXPIRE', KEYS[i], ttl) end
end
"""
_TELL = f"""{_PREDICTION}{_RING}
local id, token, expected, after, count, bytes = ARGV[4], ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8]), ARGV[9]
local state, rows, capacity, size = KEYS[3], KEYS[4], tonumber(ARGV[10]), tonumber(ARGV[11])
if id ~= '' and redis.call('HGET', held, id) == token then return {{'told', ''}} end
local found = redis.call('HGET', state, 'test') or ''
if found ~= expected then return {{'again', found}} end
if not sound(rows, count, capacity, size) then
  -- Redis made room: what is left says nothing.
  redis.call('HDEL', state, 'test')
  redis.call('DEL', rows)
  return {{'again', ''}}
end
if id ~= '' then keep(id, token) end
write(rows, count, capacity, size, bytes)
redis.call('HSET', state, 'test', after)
live(ttl, 3)
return {{'counted', ''}}
"""
_SCORE = f"""{_RING}
local state, flags, capacity, bytes = KEYS[1], KEYS[3], tonumber(ARGV[2]), ARGV[3]
local count = tonumber(redis.call('HGET', state, 'scored') or 0)
if not sound(flags, count, capacity, 1) then
  count = 0
  redis.call('DEL', flags)
end
write(flags, count, capacity, 1, bytes)
redis.call('HSET', state, 'scored', string.format('%.0f', count + #bytes))
live(ARGV[1], 1)
"""


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
        self._put, self._tell, self._score = (link.client.register_script(s) for s in (_PUT, _TELL, _SCORE))
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
                arguments: list[Any] = [*self._bounds, item, prediction.token, pack(prediction)]
                self._put(_PREDICTIONS, arguments, client=pipe)
                known.append((item, prediction))
        if self._link.attempt("remember", pipe.execute) is None:
            self._metrics.redis_dropped.inc(len(items))
            return
        for request_id, prediction in known:
            self._remembered.share(request_id, prediction)

    # ---- at once

    def recall(self, request_id: str) -> Prediction | None:
        """The prediction of a request, made by any process, that was not told yet; where Redis does not answer, what
        this process itself knows."""
        answer = self._link.attempt("recall", lambda: (self._link.client.hget(_PREDICTIONS[0], request_id),))
        if answer is None:
            return self._remembered.get(request_id)
        own = self._remembered.unshared(request_id)
        value = answer[0]
        if not isinstance(value, bytes):
            return own
        if len(value) == _TOKEN:
            return None if own is None or own.token == value else own
        try:
            return own or unpack(value)
        except ValueError as e:
            self._link.refuse(request_id, str(e))
            return None

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
        keys, rows = [*_PREDICTIONS, *_monitor_keys(digest)], labelled.fields.astype("<f4").tobytes()
        # One thread of a process at a time: with few rivals somebody else is seldom faster.
        with self._telling:
            end = time.monotonic() + self._link.timeout
            state = self._states.get(digest, b"")
            while time.monotonic() < end:
                before = _unpack_test(state)
                if before is None:
                    self._link.refuse(keys[2], "format")
                    return None
                after = before.after(labelled)
                next_state = _pack_test(after)
                arguments = [*self._bounds, request_id or "", token, state, next_state, before.count, rows]
                said = self._link.attempt("tell", lambda a=arguments: self._tell(keys, [*a, WINDOWS[-1], _ROW]))  # type: ignore[misc]
                if said is None:
                    return None
                if said[0] == b"counted":
                    if len(self._states) >= _MOST_STATES:
                        self._states.clear()
                    self._states[digest] = next_state
                if said[0] != b"again":
                    return bool(said[0] == b"counted")
                state = said[1]
        return None

    def health(self, digest: str, rate: float) -> dict[str, Any] | None:
        """As `Monitor.health`, of what was told to all processes; None where Redis does not answer."""
        state, rows, flags = _monitor_keys(digest)
        pipe = self._link.client.pipeline()
        pipe.hmget(state, ["test", "scored"])
        pipe.get(rows)
        pipe.get(flags)
        answer = self._link.attempt("health", pipe.execute)
        if answer is None:
            return None
        (test_state, scored_state), told, flagged = answer
        test, scored = _unpack_test(test_state or b""), _unpack_count(scored_state or b"0")
        if test is None or scored is None:
            self._link.refuse(state, "format")
            return None
        told, flagged = told or b"", flagged or b""
        # The same rule as that of the scripts: what Redis made room from says nothing.
        if len(told) != _ROW * min(test.count, WINDOWS[-1]):
            test, told = NO_ROWS, b""
        if len(flagged) != min(scored, WINDOWS[-1]):
            scored, flagged = 0, b""
        latest = np.frombuffer(told, dtype="<f4").reshape(-1, FIELDS)
        return health_of(test, latest, np.frombuffer(flagged, dtype=np.bool_), scored, rate)


def pack(prediction: Prediction) -> bytes:
    """The value of a prediction."""
    reference, mean = prediction.reference.encode(), prediction.mean.astype("<f8")
    classes = mean.shape[1] if prediction.variance is None else 0
    digest = bytes.fromhex(prediction.digest)
    header = _HEADER.pack(prediction.token, digest, len(reference), len(mean), classes)
    variance = b"" if prediction.variance is None else prediction.variance.astype("<f8").tobytes()
    return header + reference + mean.tobytes() + variance


def unpack(value: bytes) -> Prediction:
    """The prediction of a value.

    Raises:
        ValueError: it is none; the message says why.
    """
    if len(value) < _HEADER.size:
        raise ValueError("size")
    token, digest, length, rows, classes = _HEADER.unpack_from(value)
    if not rows or len(value) != _HEADER.size + length + 8 * rows * (classes or 2):
        raise ValueError("size")
    reference = value[_HEADER.size : _HEADER.size + length].decode()
    numbers = np.frombuffer(value, dtype="<f8", offset=_HEADER.size + length).reshape(-1, rows)
    if classes:
        return Prediction(reference, digest.hex(), numbers.reshape(rows, classes), None, token)
    return Prediction(reference, digest.hex(), numbers[0], numbers[1], token)


def _monitor_keys(digest: str) -> list[str]:
    return [f"{KEY_PREFIX}{digest}:monitor{_FORMAT}:{part}" for part in ("state", "rows", "flags")]


def _pack_test(test: SequentialTest) -> bytes:
    return _TEST.pack(test.count, test.alarm or 0, *test.wealth)


def _unpack_count(value: bytes) -> int | None:
    """Rows that were scored; None where it is no number."""
    return int(value) if value.isdigit() and len(value) < 20 else None


def _unpack_test(state: bytes) -> SequentialTest | None:
    """The test of a state; that of no rows where there is none, and None where it is not usable."""
    if not state:
        return NO_ROWS
    if len(state) != _TEST.size:
        return None
    count, alarm, *wealth = _TEST.unpack(state)
    return SequentialTest(count, alarm or None, np.array(wealth))
