"""Data as it is read: CSV, Parquet, `.npz`, data frames and arrays become checked columns and a target."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from builder.config import DataConfig
from builder.csv_table import holds_truth_values, read_csv, refuse_duplicates, without_nameless
from model_store.encoding import category_of
from model_store.errors import DataError

Array = NDArray[Any]
MIN_ROWS = 20
_FEW_TEXTS, _NEARLY_ALL = 10, 0.8
_COMMAS = r"[-+]?\d+(,\d+)+(\.\d*)?"
_NOTHING = {"na", "n/a", "nan", "none", "null", "<na>"}
_DATE = r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}([ T].*)?"


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
            table = pd.read_parquet(path)
            return from_frame(table.reset_index([name for name in table.index.names if name is not None]), config)
        asked = {config.target or "", *config.drop, *config.categorical}
        table, notes = without_nameless(read_csv(path, config.categorical), asked)
        raw = from_frame(table, config)
        return replace(raw, notes=(*notes, *raw.notes))
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
        several = y.ndim == 2 and len(x) == len(y)
        raise DataError(
            "x needs one row for each entry of y."
            + (" Give each column of y a model of its own, or of one-hot classes y.argmax(1)." if several else ""),
            field="--data",
            expected="x (n, ...), y (n,)",
            got=f"x {x.shape}, y {y.shape}",
        )
    target = config.target or (str(np.asarray(target_name).item()) if target_name is not None else "y")
    if x.ndim == 2:
        names = one_each(feature_names, "feature_names", x.shape[1]) or [f"x{i}" for i in range(x.shape[1])]
        units = dict(zip(names, one_each(feature_units, "feature_units", x.shape[1]), strict=False))
        refuse_duplicates([*names, target])
        if target_unit is not None:
            units[target] = str(np.asarray(target_unit).item())
        frame = pd.DataFrame({**{n: x[:, i] for i, n in enumerate(names)}, target: y})
        raw = from_frame(frame, config.model_copy(update={"target": target, "units": {**units, **config.units}}))
        labels = [str(v) for v in class_names] if class_names is not None else None
        return RawData(raw.columns, None, raw.y, target, raw.units, labels, raw.notes)
    _refuse_complex({"x": x, target: y})
    x = x.astype(np.uint8) if x.dtype == np.bool_ else x
    if not np.issubdtype(x.dtype, np.number) or not np.isfinite(x).all():
        raise DataError("x holds values that are no finite numbers; remove those rows.", field="--data")
    labels = [str(v) for v in class_names] if class_names is not None else None
    return RawData({}, x, _checked_target(_without_bool(pd.Series(y)), target), target, dict(config.units), labels)


def one_each(values: Sequence[Any] | Array | None, name: str, count: int, what: str = "column of x") -> list[str]:
    """The values as text, empty for None. Raises DataError where there are not `count`."""
    found = [] if values is None else [str(v) for v in values]
    if values is not None and len(found) != count:
        raise DataError(
            f"{name} needs one entry for each {what}.", field=name, expected=str(count), got=str(len(found))
        )
    return found


def from_frame(frame: pd.DataFrame, config: DataConfig) -> RawData:
    """Data from a table.

    Raises:
        DataError: see `read_file`.
    """
    target = config.target
    if target is None:
        raise DataError("Name the column to predict with --target.", field="--target")
    frame = frame.rename(columns=str)
    refuse_duplicates(list(frame.columns))
    if target not in frame.columns:
        known = f"one of: {_few(frame.columns)}"
        raise DataError(f"There is no column {target!r}.", field="--target", expected=known, got=target)
    for option, names in (("--drop", config.drop), ("data.categorical", config.categorical)):
        for name in names:
            if name not in frame.columns:
                raise DataError(
                    f"There is no column {name!r}.", field=option, expected=f"some of: {_few(frame.columns)}", got=name
                )
    frame = frame.drop(columns=config.drop)
    _refuse_complex({name: frame[name] for name in frame.columns})
    notes: list[str] = []
    columns: dict[str, Array] = {}
    gaps: dict[str, int] = {}
    keep = np.array(frame[target].notna())
    for name in frame.columns.drop(target):
        # A truth value that is a category keeps its name, as in a request and in a CSV file.
        series = frame[name] if name in config.categorical else _without_bool(frame[name])
        numeric = pd.api.types.is_numeric_dtype(series.dtype) and name not in config.categorical
        if numeric:
            values = series.astype("float64").to_numpy(na_value=np.nan)
            gaps[name] = int((~np.isfinite(values)).sum())
            keep &= np.isfinite(values)
        else:
            values = np.array([category_of(None if pd.isna(v) else v) for v in series], dtype=object)
            found = len(set(values))
            if found > config.max_categories:
                advice = numbers_with_commas(series.dropna().map(str)) or (
                    f"leave it out with --drop {name}, make numbers of them (of dates too), or raise "
                    "data.max_categories in a recipe."
                )
                raise DataError(
                    f"Column {name!r} holds {found} different texts; {advice}",
                    field=name,
                    expected=f"at most {config.max_categories} categories",
                    got=str(found),
                )
            notes += [] if name in config.categorical else _numbers_or_dates(series, name, found)
        columns[name] = values
    if not columns:
        raise DataError("There is no column to predict from.", field="--data")
    lost = int((~keep).sum())
    if lost:
        notes.append(f"{lost} of {len(frame)} rows were left out: a number or the target is missing or infinite.")
    if frame[target].isna().sum() > len(frame) / 2:
        raise DataError(
            f"The target {target!r} is missing in more than half of the rows; name the right column with --target.",
            field=target,
            got=f"{int(frame[target].isna().sum())} of {len(frame)} rows without it",
        )
    if lost > len(frame) / 2:
        worst = max(gaps, key=lambda c: gaps[c])
        raise DataError(
            f"More than half of the rows lack a number; leave the emptiest column out with --drop {worst}.",
            field=worst,
            got=f"{lost} of {len(frame)} rows incomplete",
        )
    y = _checked_target(_without_bool(frame[target])[keep], target)
    return RawData({n: v[keep] for n, v in columns.items()}, None, y, target, dict(config.units), notes=tuple(notes))


def _refuse_complex(columns: Mapping[str, Array | pd.Series]) -> None:
    for name, values in columns.items():
        if pd.api.types.is_complex_dtype(values.dtype):
            raise DataError(
                f"{name!r} holds complex numbers; give their real and imaginary parts as numbers of their own.",
                field=name,
                expected="real numbers",
                got=str(values.dtype),
            )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def _numbers_or_dates(series: pd.Series, name: str, found: int) -> list[str]:
    """A note where a column of so many texts looks as if it was meant to be one of numbers, or holds dates."""
    given = series.dropna().map(str)
    if found <= _FEW_TEXTS or not len(given):
        return []
    if commas := numbers_with_commas(given):
        return [f"Column {name!r} is taken for {found} categories: {commas}"]
    number = pd.to_numeric(given, errors="coerce").notna()
    if number.mean() > _NEARLY_ALL:
        rest = given[~number & ~given.str.lower().isin(_NOTHING)]
        other = f", as it holds {rest.iloc[0]!r} beside numbers" if len(rest) else ""
        return [f"Column {name!r} is taken for {found} categories{other}; leave what is no number empty."]
    if given.str.fullmatch(_DATE).mean() > _NEARLY_ALL:
        return [
            f"Column {name!r} holds dates, each a category of its own, and no other date will be known; make "
            "numbers of them, such as days since the first."
        ]
    return []


def numbers_with_commas(texts: pd.Series) -> str:
    """What to do about texts that are nearly all numbers, many of them with a comma; nothing where they are not."""
    comma = texts.str.fullmatch(_COMMAS)
    plain = pd.to_numeric(texts, errors="coerce").notna()
    if not len(texts) or (comma | plain).mean() <= _NEARLY_ALL or comma.mean() <= 1 - _NEARLY_ALL:
        return ""
    return (
        f"it holds numbers with commas, such as {texts[comma].iloc[0]!r}; write them with a decimal point, and none "
        "between thousands."
    )


def _without_bool(series: pd.Series) -> pd.Series:
    """False and True become 0 and 1."""
    if holds_truth_values(series):
        return series.astype("Float64" if series.isna().any() else "int64")
    return series


def _checked_target(series: pd.Series, name: str) -> Array:
    if len(series) < MIN_ROWS:
        raise DataError(
            "There are too few rows to learn from; collect more of them.",
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
