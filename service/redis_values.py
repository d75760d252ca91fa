"""What servers share through Redis beside weights: how each kind of value is written, and held to be right when read.

Whoever writes to a Redis may write anything. Each kind is checked here, once and whole, so that nothing that reads it
has to fear what it finds. Numbers are little-endian.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_store.shelf import NAME, VERSION
from service.monitor import FIELDS, LEVELS, NO_ROWS, WINDOWS, Labelled, SequentialTest
from service.remembered import Prediction

ROW: Final = 4 * FIELDS
"""Bytes of what is kept of a row."""
TOKEN: Final = 8
_TEST: Final = struct.Struct(f"<qq{len(NO_ROWS.wealth)}d")
"""rows, row of the alarm or 0, wealth."""
_HEADER: Final = struct.Struct("<8s32sHII")
"""token, digest, bytes of the reference, B, C or 0 for a number."""
_MOST_ROWS: Final = 10**15
"""Scripts count in doubles, which hold whole numbers of 15 digits and no more."""
_MOST_GAIN: Final = 2.0
"""More than a row adds to the logarithm of any wealth, or takes from it."""
_ROUNDING: Final = 1e-3
"""By how much a probability may exceed 1, or a sum of them differ from it."""


# ---- predictions


def pack_prediction(prediction: Prediction) -> bytes:
    """The value of a prediction."""
    reference, mean = prediction.reference.encode(), prediction.mean.astype("<f8")
    classes = mean.shape[1] if prediction.variance is None else 0
    digest = bytes.fromhex(prediction.digest)
    header = _HEADER.pack(prediction.token, digest, len(reference), len(mean), classes)
    variance = b"" if prediction.variance is None else prediction.variance.astype("<f8").tobytes()
    return header + reference + mean.tobytes() + variance


def unpack_prediction(value: bytes) -> Prediction:
    """The prediction of a value; whether it is of its model's task and classes, the model knows.

    Raises:
        ValueError: it is none; the message says why.
    """
    if len(value) < _HEADER.size:
        raise ValueError("size")
    token, digest, length, rows, classes = _HEADER.unpack_from(value)
    if not rows or len(value) != _HEADER.size + length + 8 * rows * (classes or 2):
        raise ValueError("size")
    reference = value[_HEADER.size : _HEADER.size + length].decode(errors="replace")
    name, _, version = reference.partition("@")
    if not NAME.fullmatch(name) or not VERSION.fullmatch(version):
        raise ValueError("reference")
    numbers = np.frombuffer(value, dtype="<f8", offset=_HEADER.size + length).reshape(-1, rows)
    if classes:
        p = numbers.reshape(rows, classes)
        # Of NaN nothing holds.
        within = (p >= 0) & (p <= 1 + _ROUNDING)
        if not (within.all() and (np.abs(p.sum(1) - 1) <= _ROUNDING).all()):
            raise ValueError("probabilities")
        return Prediction(reference, digest.hex(), p, None, token)
    mean, variance = numbers
    if not (np.isfinite(numbers).all() and (variance > 0).all()):
        raise ValueError("numbers")
    return Prediction(reference, digest.hex(), mean, variance, token)


# ---- what became known of a model


def pack_test(test: SequentialTest) -> bytes:
    """The value of a sequential test's state."""
    return _TEST.pack(test.count, test.alarm or 0, *test.wealth)


def pack_rows(labelled: Labelled) -> bytes:
    """Rows as a ring has them."""
    return labelled.fields.astype("<f4").tobytes()


def unpack_test(value: bytes) -> SequentialTest:
    """The test of a state; that of no rows where there is none.

    Raises:
        ValueError: it is no state that any rows lead to; the message says why.
    """
    if not value:
        return NO_ROWS
    if len(value) != _TEST.size:
        raise ValueError("size")
    count, alarm, *wealth = _TEST.unpack(value)
    if not 0 <= alarm <= count < _MOST_ROWS:
        raise ValueError("count")
    if not np.all(np.abs(wealth) <= _MOST_GAIN * count):
        raise ValueError("wealth")
    return SequentialTest(count, alarm or None, np.array(wealth))


def unpack_rows(value: bytes, count: int, classes: bool) -> NDArray[np.float32] | None:
    """The latest of `count` rows (at most WINDOWS[-1], FIELDS), as a ring has them; None where some are missing, as
    where Redis made room.

    Args:
        value: of the ring.
        count: rows that became known.
        classes: whether the model is of classes, and not of a number.

    Raises:
        ValueError: they are not what is kept of such rows.
    """
    if len(value) != ROW * min(count, WINDOWS[-1]):
        return None
    rows: NDArray[np.float32] = np.frombuffer(value, dtype="<f4").reshape(-1, FIELDS)
    missed, (nll, confidence, correct) = rows[:, : len(LEVELS)], rows[:, len(LEVELS) :].T
    if classes:
        of_task = (confidence >= 0) & (confidence <= 1 + _ROUNDING) & _truth(correct)
    else:
        of_task = np.isnan(confidence) & np.isnan(correct)
    if not (_truth(missed).all() and np.isfinite(nll).all() and of_task.all()):
        raise ValueError("rows")
    return rows


def _truth(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.isin(values, (0, 1))


def unpack_count(value: bytes) -> int:
    """Rows that were scored; none where there is no value. Raises ValueError where it is no number of rows."""
    if value and not (value.isdigit() and int(value[:20]) < _MOST_ROWS):
        raise ValueError("count")
    return int(value or b"0")


def unpack_flags(value: bytes, count: int) -> NDArray[np.bool_] | None:
    """Which of the latest of `count` scored rows were unfamiliar, as a ring has them; None where some are missing.

    Raises:
        ValueError: they are no flags.
    """
    if len(value) != min(count, WINDOWS[-1]):
        return None
    flags = np.frombuffer(value, dtype=np.uint8)
    if (flags > 1).any():
        raise ValueError("flags")
    return flags.view(np.bool_)
