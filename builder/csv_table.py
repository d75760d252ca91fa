"""CSV files as tables: which columns are numbers and which are text, and what stands for nothing in each."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from model_store.errors import DataError

_NAMELESS = r"Unnamed: \d+(\.\d+)?"
"""What pandas calls a column without a name."""
_WHOLE = r"(-?(?:0|[1-9]\d*))\.0+"


def read_csv(path: Path, categorical: Collection[str] = ()) -> pd.DataFrame:
    """Numbers and truth values as such, in which NA, nan, None and the like are missing, and all else as the texts that
    the file holds, of which only the empty one is missing.

    Args:
        categorical: columns that are read as text whatever they hold. Whole numbers lose a point and zeros behind it,
            as `model_store.encoding.category_of` has them.

    Raises:
        DataError: a name stands twice, no comma separates the columns, or rows are longer than the header.
        ValueError, OSError: pandas cannot read it.
    """
    header = _parsed(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0].tolist()
    # pandas would rename the second column of a name, and a copy of the target would predict the target.
    refuse_duplicates([name for name in header if name])
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise DataError(
            "The file's columns are not separated by commas; write it with commas, or as Parquet.",
            field="--data",
            expected="a CSV file with commas, in UTF-8",
            got=header[0][:80],
        )
    try:
        # Without index_col pandas takes what is too much for an index, and all columns for their right neighbours.
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
            table = _parsed(path, index_col=False)
    except pd.errors.ParserWarning as e:
        raise DataError(
            f"Rows of {path} hold more values than its header names columns; give every column a name, and put texts "
            "that hold commas in quotes.",
            field="--data",
            expected=f"{len(header)} values a row",
            got="more",
        ) from e
    at = [i for i, name in enumerate(table.columns) if name in categorical or not _numbers(table.iloc[:, i])]
    if not at:
        return table
    texts = _parsed(path, index_col=False, usecols=at, dtype=str, keep_default_na=False, na_values=[""])
    for i, name in zip(at, texts.columns, strict=True):
        column = texts[name]
        if name in categorical:
            column = column.str.replace(f"^{_WHOLE}$", r"\1", regex=True)
        if name in categorical or column.notna().any():
            table.isetitem(i, column)
    return table


def without_nameless(table: pd.DataFrame, asked: Collection[str]) -> tuple[pd.DataFrame, list[str]]:
    """The table without columns that have no name and say nothing: empty ones, as commas at the ends of all rows make,
    and row labels, as pandas saves its index. With a note of each, and of those that stay under pandas' name.

    Args:
        asked: names that the user has written down, which stay.
    """
    notes: list[str] = []
    left_out: list[str] = []
    for i, name in enumerate(table.columns):
        if name in asked or not re.fullmatch(_NAMELESS, name):
            continue
        column = table.iloc[:, i]
        label = pd.api.types.is_integer_dtype(column.dtype) or not pd.api.types.is_numeric_dtype(column.dtype)
        if column.isna().all():
            notes.append(f"Column {i + 1} has no name and is empty: it was left out.")
        elif i == len(left_out) and label and column.is_unique:
            notes.append(f"Column {i + 1} has no name and tells rows apart: it was left out. Name it to learn from it.")
        else:
            notes.append(f"Column {i + 1} has no name: requests have to call it {name!r}. Give it one.")
            continue
        left_out.append(name)
    return table.drop(columns=left_out), notes


def refuse_duplicates(names: Sequence[str], what: str = "column", field: str = "--data") -> None:
    """Raises DataError where a name stands twice."""
    for i, name in enumerate(names):
        if name in names[:i]:
            raise DataError(f"The {what} {name!r} appears twice; rename or remove one of them.", field=field, got=name)


def holds_truth_values(column: pd.Series) -> bool:
    """Whether a column is of False and True, also where missing values made it one of objects."""
    kind = pd.api.types.infer_dtype(column, skipna=True)
    return bool(pd.api.types.is_bool_dtype(column.dtype) or kind == "boolean")


def _parsed(path: Path, **options: Any) -> pd.DataFrame:
    # In parts, a long column could be numbers in some and text in others.
    return pd.read_csv(path, skipinitialspace=True, low_memory=False, **options)


def _numbers(column: pd.Series) -> bool:
    """Whether a column holds numbers or truth values, and not nothing but missing ones."""
    numeric = pd.api.types.is_numeric_dtype(column.dtype) or holds_truth_values(column)
    return numeric and bool(column.notna().any())
