"""From raw data to what the network learns from: encoded tensors, target, test part and folds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from builder.config import DataConfig
from builder.csv_table import refuse_duplicates
from builder.source import Array, RawData, from_arrays, from_frame, numbers_with_commas, one_each, read_file
from model_store.encoding import TableEncoder, TensorEncoder
from model_store.errors import DataError
from model_store.manifest import (
    CategoricalColumn,
    ClassificationTarget,
    InputSpec,
    NumericColumn,
    RegressionTarget,
    TableInput,
    Target,
    TensorInput,
)

__all__ = ["Dataset", "RawData", "assign_folds", "from_arrays", "from_frame", "part_of", "prepare", "read_file"]

_LEAST_TRAINING_ROWS = 10
_FEW_ROWS = 10
"""Rows of a class below which nothing said about it rests on much."""
_MANY_COPIES = 0.1
_LARGEST = 1e38
"""Magnitudes beyond do not fit the float32 of the network's inputs."""


@dataclass(frozen=True)
class Dataset:
    """Encoded data with its test part.

    Attributes:
        inputs, target: what the bundle says of them; scaling is fitted on the training rows alone.
        x: (n, ...) float32 encoded inputs.
        y: (n,) standardised target (float32) or class index (int64).
        test: (n,) bool, rows kept for the test metrics.
    """

    inputs: InputSpec
    target: Target
    x: NDArray[np.float32]
    y: Array
    test: NDArray[np.bool_]
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Network outputs that the target needs."""
        return len(self.target.classes) if isinstance(self.target, ClassificationTarget) else 1


def prepare(raw: RawData, config: DataConfig, standardize: bool, seed: int, given_weights: bool = False) -> Dataset:
    """Splits off the test part, fits the encoding on the rest and encodes everything.

    Args:
        given_weights: whether they were trained elsewhere, and have inputs for the categories of all rows.

    Raises:
        DataError: the target does not fit the task, or the test part leaves too little to learn from.
    """
    _refuse_overflow(raw)
    rng = np.random.Generator(np.random.PCG64(seed))
    target: Target
    y: Array
    if config.task == "classification":
        if config.log_target:
            raise DataError(
                "A class has no logarithm; leave --log-target (data.log_target) out.",
                field="data.log_target",
                got="true",
            )
        target, y = _classes(raw)
        test = part_of(y, config.test_fraction, rng)
        _refuse_few(~test)
        notes = _rare_classes(target, y[~test])
    else:
        numbers = _numbers(raw)
        test = part_of(np.zeros(len(numbers), dtype=np.int64), config.test_fraction, rng)
        _refuse_few(~test)
        notes = []
        if config.log_target:
            numbers = _logarithms(raw, numbers)
        target, y = _scaled(raw, numbers, ~test, standardize, config.log_target)
    spec, x = _encode(raw, ~test, standardize, given_weights)
    return Dataset(spec, target, x, y, test, raw.fingerprint, (*raw.notes, *notes, *_copies(x, y)))


def _refuse_few(train: NDArray[np.bool_]) -> None:
    if train.sum() < _LEAST_TRAINING_ROWS:
        raise DataError(
            "The test part leaves too few rows to learn from; lower test_fraction, or collect more rows.",
            field="data.test_fraction",
            expected=f"at least {_LEAST_TRAINING_ROWS} training rows",
            got=str(train.sum()),
        )


def _rare_classes(target: ClassificationTarget, y: NDArray[np.int64]) -> list[str]:
    """A note where training rows y (n,) of a class are few. Raises DataError where a class has none."""
    counts = np.bincount(y, minlength=len(target.classes))
    if not counts.all():
        raise DataError(
            f"The test part holds every row of the class {target.classes[counts.argmin()]!r}; lower test_fraction, or "
            "join rare classes.",
            field=target.name,
            expected="at least one training row a class",
            got="0",
        )
    few = [f"{name!r} ({n})" for name, n in zip(target.classes, counts, strict=True) if n < _FEW_ROWS]
    if not few:
        return []
    shown = ", ".join(few[:10]) + (", ..." if len(few) > 10 else "")
    return [
        f"Classes with fewer than {_FEW_ROWS} training rows: {shown}. Prediction sets hold the true class as often as "
        "promised over all rows, which says little of rows of these classes."
    ]


def _copies(x: NDArray[np.float32], y: Array) -> list[str]:
    """A note where many rows are copies: equal inputs x (n, ...) whose targets y (n,) are equal too, each time.

    Rows of a few discrete columns are often equal by chance. Their targets then differ here and there, and they do not
    count. Copies are not kept in one fold: where new rows are copies as often, folds at random are what is right.
    """
    # Sorting the rows themselves would take as much room again as all of them.
    _, group, size = np.unique([hash(row.tobytes()) for row in x], return_inverse=True, return_counts=True)
    low, high = np.full(len(size), y.max()), np.full(len(size), y.min())
    np.minimum.at(low, group, y)
    np.maximum.at(high, group, y)
    surplus = int((size - 1)[low == high].sum())
    if surplus <= _MANY_COPIES * len(x):
        return []
    return [
        f"{surplus} of {len(x)} rows are copies of others, target included. Networks are judged on rows whose copies "
        "they have seen: what is promised holds for new rows that are copies as often, and is too good for others. "
        "Remove the copies unless new rows will be such."
    ]


def _refuse_overflow(raw: RawData) -> None:
    tensors = {} if raw.tensors is None else {"x": raw.tensors}
    for name, values in {**raw.columns, **tensors, raw.target: raw.y}.items():
        if np.issubdtype(values.dtype, np.number) and np.abs(values.astype(np.float64)).max() > _LARGEST:
            raise DataError(
                f"{name!r} holds numbers too large to compute with; use another unit, or leave it out with --drop.",
                field=name,
                expected=f"magnitudes up to {_LARGEST:g}",
            )


def assign_folds(strata: Array, folds: int, seed: int) -> NDArray[np.int64]:
    """A fold (0..folds-1) for each row, sizes equal to one row, each stratum spread evenly."""
    order = _shuffled_by_stratum(strata, np.random.Generator(np.random.PCG64(seed)))
    fold = np.empty(len(order), dtype=np.int64)
    fold[order] = np.arange(len(order)) % folds
    return fold


def part_of(strata: Array, fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(n,) bool: a random part of the rows, of each stratum as many as it has of all."""
    order = _shuffled_by_stratum(strata, rng)
    turns = np.floor((np.arange(len(order) + 1)) * fraction + 0.5)
    test = np.zeros(len(order), dtype=bool)
    test[order] = np.diff(turns) > 0
    return test


def _shuffled_by_stratum(strata: Array, rng: np.random.Generator) -> NDArray[np.int64]:
    shuffled = rng.permutation(len(strata))
    order: NDArray[np.int64] = shuffled[np.argsort(strata[shuffled], kind="stable")]
    return order


def _numbers(raw: RawData) -> NDArray[np.float64]:
    if not np.issubdtype(raw.y.dtype, np.number):
        commas = numbers_with_commas(pd.Series(raw.y))
        raise DataError(
            f"The target {raw.target!r} holds text, which regression cannot predict; "
            + (commas or "use --task classification."),
            field=raw.target,
            expected="numbers",
            got=repr(raw.y[0]),
        )
    return raw.y.astype(np.float64)


def _logarithms(raw: RawData, y: NDArray[np.float64]) -> NDArray[np.float64]:
    without = int((y <= 0).sum())
    if without:
        raise DataError(
            f"{without} of {len(y)} rows have a target {raw.target!r} that is not above zero and has no logarithm; "
            "leave these rows out, or build without the logarithm.",
            field="data.log_target",
            expected="targets above zero",
            got=repr(float(y.min())),
        )
    return np.log(y)


def _scaled(
    raw: RawData, y: NDArray[np.float64], train: NDArray[np.bool_], standardize: bool, log: bool
) -> tuple[RegressionTarget, NDArray[np.float32]]:
    mean, scale = float(y[train].mean()), float(y[train].std())
    if _constant(mean, scale):
        raise DataError(
            f"The target {raw.target!r} is the same in every training row; there is nothing to learn. Name another.",
            field=raw.target,
        )
    if not standardize:
        mean, scale = 0.0, 1.0
    target = RegressionTarget(name=raw.target, unit=raw.units.get(raw.target), log=log, mean=mean, scale=scale)
    return target, ((y - mean) / scale).astype(np.float32)


def _constant(mean: float, scale: float) -> bool:
    """Whether what is left of the spread is rounding."""
    return scale <= max(1e-12 * abs(mean), 1e-100)


def _classes(raw: RawData) -> tuple[ClassificationTarget, NDArray[np.int64]]:
    y = raw.y
    if np.issubdtype(y.dtype, np.floating):
        if not (y == np.round(y)).all():
            raise DataError(
                f"The target {raw.target!r} holds fractions, which are no classes; use --task regression.",
                field=raw.target,
                expected="text or whole numbers",
                got=repr(float(y[0])),
            )
        y = y.astype(np.int64)
    values, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    if len(values) < 2:
        raise DataError(
            f"The target {raw.target!r} has only one class; there is nothing to learn. Name another.",
            field=raw.target,
        )
    names: list[int | str] = [v if isinstance(v, str) else int(v) for v in values]
    if counts.min() < 2 or len(values) > max(2, len(y) // 5):
        raise DataError(
            f"The target {raw.target!r} has {len(values)} classes, of which {names[counts.argmin()]!r} has "
            f"{counts.min()} row(s); join rare classes, or use --task regression.",
            field=raw.target,
            expected="at least 2 rows a class",
            got=f"{counts.min()}",
        )
    if raw.class_names is not None:
        names = list(one_each(raw.class_names, "class_names", len(values), "class of y"))
        refuse_duplicates(raw.class_names, "class", "class_names")
    return ClassificationTarget(name=raw.target, classes=names), codes.astype(np.int64)


def _encode(
    raw: RawData, train: NDArray[np.bool_], standardize: bool, given_weights: bool
) -> tuple[InputSpec, NDArray[np.float32]]:
    if raw.tensors is not None:
        values = raw.tensors.astype(np.float64)
        mean, scale = (float(values[train].mean()), float(values[train].std())) if standardize else (0.0, 1.0)
        tensor = TensorInput(shape=list(values.shape[1:]), mean=mean, scale=1.0 if _constant(mean, scale) else scale)
        return tensor, TensorEncoder(tensor).encode(values)
    columns: list[NumericColumn | CategoricalColumn] = []
    for name, v in raw.columns.items():
        unit = raw.units.get(name)
        if v.dtype == object:
            known = v if given_weights else v[train]
            columns.append(CategoricalColumn(name=name, unit=unit, categories=sorted(set(known))))
            continue
        seen = v[train]
        mean, scale = (float(seen.mean()), float(seen.std())) if standardize else (0.0, 1.0)
        # A constant column says nothing: it is centred and left at that.
        scale = 1.0 if _constant(mean, scale) else scale
        low, high = float(seen.min()), float(seen.max())
        columns.append(NumericColumn(name=name, unit=unit, mean=mean, scale=scale, minimum=low, maximum=high))
    table = TableInput(columns=columns)
    return table, TableEncoder(table).encode_columns(list(raw.columns.values()))
