"""CSV files: what is text, what is missing, and columns that have no name or no place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from builder.config import DataConfig
from builder.data import RawData, prepare, read_file
from model_store.encoding import category_of
from model_store.errors import DataError
from model_store.manifest import CategoricalColumn, ClassificationTarget, TableInput
from tests.builder.tables import frame, options

ROWS = 40
NOTHINGS = ["None", "NA", "N/A", "null", "nan", "NULL", "NaN"]


def written(folder: Path, head: str, lines: list[str]) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def read(folder: Path, head: str, lines: list[str], **values: Any) -> RawData:
    return read_file(options(file=written(folder, head, lines), **values))


def categories(raw: RawData, config: DataConfig) -> dict[str, list[str]]:
    inputs = prepare(raw, config, True, 0).inputs
    assert isinstance(inputs, TableInput)
    return {c.name: c.categories for c in inputs.columns if isinstance(c, CategoricalColumn)}


# ---- what is missing


@pytest.mark.parametrize("nothing", NOTHINGS)
def test_texts_that_sound_like_nothing_are_texts_among_texts(tmp_path: Path, nothing: str) -> None:
    lines = [f"{[nothing, 'Attached', ''][i % 3]},{i},{[nothing, 'mild'][i % 2]}" for i in range(ROWS)]
    path = written(tmp_path, "garage,a,severity", lines)
    config = DataConfig(file=path, target="severity", task="classification")
    raw = read_file(config)
    assert raw.notes == () and len(raw.y) == ROWS
    assert categories(raw, config) == {"garage": sorted(["", "Attached", nothing])}
    target = prepare(raw, config, True, 0).target
    assert isinstance(target, ClassificationTarget) and set(target.classes) == {"mild", nothing}


@pytest.mark.parametrize("nothing", ["", *NOTHINGS])
def test_among_numbers_and_truth_values_they_are_missing(tmp_path: Path, nothing: str) -> None:
    lines = [f"{nothing if i == 3 else i / 2},{nothing if i == 5 else i % 2 == 0},{i + 0.5}" for i in range(ROWS)]
    raw = read(tmp_path, "number,truth,y", lines)
    assert raw.columns["number"].dtype == raw.columns["truth"].dtype == np.float64
    assert len(raw.y) == ROWS - 2 and "2 of 40 rows were left out" in raw.notes[0]


def test_a_target_of_numbers_keeps_them_beside_missing_ones(tmp_path: Path) -> None:
    raw = read(tmp_path, "a,y", [f"{i},{'NA' if i == 7 else i / 4}" for i in range(ROWS)])
    assert raw.y.dtype == np.float64 and len(raw.y) == ROWS - 1


def test_only_the_empty_cell_of_a_text_target_is_missing(tmp_path: Path) -> None:
    lines = [f"{i},{['NA', 'EU', ''][i % 3]}" for i in range(ROWS)]
    raw = read(tmp_path, "a,y", lines, task="classification")
    assert set(raw.y) == {"NA", "EU"} and "13 of 40" in raw.notes[0]


def test_a_column_of_nothing_but_such_texts_is_one_category(tmp_path: Path) -> None:
    raw = read(tmp_path, "a,b,y", [f"{i},None,{i}" for i in range(ROWS)])
    assert set(raw.columns["b"]) == {"None"} and raw.notes == ()


# ---- numbers that are categories


def test_categories_keep_their_leading_zeros(tmp_path: Path) -> None:
    config = options(categorical=["zip"])
    raw = read(
        tmp_path, "zip,y", [f"{['01234', '1234', '99999', ''][i % 4]},{i}" for i in range(ROWS)], categorical=["zip"]
    )
    found = categories(raw, config)["zip"]
    assert found == ["", "01234", "1234", "99999"]
    assert category_of(1234) in found and category_of(1234.0) in found and category_of("01234") in found


def test_whole_numbers_with_a_point_are_the_categories_of_a_frame(tmp_path: Path) -> None:
    codes = pd.Series([1.0, 2.0, 10.0, 2.5] * 10)
    codes[0] = np.nan
    table = frame(code=codes)
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    config = options(categorical=["code"])
    csv, parquet = (read_file(options(file=tmp_path / name, categorical=["code"])) for name in ("t.csv", "t.parquet"))
    assert categories(csv, config) == categories(parquet, config) == {"code": ["", "1", "10", "2", "2.5"]}


def test_truth_values_as_categories_have_the_same_names_in_every_file(tmp_path: Path) -> None:
    table = frame(works=[True, False] * 20)
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    config = options(categorical=["works"])
    csv, parquet = (read_file(options(file=tmp_path / name, categorical=["works"])) for name in ("t.csv", "t.parquet"))
    assert categories(csv, config) == categories(parquet, config) == {"works": ["False", "True"]}
    assert category_of(True) == "True"


# ---- columns without a name, and rows without columns


@pytest.mark.parametrize("first", ["{i}", "row {i}", "{i},more"])
def test_rows_longer_than_the_header_are_refused(tmp_path: Path, first: str) -> None:
    lines = [first.format(i=i) + f",{i % 3},{i * 2},{i % 7}" for i in range(ROWS)]
    with pytest.raises(DataError, match="hold more values than its header names columns") as caught:
        read(tmp_path, "a,b,y", lines)
    assert caught.value.field == "--data" and caught.value.expected == "3 values a row"


def test_a_single_longer_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 4"):
        read(tmp_path, "a,y", [f"{i},{i}" + (",9" if i == 2 else "") for i in range(ROWS)])


def test_a_comma_at_the_end_of_every_row_shifts_nothing(tmp_path: Path) -> None:
    raw = read(tmp_path, "a,y", [f"{i},{i + 0.5}," for i in range(ROWS)])
    assert list(raw.columns) == ["a"] and list(raw.columns["a"][:3]) == [0, 1, 2] and raw.y[1] == 1.5


def test_a_comma_at_the_end_of_the_header_too_makes_no_column(tmp_path: Path) -> None:
    raw = read(tmp_path, "a,y,", [f"{i},{i + 0.5}," for i in range(ROWS)])
    assert list(raw.columns) == ["a"] and raw.notes == ("Column 3 has no name and is empty: it was left out.",)


@pytest.mark.parametrize("shuffled", [False, True])
def test_an_index_that_pandas_saved_is_left_out(tmp_path: Path, shuffled: bool) -> None:
    table = frame().sample(frac=1, random_state=0) if shuffled else frame()
    table.to_csv(tmp_path / "t.csv")
    raw = read_file(options(file=tmp_path / "t.csv"))
    assert list(raw.columns) == ["a"] and "Column 1 has no name and tells rows apart" in raw.notes[0]
    pd.read_csv(tmp_path / "t.csv").to_csv(tmp_path / "t.csv")
    again = read_file(options(file=tmp_path / "t.csv"))
    assert list(again.columns) == ["a"] and len(again.notes) == 2


def test_nameless_columns_that_say_something_stay_and_are_told(tmp_path: Path) -> None:
    raw = read(tmp_path, ",a,,y", [f"{i % 5},{i},{i / 3},{i}" for i in range(ROWS)])
    assert list(raw.columns) == ["Unnamed: 0", "a", "Unnamed: 2"]
    assert len(raw.notes) == 2 and "call it 'Unnamed: 0'" in raw.notes[0]


def test_what_is_asked_for_by_pandas_name_is_found(tmp_path: Path) -> None:
    lines = [f"{i},{i / 2},{i}" for i in range(ROWS)]
    assert list(read(tmp_path, ",a,y", lines, drop=["Unnamed: 0"]).columns) == ["a"]
    assert list(read(tmp_path, ",a,y", lines, target="Unnamed: 0").columns) == ["a", "y"]


def test_a_column_may_be_called_like_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'NA' appears twice"):
        read(tmp_path, "NA,NA,y", [f"{i},{i},{i}" for i in range(ROWS)])


def test_a_file_as_long_as_several_parts_is_read_as_one(tmp_path: Path) -> None:
    lines = [f"{'x' if i == 299_999 else i % 7},{i % 9}" for i in range(300_000)]
    raw = read(tmp_path, "a,y", lines)
    assert set(raw.columns["a"]) == {*map(str, range(7)), "x"}
