"""From a data file to encoded tensors: columns, target, test part and folds."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from builder.config import DataConfig
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

Array = NDArray[Any]
MIN_ROWS = 20


@dataclass(frozen=True)
class RawData:
    """A data set as it was read: n rows of named columns, or of tensors, and the target.

    Attributes:
        columns: name -> (n,) values; numbers, or text for categories. Empty for tensors.
        tensors: (n, *shape), or None for tables.
        y: (n,) target in its own units, or class labels.
        units: unit of a column or of the target.
        notes: what was left out, for the user.
    """

    columns: dict[str, Array]
    tensors: Array | None
    y: Array
    target: str
    units: dict[str, str]
    class_names: list[str] | None = None
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over names, values and target."""
        h = hashlib.sha256()
        for name, values in {**self.columns, self.target: self.y}.items():
            h.update(name.encode() + b"\0")
            h.update("\0".join(values).encode() if values.dtype == object else np.ascontiguousarray(values).tobytes())
        if self.tensors is not None:
            h.update(np.ascontiguousarray(self.tensors).tobytes())
        return h.hexdigest()


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


def read_file(config: DataConfig) -> RawData:
    """Reads a CSV, Parquet or `.npz` file.

    Raises:
        DataError: it cannot be read, lacks the target, or holds too little to learn from; the message says what to do.
    """
    path = config.file
    if path is None:
        raise DataError("Name the data with --data FILE.", field="--data")
    if not path.is_file():
        raise DataError(f"There is no file {path}.", field="--data", expected="a CSV, Parquet or .npz file")
    try:
        if path.suffix == ".npz":
            return _read_npz(path, config)
        if path.suffix in {".parquet", ".pq"}:
            return from_frame(pd.read_parquet(path), config)
        return from_frame(pd.read_csv(path, skipinitialspace=True), config)
    except DataError:
        raise
    except (ValueError, OSError, zipfile.BadZipFile, pd.errors.ParserError) as e:
        raise DataError(f"{path} cannot be read: {e}", field="--data", expected="a CSV, Parquet or .npz file") from e


def _read_npz(path: Path, config: DataConfig) -> RawData:
    with np.load(path, allow_pickle=False) as z:
        if "x" not in z or "y" not in z:
            raise DataError(
                f"{path} needs the arrays x and y.", field="--data", expected="arrays x, y", got=", ".join(z.files)
            )
        extra = {
            k: z[k] for k in ("feature_names", "feature_units", "target_name", "target_unit", "class_names") if k in z
        }
        return from_arrays(z["x"], z["y"], config, **extra)


def from_arrays(
    x: Array,
    y: Array,
    config: DataConfig,
    feature_names: Sequence[Any] | Array | None = None,
    feature_units: Sequence[Any] | Array | None = None,
    target_name: Any = None,
    target_unit: Any = None,
    class_names: Sequence[Any] | Array | None = None,
) -> RawData:
    """Data from arrays: x (n, columns) or (n, *shape), y (n,).

    Raises:
        DataError: the arrays do not fit each other.
    """
    x, y = np.asarray(x), np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
        raise DataError(
            "x needs one row for each entry of y.",
            field="--data",
            expected="x (n, ...), y (n,)",
            got=f"x {x.shape}, y {y.shape}",
        )
    target = config.target or (str(np.asarray(target_name).item()) if target_name is not None else "y")
    if x.ndim == 2:
        names = [str(v) for v in feature_names] if feature_names is not None else [f"x{i}" for i in range(x.shape[1])]
        units = dict(zip(names, map(str, feature_units), strict=True)) if feature_units is not None else {}
        if target_unit is not None:
            units[target] = str(np.asarray(target_unit).item())
        frame = pd.DataFrame({**{n: x[:, i] for i, n in enumerate(names)}, target: y})
        raw = from_frame(frame, config.model_copy(update={"target": target, "units": {**units, **config.units}}))
        labels = [str(v) for v in class_names] if class_names is not None else None
        return RawData(raw.columns, None, raw.y, target, raw.units, labels, raw.notes)
    if not np.issubdtype(x.dtype, np.number) or not np.isfinite(x).all():
        raise DataError("x holds values that are no finite numbers; remove those rows.", field="--data")
    labels = [str(v) for v in class_names] if class_names is not None else None
    return RawData({}, x, _checked_target(pd.Series(y), target), target, dict(config.units), labels)


def from_frame(frame: pd.DataFrame, config: DataConfig) -> RawData:
    """Data from a table.

    Raises:
        DataError: see `read_file`.
    """
    target = config.target
    if target is None:
        raise DataError("Name the column to predict with --target.", field="--target")
    frame = frame.rename(columns=str)
    if target not in frame.columns:
        known = ", ".join(frame.columns[:20])
        raise DataError(f"There is no column {target!r}.", field="--target", expected=f"one of: {known}", got=target)
    for name in [*config.drop, *config.categorical]:
        if name not in frame.columns:
            raise DataError(f"There is no column {name!r}.", field="--drop, --categorical", got=name)
    frame = frame.drop(columns=config.drop)
    if frame.columns.duplicated().any():
        raise DataError(f"The column {frame.columns[frame.columns.duplicated()][0]!r} appears twice.", field="--data")
    notes: list[str] = []
    columns: dict[str, Array] = {}
    keep = np.asarray(frame[target].notna())
    for name in frame.columns.drop(target):
        series = frame[name]
        numeric = pd.api.types.is_numeric_dtype(series.dtype) and name not in config.categorical
        if numeric:
            values = series.astype("float64").to_numpy(na_value=np.nan)
            keep &= np.isfinite(values)
        else:
            values = series.map(lambda v: "" if pd.isna(v) else str(v)).to_numpy(dtype=object)
            found = len(set(values))
            if found > config.max_categories:
                raise DataError(
                    f"Column {name!r} holds {found} different texts; leave it out with --drop {name}, or use numbers.",
                    field=name,
                    expected=f"at most {config.max_categories} categories",
                    got=str(found),
                )
        columns[name] = values
    if not columns:
        raise DataError("There is no column to predict from.", field="--data")
    lost = int((~keep).sum())
    if lost:
        notes.append(f"{lost} of {len(frame)} rows were left out: a number or the target is missing or infinite.")
    if lost > len(frame) / 2:
        worst = max(columns, key=lambda c: int(frame[c].isna().sum()))
        raise DataError(
            f"More than half of the rows lack a number; leave the emptiest column out with --drop {worst}.",
            field=worst,
            got=f"{lost} of {len(frame)} rows incomplete",
        )
    y = _checked_target(frame[target][keep], target)
    return RawData({n: v[keep] for n, v in columns.items()}, None, y, target, dict(config.units), notes=tuple(notes))


def _checked_target(series: pd.Series, name: str) -> Array:
    if len(series) < MIN_ROWS:
        raise DataError(
            "There are too few rows to learn from.",
            field="--data",
            expected=f"at least {MIN_ROWS}",
            got=str(len(series)),
        )
    if pd.api.types.is_numeric_dtype(series.dtype):
        y: Array = series.to_numpy()
        if not np.isfinite(y.astype(np.float64)).all():
            raise DataError(f"The target {name!r} holds missing or infinite values; remove those rows.", field=name)
        return y
    labels: Array = series.map(str).to_numpy(dtype=object)
    return labels


def prepare(raw: RawData, config: DataConfig, standardize: bool, seed: int) -> Dataset:
    """Splits off the test part, fits the encoding on the rest and encodes everything.

    Raises:
        DataError: the target does not fit the task.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    target: Target
    y: Array
    if config.task == "classification":
        target, y = _classes(raw)
        test = _test_part(y, config.test_fraction, rng)
    else:
        numbers = _numbers(raw)
        test = _test_part(np.zeros(len(numbers), dtype=np.int64), config.test_fraction, rng)
        target, y = _scaled(raw, numbers, ~test, standardize)
    spec, x = _encode(raw, ~test, standardize)
    return Dataset(spec, target, x, y, test, raw.fingerprint, raw.notes)


def assign_folds(strata: Array, folds: int, seed: int) -> NDArray[np.int64]:
    """A fold (0..folds-1) for each row, sizes equal to one row, each stratum spread evenly."""
    order = _shuffled_by_stratum(strata, np.random.Generator(np.random.PCG64(seed)))
    fold = np.empty(len(order), dtype=np.int64)
    fold[order] = np.arange(len(order)) % folds
    return fold


def _test_part(strata: Array, fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
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
        raise DataError(
            f"The target {raw.target!r} holds text, which regression cannot predict; use --task classification.",
            field=raw.target,
            expected="numbers",
            got=repr(raw.y[0]),
        )
    return raw.y.astype(np.float64)


def _scaled(
    raw: RawData, y: NDArray[np.float64], train: NDArray[np.bool_], standardize: bool
) -> tuple[RegressionTarget, NDArray[np.float32]]:
    mean, scale = float(y[train].mean()), float(y[train].std())
    if not scale > 1e-12 * max(1.0, abs(mean)):
        raise DataError(
            f"The target {raw.target!r} is the same in every row; there is nothing to learn.", field=raw.target
        )
    if not standardize:
        mean, scale = 0.0, 1.0
    target = RegressionTarget(name=raw.target, unit=raw.units.get(raw.target), mean=mean, scale=scale)
    return target, ((y - mean) / scale).astype(np.float32)


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
        raise DataError(f"The target {raw.target!r} has only one class; there is nothing to learn.", field=raw.target)
    if counts.min() < 2 or len(values) > max(2, len(y) // 5):
        raise DataError(
            f"The target {raw.target!r} has {len(values)} classes, of which {values[counts.argmin()]!r} has "
            f"{counts.min()} rows; join rare classes, or use --task regression.",
            field=raw.target,
            expected="at least 2 rows a class",
            got=f"{counts.min()}",
        )
    names: list[int | str] = [v if isinstance(v, str) else int(v) for v in values]
    if raw.class_names is not None and len(raw.class_names) == len(values):
        names = list(raw.class_names)
    return ClassificationTarget(name=raw.target, classes=names), codes.astype(np.int64)


def _encode(raw: RawData, train: NDArray[np.bool_], standardize: bool) -> tuple[InputSpec, NDArray[np.float32]]:
    if raw.tensors is not None:
        values = raw.tensors.astype(np.float64)
        mean, scale = (float(values[train].mean()), float(values[train].std())) if standardize else (0.0, 1.0)
        tensor = TensorInput(shape=list(values.shape[1:]), mean=mean, scale=scale or 1.0)
        return tensor, TensorEncoder(tensor).encode(values)
    columns: list[NumericColumn | CategoricalColumn] = []
    for name, v in raw.columns.items():
        unit = raw.units.get(name)
        if v.dtype == object:
            columns.append(CategoricalColumn(name=name, unit=unit, categories=sorted(set(v))))
            continue
        seen = v[train]
        mean, scale = (float(seen.mean()), float(seen.std())) if standardize else (0.0, 1.0)
        # A constant column says nothing: it is centred and left at that.
        scale = scale if scale > 1e-12 * max(1.0, abs(mean)) else 1.0
        low, high = float(seen.min()), float(seen.max())
        columns.append(NumericColumn(name=name, unit=unit, mean=mean, scale=scale, minimum=low, maximum=high))
    table = TableInput(columns=columns)
    return table, TableEncoder(table).encode_columns(list(raw.columns.values()))
