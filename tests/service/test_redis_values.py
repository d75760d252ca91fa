"""Values in Redis that nobody wrote, or somebody else did: each is refused, and what is known is what it is without."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.monitor import Labelled, Monitor, SequentialTest
from service.redis_values import (
    pack_prediction,
    pack_rows,
    pack_test,
    unpack_count,
    unpack_flags,
    unpack_prediction,
    unpack_rows,
    unpack_test,
)
from service.remembered import Prediction
from tests.servers import RedisServer, wait_until
from tests.service.test_redis_monitor import CLASSES, DIGEST, HELD, NUMBERS, all_missed, known, member, rows

ORDER = HELD.replace("held", "order")
STATE, RING, FLAGS = (f"fiberwalk:{DIGEST}:monitor2:{part}" for part in ("state", "rows", "flags"))

# ---- predictions


@pytest.mark.parametrize("prediction", [CLASSES, NUMBERS], ids=["classes", "numbers"])
def test_a_prediction_comes_back_bit_for_bit(prediction: Prediction) -> None:
    found = unpack_prediction(pack_prediction(prediction))
    assert (found.reference, found.digest, found.token) == (prediction.reference, DIGEST, prediction.token)
    np.testing.assert_array_equal(found.mean, prediction.mean)
    np.testing.assert_equal(found.variance, prediction.variance)


@given(st.binary(max_size=100) | st.integers(0, 40).map(lambda n: pack_prediction(NUMBERS)[:n] + b"x"))
def test_rubbish_is_no_prediction(value: bytes) -> None:
    with pytest.raises(ValueError, match="size"):
        unpack_prediction(value)


def a_prediction(mean: Any, variance: Any = None, reference: str = "sine@1") -> bytes:
    return pack_prediction(
        Prediction(reference, DIGEST, np.array(mean), None if variance is None else np.array(variance))
    )


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        (a_prediction([[0.5, np.nan]]), "probabilities"),
        (a_prediction([[1.5, -0.5]]), "probabilities"),
        (a_prediction([[0.5, 0.4]]), "probabilities"),
        (a_prediction([[1e308, 1e308]]), "probabilities"),
        (a_prediction([np.inf], [1.0]), "numbers"),
        (a_prediction([1.0], [np.nan]), "numbers"),
        (a_prediction([1.0], [0.0]), "numbers"),
        (a_prediction([1.0], [-1.0]), "numbers"),
        (a_prediction([1.0], [1.0], "sine"), "reference"),
        (a_prediction([1.0], [1.0], "../sine@1"), "reference"),
        (a_prediction([1.0], [1.0], "sine@champion"), "reference"),
        (a_prediction([1.0], [1.0], "s" * 1000 + "@1"), "reference"),
        (a_prediction([1.0], [1.0]).replace(b"sine", b"s\xffne"), "reference"),
    ],
    ids=lambda v: v if isinstance(v, str) else "value",  # which holds a random token
)
def test_what_no_model_predicts_is_no_prediction(value: bytes, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        unpack_prediction(value)


# ---- what became known


def test_a_state_comes_back_bit_for_bit() -> None:
    test = SequentialTest(0, None, np.zeros(3))
    for seed, (count, rate) in enumerate([(1, 1.0), (3000, 0.0), (5000, 1.0), (9000, 0.1)]):
        test = test.after(rows(count, rate, seed))
        found = unpack_test(pack_test(test))
        assert (found.count, found.alarm) == (test.count, test.alarm)
        np.testing.assert_array_equal(found.wealth, test.wealth)


def state(count: int, alarm: int = 0, *wealth: float) -> bytes:
    return struct.pack("<qq3d", count, alarm, *(wealth or (0.0, 0.0, 0.0)))


WRONG_STATES = {
    "rubbish": (b"abc", "size"),
    "longer": (state(5) + b"x", "size"),
    "negative": (state(-1), "count"),
    "endless": (state(2**63 - 1), "count"),
    "alarm to come": (state(5, 6), "count"),
    "negative alarm": (state(5, -1), "count"),
    "NaN": (state(5, 0, 0.0, float("nan"), 0.0), "wealth"),
    "infinite": (state(5, 0, 0.0, float("inf"), 0.0), "wealth"),
    "too rich": (state(5, 0, 1e300, 0.0, 0.0), "wealth"),
}


@pytest.mark.parametrize(("value", "wrong"), WRONG_STATES.values(), ids=WRONG_STATES)
def test_a_state_that_no_rows_lead_to_is_none(value: bytes, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        unpack_test(value)


def test_rows_come_back_bit_for_bit() -> None:
    for labelled, classes in ((rows(40, 0.3, 0), True), (all_missed(40), False)):
        found = unpack_rows(pack_rows(labelled), 40, classes)
        assert found is not None
        np.testing.assert_array_equal(found, labelled.fields)
        assert unpack_rows(pack_rows(labelled), 41, classes) is None
        with pytest.raises(ValueError, match="rows"):
            unpack_rows(pack_rows(labelled), 40, not classes)


@pytest.mark.parametrize(
    ("place", "value"), [(0, 0.5), (2, np.nan), (3, np.nan), (3, np.inf), (4, -1), (4, 1.1), (4, np.nan), (5, 0.5)]
)
def test_rows_that_no_targets_make_are_none(place: int, value: float) -> None:
    fields = rows(9, 0.3, 0).fields
    fields[4, place] = value
    with pytest.raises(ValueError, match="rows"):
        unpack_rows(fields.tobytes(), 9, True)


def test_counts_and_flags() -> None:
    assert (unpack_count(b""), unpack_count(b"0"), unpack_count(b"12345")) == (0, 0, 12345)
    for value in (b"abc", b"-1", b"1.5", b"1e9", b" 1", b"9" * 16, b"9" * 10_000):
        with pytest.raises(ValueError, match="count"):
            unpack_count(value)
    found = unpack_flags(b"\0\1\1", 3)
    assert found is not None and found.tolist() == [False, True, True]
    assert unpack_flags(b"\0\1\1", 4) is None
    with pytest.raises(ValueError, match="flags"):
        unpack_flags(b"\0\1\2", 3)


# ---- in a Redis


@pytest.mark.parametrize("value", [v for v, _ in WRONG_STATES.values()], ids=WRONG_STATES)
@pytest.mark.parametrize("first", ["told", "asked"])
def test_a_wrong_state_is_replaced(redis_server: RedisServer, first: str, value: bytes) -> None:
    with member(redis_server.url) as one, redis_server.client() as client:
        one.monitor.tell(DIGEST, all_missed(30), None, b"")
        client.hset(STATE, "test", value)
        if first == "asked":
            assert known(one) == Monitor(0.05).health()
            assert not client.exists(STATE, RING)
        assert one.monitor.tell(DIGEST, all_missed(2), None, b"") is True
        own = Monitor(0.05)
        own.add(all_missed(2))
        assert known(one) == own.health()
        assert one.rubbish == 1 and one.value("fiberwalk_redis_up") == 1


def wrong_rows(labelled: Labelled, place: int, value: float) -> bytes:
    fields = labelled.fields
    fields[0, place] = value
    return fields.tobytes()


@pytest.mark.parametrize("value", [wrong_rows(rows(30, 0.1, 0), 4, -1.0), pack_rows(all_missed(30))])
def test_a_wrong_ring_goes_with_its_test(redis_server: RedisServer, value: bytes) -> None:
    with member(redis_server.url) as one, redis_server.client() as client:
        one.monitor.tell(DIGEST, rows(30, 0.1, 0), None, b"")
        client.set(RING, value)
        assert known(one, classes=True) == Monitor(0.05).health()
        assert one.rubbish == 1 and not client.exists(STATE, RING)
        assert one.monitor.tell(DIGEST, rows(2, 0.1, 1), None, b"") is True
        assert known(one, classes=True)["rows"] == 2 and one.rubbish == 1


@pytest.mark.parametrize("wrong", [b"abc", b"-5", b"9" * 18, "flags"])
@pytest.mark.parametrize("first", ["scored", "asked"])
def test_wrong_scores_are_replaced(redis_server: RedisServer, first: str, wrong: bytes | str) -> None:
    with member(redis_server.url) as one, redis_server.client() as client:
        one.monitor.tell(DIGEST, all_missed(3), None, b"")
        one.monitor.add_scores(DIGEST, np.ones(5, dtype=np.bool_))
        wait_until(lambda: known(one)["ood"]["rows"] == 5)
        if wrong == "flags":
            client.set(FLAGS, b"\2" * 5)
        else:
            client.hset(STATE, "scored", wrong)
        # Flags are looked at by none but who tells of them.
        if first == "asked" or wrong == "flags":
            assert known(one)["ood"]["rows"] == 0
        one.monitor.add_scores(DIGEST, np.zeros(2, dtype=np.bool_))
        wait_until(lambda: client.hget(STATE, "scored") == b"2")
        assert known(one)["ood"] == {"rows": 2, "flagged": 0.0, "false_alarm_rate": 0.05}
        # What is told of targets is another matter.
        assert known(one)["rows"] == 3
        assert one.rubbish == 1 and one.value("fiberwalk_redis_up") == 1
        assert (one.value("fiberwalk_redis_dropped_total") or 0) == 0


@pytest.mark.parametrize("value", [b"notanumber", b"-12", b"9" * 18, b"1.5", b"007", None])
def test_a_wrong_number_of_bytes_is_counted_anew(redis_server: RedisServer, value: bytes | None) -> None:
    with member(redis_server.url) as one, member(redis_server.url) as other, redis_server.client() as client:
        for request_id in ("one", "two"):
            one.predict(request_id, NUMBERS)
        wait_until(lambda: client.zcard(ORDER) == 2)
        right = client.hget(HELD, "#bytes")
        if value is None:
            client.hdel(HELD, "#bytes")
        else:
            client.hset(HELD, "#bytes", value)
        assert other.monitor.recall("one") is not None and other.rubbish == 1
        assert client.hget(HELD, "#bytes") == right
        one.predict("six", NUMBERS)
        wait_until(lambda: other.monitor.recall("six") is not None)
        assert int(client.hget(HELD, "#bytes") or 0) == int(right or 0) // 2 * 3  # type: ignore[arg-type]
        assert one.rubbish == 0 and other.rubbish == 1


@pytest.mark.parametrize("key", [HELD, ORDER, STATE, RING, FLAGS], ids=["held", "order", "state", "rows", "flags"])
def test_keys_of_another_type_make_way(redis_server: RedisServer, key: str) -> None:
    with member(redis_server.url) as one, redis_server.client() as client:

        def all_at_once(request_id: str) -> None:
            one.predict(request_id, NUMBERS)
            one.monitor.add_scores(DIGEST, np.ones(5, dtype=np.bool_))
            wait_until(lambda: client.type(HELD) == b"hash" and bool(client.hexists(HELD, request_id)))
            wait_until(lambda: client.type(FLAGS) == b"string")
            assert one.monitor.tell(DIGEST, all_missed(2), request_id, NUMBERS.token) is True
            assert one.monitor.recall(request_id) is None
            assert known(one)["rows"] >= 2

        all_at_once("before")
        client.delete(key)
        client.xadd(key, {"of": "another type"})
        all_at_once("after")
        assert one.rubbish == 1 and one.value("fiberwalk_redis_up") == 1
        assert (one.value("fiberwalk_redis_dropped_total") or 0) == 0


def test_what_is_larger_than_anything_kept_does_not_travel(redis_server: RedisServer) -> None:
    with member(redis_server.url, limit=5_000, timeout=5) as one, redis_server.client() as client:
        one.monitor.tell(DIGEST, all_missed(2), None, b"")
        one.predict("small", NUMBERS)
        wait_until(lambda: bool(client.hexists(HELD, "small")))
        large = bytes(50_000_000)
        client.mset({RING: large, FLAGS: large})
        client.hset(STATE, mapping={"test": large, "scored": large})
        client.hset(HELD, "large", large)
        before = client.info("stats")["total_net_output_bytes"]
        assert one.monitor.recall("large") is None and not client.hexists(HELD, "large")
        assert known(one) == Monitor(0.05).health()
        client.hset(STATE, mapping={"test": large, "scored": large})
        assert one.monitor.tell(DIGEST, all_missed(2), None, b"") is True
        assert client.info("stats")["total_net_output_bytes"] - before < 1_000_000
        assert known(one)["rows"] == 2
