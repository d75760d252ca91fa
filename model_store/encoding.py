"""From a user's columns to the network's input, the same on both sides.

The builder encodes the training table with it, the server every request, so the two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.manifest import CategoricalColumn, NumericColumn, TableInput, TensorInput

Float32 = NDArray[np.float32]


def category_of(value: Any) -> str:
    """A value as the text of its category: nothing is "", and a whole number has no point, as missing values turn a
    column of whole numbers into floats."""
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


class TableEncoder:
    """Encodes rows of named columns as a (B, width) float32 matrix: z-scores, and one 0/1 column a category.

    Attributes:
        names: of the columns; groups: the part of the width that each of them takes.
        numeric: (width,) bool, which encoded columns are numbers.
    """

    def __init__(self, spec: TableInput) -> None:
        self.spec = spec
        self.names = [c.name for c in spec.columns]
        self.all_numeric = all(isinstance(c, NumericColumn) for c in spec.columns)
        self._mean = np.array([c.mean if isinstance(c, NumericColumn) else 0.0 for c in spec.columns])
        self._scale = np.array([c.scale if isinstance(c, NumericColumn) else 1.0 for c in spec.columns])
        self._codes = [
            {v: i for i, v in enumerate(c.categories)} if isinstance(c, CategoricalColumn) else None
            for c in spec.columns
        ]
        ends = np.cumsum([1 if codes is None else len(codes) for codes in self._codes]).tolist()
        self.groups = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        self.width: int = ends[-1]
        self._starts = np.array([g.start for g in self.groups])
        self._categorical = np.array([codes is not None for codes in self._codes])
        numeric = [np.full(g.stop - g.start, codes is None) for g, codes in zip(self.groups, self._codes, strict=True)]
        self.numeric: NDArray[np.bool_] = np.concatenate(numeric)

    def encode_matrix(self, rows: NDArray[np.float64]) -> Float32:
        """Encodes (B, C) numbers of a table whose columns are all numeric."""
        encoded: Float32 = ((rows - self._mean) / self._scale).astype(np.float32)
        return encoded

    def encode_columns(self, columns: Sequence[NDArray[Any]]) -> Float32:
        """Encodes one array of B values a column, in the model's column order. A category that the model has not been
        built with is 0 in all columns of its group: see `unseen`."""
        rows = len(columns[0])
        out = np.zeros((rows, self.width), dtype=np.float32)
        at = 0
        for j, (column, codes) in enumerate(zip(columns, self._codes, strict=True)):
            if codes is None:
                out[:, at] = (np.asarray(column, dtype=np.float64) - self._mean[j]) / self._scale[j]
                at += 1
                continue
            for i, value in enumerate(column):
                code = codes.get(value)
                if code is not None:
                    out[i, at + code] = 1.0
            at += len(codes)
        return out

    def unseen(self, x: Float32) -> NDArray[np.bool_]:
        """(B, columns) which values of encoded rows x (B, width) are categories that the model has not been built
        with."""
        found: NDArray[np.bool_] = (np.add.reduceat(x, self._starts, axis=1) == 0) & self._categorical
        return found


class TensorEncoder:
    """Encodes (B, *shape) numbers as `(value - mean) / scale` in float32."""

    def __init__(self, spec: TensorInput) -> None:
        self.spec = spec
        self.shape = tuple(spec.shape)

    def encode(self, values: NDArray[Any]) -> Float32:
        """Encodes an array of shape (B, *shape) or (B, prod(shape)), row-major."""
        x = np.asarray(values, dtype=np.float64).reshape(-1, *self.shape)
        return ((x - self.spec.mean) / self.spec.scale).astype(np.float32)
