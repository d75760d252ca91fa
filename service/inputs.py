"""From the rows of a request to the network's input; a row that the model cannot take is named precisely.

Rows that are right take a short way through numpy; those that came as an array are right, but for their shape and
numbers that are not finite. Only when that fails are they walked value by value, to say which one is wrong.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from model_store.encoding import TableEncoder, TensorEncoder, category_of
from model_store.errors import InputError
from model_store.manifest import CategoricalColumn, InputSpec, TableInput, TensorInput

Float32 = NDArray[np.float32]
_NUMBERS = {int, float}
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def brief(value: Any) -> str:
    """A JSON value in a few characters, for an error message."""
    match value:
        case None | bool():
            return json.dumps(value)
        case int():
            return str(value) if abs(value) < 10**24 else f"an integer of {value.bit_length()} bits"
        case float():
            return "NaN" if math.isnan(value) else json.dumps(value)
        case str():
            return json.dumps(value if len(value) <= 60 else value[:57] + "...")
        case list():
            return f"an array of {len(value)}"
        case dict():
            return f"an object of {len(value)} fields"
        case bytes():
            return f"{len(value)} bytes"
        case _:
            return "a value of another kind"


def refuse(code: str, message: str, field: str, expected: str, got: Any) -> NoReturn:
    """Raises InputError about one value of a request."""
    raise InputError(message, code=code, field=field, expected=expected, got=brief(got))


def number(value: Any, field: str, what: str) -> float:
    """A finite number, or InputError `wrong_type` or `not_finite`; `what` names it in the message."""
    if type(value) not in _NUMBERS:
        refuse("wrong_type", f"{what} must be a number.", field, "a finite number", value)
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        refuse("not_finite", f"{what} must be a finite number.", field, "a finite number", value)
    return result


@dataclass(frozen=True, eq=False)
class NumericRows:
    """Rows that came as an array, or are known to be one.

    Attributes:
        values: (B, ...) of a float or integer dtype; numbers of it need not be finite.
        row: a row as the request gave it, in lists, for what an error says of it.
    """

    values: NDArray[Any]
    row: Callable[[int], Any]

    def __len__(self) -> int:
        """B."""
        return len(self.values)

    def __getitem__(self, i: int) -> Any:
        return self.row(i)

    def matrix(self, *shapes: tuple[int, ...]) -> NDArray[np.float64] | None:
        """The values in row-major order; None where a row has none of the shapes, or a number is not finite."""
        if self.values.shape[1:] not in shapes or not np.isfinite(self.values).all():
            return None
        return np.ascontiguousarray(self.values, dtype=np.float64)

    def wrong(self, *shapes: tuple[int, ...]) -> int:
        """Where `matrix` is None: the first row that is wrong."""
        if self.values.shape[1:] not in shapes:
            return 0
        return int(np.argmin(np.isfinite(self.values.reshape(len(self), -1)).all(axis=1)))


class InputEncoder:
    """Encodes the `inputs` of a request for one model."""

    def __init__(self, spec: InputSpec) -> None:
        self._rows: _TableRows | _TensorRows = _TableRows(spec) if isinstance(spec, TableInput) else _TensorRows(spec)

    def encode(self, inputs: list[Any] | NumericRows, *, unseen: bool = False) -> Float32:
        """Rows as the request gave them, at least one, to (B, ...) float32.

        Args:
            inputs: the rows.
            unseen: whether categories that the model was not built with are taken, as none of those it knows.

        Raises:
            InputError: the first value that the model cannot take.
        """
        with np.errstate(over="ignore"):  # what overflows float32 is looked for below
            x = self._rows.encode(inputs, unseen)
        if not np.isfinite(x).all():
            self._rows.refuse_overflow(inputs, x)
        return x

    def typical(self) -> Float32:
        """One encoded row (1, ...) in the middle of the training data."""
        return np.zeros((1, *self._rows.shape), dtype=np.float32)


class _TableRows:
    def __init__(self, spec: TableInput) -> None:
        self._encoder = TableEncoder(spec)
        self._columns = spec.columns
        self._names = self._encoder.names
        self._known = set(self._names)
        self._order = "the columns in order: " + _listed(self._names)
        self.shape = (self._encoder.width,)

    def encode(self, inputs: list[Any] | NumericRows, unseen: bool) -> Float32:
        if isinstance(inputs, NumericRows):
            if self._encoder.all_numeric:
                return self._encoder.encode_matrix(self._matrix(inputs))
            return self._encoder.encode_columns(self._columns_of_numbers(inputs, unseen))
        rows = self._quick_rows(inputs)
        if rows is not None and self._encoder.all_numeric:
            matrix = _quick_matrix(rows)
            if matrix is not None:
                return self._encoder.encode_matrix(matrix)
        columns = self._quick_columns(rows, unseen) if rows is not None else None
        return self._encoder.encode_columns(columns or self._slow_columns(inputs, unseen))

    def refuse_overflow(self, inputs: list[Any] | NumericRows, x: Float32) -> NoReturn:
        i = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        # Only numbers overflow, and every number is one column of x.
        widths = [len(c.categories) if isinstance(c, CategoricalColumn) else 1 for c in self._columns]
        wrong = int(np.flatnonzero(~np.isfinite(x[i]))[0])
        j = int(np.searchsorted(np.cumsum(widths), wrong, side="right"))
        row = inputs[i]
        refuse(
            "out_of_range",
            f"Column {self._names[j]!r} in row {i} is too large for the model; check its unit.",
            self._field(i, j, row),
            f"a number below {_FLOAT32_MAX:.1e} after scaling",
            row[self._names[j]] if isinstance(row, dict) else row[j],
        )

    def _matrix(self, rows: NumericRows) -> NDArray[np.float64]:
        shape = (len(self._names),)
        matrix = rows.matrix(shape)
        if matrix is None:
            i = rows.wrong(shape)
            self._row(i, rows[i], unseen=False)
            raise AssertionError(f"row {i} is wrong and was not refused")
        return matrix

    def _quick_rows(self, inputs: list[Any]) -> list[list[Any]] | None:
        if all(type(r) is list and len(r) == len(self._names) for r in inputs):
            return inputs
        if all(type(r) is dict and r.keys() == self._known for r in inputs):
            return [[r[n] for n in self._names] for r in inputs]
        return None

    def _quick_columns(self, rows: list[list[Any]], unseen: bool) -> list[NDArray[Any]] | None:
        columns: list[NDArray[Any]] = []
        for spec, values in zip(self._columns, zip(*rows, strict=True), strict=True):
            if isinstance(spec, CategoricalColumn):
                if set(map(type, values)) != {str} or not (unseen or set(values) <= set(spec.categories)):
                    return None
                columns.append(np.array(values, dtype=object))
                continue
            matrix = _quick_matrix([values])
            if matrix is None:
                return None
            columns.append(matrix[0])
        return columns

    def _columns_of_numbers(self, inputs: NumericRows, unseen: bool) -> list[NDArray[Any]]:
        """Those of numbers where some columns hold categories, which may be whole numbers."""

        def row(i: int, values: list[Any]) -> list[Any]:
            try:
                return self._row(i, values, unseen)
            except InputError:
                return self._row(i, inputs[i], unseen)  # the message shows the row as it was sent

        return _by_column([row(i, values) for i, values in enumerate(inputs.values.tolist())])

    def _slow_columns(self, inputs: list[Any], unseen: bool) -> list[NDArray[Any]]:
        return _by_column([self._row(i, row, unseen) for i, row in enumerate(inputs)])

    def _row(self, i: int, row: Any, unseen: bool) -> list[Any]:
        if isinstance(row, dict):
            for name in row:
                if name not in self._known:
                    refuse(
                        "unknown_column",
                        f"Row {i} has a column {brief(name)} that the model does not know.",
                        f"inputs[{i}]",
                        "the columns " + _listed(self._names),
                        name,
                    )
            for name in self._names:
                if name not in row:
                    raise InputError(
                        f"Row {i} lacks the column {name!r}.",
                        code="missing_column",
                        field=f"inputs[{i}].{name}",
                        expected="the columns " + _listed(self._names),
                        got="the columns " + _listed(list(row)) if row else "no columns",
                    )
            values = [row[n] for n in self._names]
        elif isinstance(row, list):
            if len(row) != len(self._names):
                raise InputError(
                    f"Row {i} has {len(row)} values; the model takes {len(self._names)}.",
                    code="wrong_width",
                    field=f"inputs[{i}]",
                    expected=f"{len(self._names)} values, {self._order}",
                    got=f"{len(row)} values",
                )
            values = row
        else:
            refuse(
                "wrong_type",
                f"Row {i} must be an array of values or an object keyed by column name.",
                f"inputs[{i}]",
                f"{len(self._names)} values, {self._order}",
                row,
            )
        return [self._value(i, j, v, row, unseen) for j, v in enumerate(values)]

    def _value(self, i: int, j: int, value: Any, row: Any, unseen: bool) -> str | float:
        field, what = self._field(i, j, row), f"Column {self._names[j]!r} in row {i}"
        column = self._columns[j]
        if not isinstance(column, CategoricalColumn):
            # A builder takes truth values for 0 and 1.
            truth = isinstance(value, bool) and (column.minimum, column.maximum) == (0, 1)
            return float(value) if truth else number(value, field, what)
        category = category_of(value)
        # NaN and infinity are no categories.
        takeable = isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value))
        if category in column.categories or (unseen and takeable):
            return category
        known = "one of: " + _listed([category or '""' for category in column.categories])
        if not takeable:
            refuse("wrong_type", f"{what} must be one of the model's categories.", field, known, value)
        message = f"{what} is no category that the model knows; with ood: true such rows are predicted and flagged."
        refuse("unknown_category", message, field, known, value)

    def _field(self, i: int, j: int, row: Any) -> str:
        return f"inputs[{i}].{self._names[j]}" if isinstance(row, dict) else f"inputs[{i}][{j}]"


def _by_column(rows: list[list[Any]]) -> list[NDArray[Any]]:
    return [np.array(values, dtype=object) for values in zip(*rows, strict=True)]


class _TensorRows:
    def __init__(self, spec: TensorInput) -> None:
        self._encoder = TensorEncoder(spec)
        self.shape = self._encoder.shape
        self._size = math.prod(self.shape)
        self._shapes = f"an array of shape {list(self.shape)}, or its {self._size} numbers in row-major order"

    def encode(self, inputs: list[Any] | NumericRows, _: bool) -> Float32:
        if isinstance(inputs, NumericRows):
            return self._encoder.encode(self._matrix(inputs))
        values = self._quick(inputs)
        if values is None:
            values = np.array([self._slow(i, row) for i, row in enumerate(inputs)])
        return self._encoder.encode(values)

    def refuse_overflow(self, inputs: list[Any] | NumericRows, x: Float32) -> NoReturn:
        i = int(np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))[0])
        refuse(
            "out_of_range",
            f"Row {i} holds a number that is too large for the model; check its unit.",
            f"inputs[{i}]",
            f"numbers below {_FLOAT32_MAX:.1e} after scaling",
            inputs[i],
        )

    def _matrix(self, rows: NumericRows) -> NDArray[np.float64]:
        shapes = (self.shape, (self._size,))
        matrix = rows.matrix(*shapes)
        if matrix is None:
            i = rows.wrong(*shapes)
            self._slow(i, rows[i])
            raise AssertionError(f"row {i} is wrong and was not refused")
        return matrix

    def _quick(self, inputs: list[Any]) -> NDArray[np.float64] | None:
        nested = len(self.shape) > 1 and isinstance(inputs[0], list) and inputs[0] and isinstance(inputs[0][0], list)
        shape = self.shape if nested else (self._size,)
        leaves: Iterable[Any] = inputs
        try:
            for _ in shape:
                leaves = itertools.chain.from_iterable(leaves)
            if not set(map(type, leaves)) <= _NUMBERS:
                return None
            values = np.array(inputs, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            return None
        return values if values.shape[1:] == shape and np.isfinite(values).all() else None

    def _slow(self, i: int, row: Any) -> NDArray[np.float64]:
        field = f"inputs[{i}]"
        if not isinstance(row, list):
            refuse("wrong_type", f"Row {i} must be an array of numbers.", field, self._shapes, row)
        nested = len(self.shape) > 1 and bool(row) and isinstance(row[0], list)
        shape = self.shape if nested else (self._size,)
        flat: list[float] = []
        self._walk(row, shape, i, field, flat)
        return np.array(flat).reshape(self.shape)

    def _walk(self, value: Any, shape: tuple[int, ...], i: int, field: str, flat: list[float]) -> None:
        if not shape:
            flat.append(number(value, field, f"A value in row {i}"))
            return
        if not isinstance(value, list):
            refuse("wrong_type", f"Row {i} has {brief(value)} for an array.", field, self._shapes, value)
        if len(value) != shape[0]:
            raise InputError(
                f"Row {i} has {len(value)} entries where the model takes {shape[0]}.",
                code="wrong_width",
                field=field,
                expected=self._shapes,
                got=f"{len(value)} entries",
            )
        for j, part in enumerate(value):
            self._walk(part, shape[1:], i, f"{field}[{j}]", flat)


def _quick_matrix(rows: Iterable[Iterable[Any]]) -> NDArray[np.float64] | None:
    """Rows of equal length as float64, or None where any value is not a finite number."""
    # numpy would take true for 1, "1" for 1 and null for NaN.
    if not set().union(*(map(type, row) for row in rows)) <= _NUMBERS:
        return None
    try:
        matrix = np.array(rows, dtype=np.float64)
    except OverflowError:
        return None
    return matrix if np.isfinite(matrix).all() else None


def _listed(names: list[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:12])
    return shown + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
