"""Reading files, tables and arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from builder.config import DataConfig
from builder.data import from_arrays, from_frame, prepare, read_file
from model_store.errors import DataError
from model_store.manifest import (
    CategoricalColumn,
    ClassificationTarget,
    NumericColumn,
    RegressionTarget,
    TableInput,
    TensorInput,
)
from tests.builder.tables import frame, options


def column(table: pd.DataFrame, config: DataConfig, name: str) -> NumericColumn | CategoricalColumn:
    inputs = prepare(from_frame(table, config), config, True, 0).inputs
    assert isinstance(inputs, TableInput)
    return {c.name: c for c in inputs.columns}[name]


# ---- files


def test_csv_with_quoted_text_bools_missing_values_and_units(tmp_path: Path) -> None:
    lines = ['"length, outer",colour,works,y']
    for i in range(30):
        colour = ['"red, dark"', '"say ""blue"""', ""][i % 3]
        lines.append(f"{'' if i == 7 else i * 0.5}, {colour},{['True', 'False'][i % 2]},{i + 0.25}")
    path = tmp_path / "things.csv"
    path.write_text("\n".join(lines) + "\n")
    config = options(file=path, units={"length, outer": "mm", "y": "kg"})

    raw = read_file(config)

    assert list(raw.columns) == ["length, outer", "colour", "works"]
    assert len(raw.y) == 29
    assert "1 of 30 rows were left out" in raw.notes[0]
    assert list(raw.columns["works"][:3]) == [1.0, 0.0, 1.0]
    data = prepare(raw, config, True, 0)
    assert isinstance(data.inputs, TableInput) and isinstance(data.target, RegressionTarget)
    length, colour, works = data.inputs.columns
    assert isinstance(colour, CategoricalColumn) and colour.categories == ["", "red, dark", 'say "blue"']
    assert isinstance(works, NumericColumn)
    assert (length.unit, data.target.unit) == ("mm", "kg")
    assert data.x.shape == (29, 5)


def test_csv_and_parquet_of_one_table_are_the_same_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    table = frame(colour=rng.choice(["red", "blue"], 40), count=rng.integers(0, 9, 40), works=rng.random(40) < 0.5)
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")

    csv, parquet = (read_file(options(file=tmp_path / n)) for n in ("t.csv", "t.parquet"))

    assert csv.fingerprint == parquet.fingerprint
    assert np.array_equal(prepare(csv, options(), True, 3).x, prepare(parquet, options(), True, 3).x)


def test_fingerprint_follows_every_value() -> None:
    table = frame()
    changed = table.copy()
    changed.loc[5, "a"] += 1e-9
    renamed = table.rename(columns={"a": "b"})
    prints = {from_frame(t, options()).fingerprint for t in (table, changed, renamed)}
    assert len(prints) == 3
    assert from_frame(table.copy(), options()).fingerprint in prints


def test_npz_with_names_units_and_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "d.npz",
        x=rng.normal(size=(60, 2)),
        y=np.arange(60).reshape(-1, 1) % 3,
        feature_names=np.array(["width", "height"]),
        feature_units=np.array(["cm", "m"]),
        target_name="kind",
        class_names=np.array(["small", "middle", "large"]),
    )
    config = DataConfig(file=tmp_path / "d.npz", task="classification")

    data = prepare(read_file(config), config, True, 0)

    assert isinstance(data.inputs, TableInput)
    assert [(c.name, c.unit) for c in data.inputs.columns] == [("width", "cm"), ("height", "m")]
    assert data.target == ClassificationTarget(name="kind", classes=["small", "middle", "large"])
    assert data.outputs == 3 and set(data.y[:3]) == {0, 1, 2}


def test_npz_images_become_one_tensor_input(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, size=(50, 1, 4, 4)).astype(np.uint8)
    np.savez(tmp_path / "i.npz", x=images, y=np.arange(50) % 2)
    config = DataConfig(file=tmp_path / "i.npz", task="classification")

    data = prepare(read_file(config), config, True, 0)

    assert isinstance(data.inputs, TensorInput) and data.inputs.shape == [1, 4, 4]
    assert data.x.shape == images.shape and data.x.dtype == np.float32
    assert abs(float(data.x[~data.test].mean())) < 1e-3 and abs(float(data.x[~data.test].std()) - 1) < 1e-3


@pytest.mark.parametrize("shape", [(2,), (2, 3)])
def test_truth_values_of_arrays_are_0_and_1(tmp_path: Path, shape: tuple[int, ...]) -> None:
    truth = np.random.default_rng(0).random((40, *shape)) < 0.5
    np.savez(tmp_path / "b.npz", x=truth, y=truth.reshape(40, -1)[:, 0])
    config = DataConfig(file=tmp_path / "b.npz", task="classification")
    raw = read_file(config)
    found = raw.tensors if raw.tensors is not None else np.stack([raw.columns["x0"], raw.columns["x1"]], axis=1)
    assert np.array_equal(found, truth.astype(int))
    assert prepare(raw, config, True, 0).target == ClassificationTarget(name="y", classes=[0, 1])


def test_a_parquet_index_with_a_name_is_a_column(tmp_path: Path) -> None:
    table = frame(b=np.arange(40.0))
    table.set_index("b").to_parquet(tmp_path / "named.parquet")
    table.sample(frac=1, random_state=0).to_parquet(tmp_path / "nameless.parquet")
    named, nameless = (read_file(options(file=tmp_path / f"{n}.parquet")) for n in ("named", "nameless"))
    assert list(named.columns) == ["b", "a"] and list(nameless.columns) == ["a", "b"]
    with pytest.raises(DataError, match="cannot be read"):
        table.rename_axis("a").to_parquet(tmp_path / "twice.parquet")
        read_file(options(file=tmp_path / "twice.parquet"))


def test_npz_of_pickles_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", x=np.array([[object()]] * 30), y=np.zeros(30))
    with pytest.raises(DataError, match="cannot be read"):
        read_file(options(file=tmp_path / "p.npz"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "There is no file"),
        ("empty.csv", b"", "cannot be read"),
        ("broken.csv", b'a,y\n1,2\n3,4,5\n"', "cannot be read"),
        ("binary.csv", b"a,y\n\xff\xfe\x00\n", "cannot be read"),
        ("text.parquet", b"a,y\n1,2\n", "cannot be read"),
        ("text.npz", b"a,y\n1,2\n", "cannot be read"),
        ("twice.csv", b"a,y,y\n" + b"1,2,2\n" * 30, "'y' appears twice"),
        ("head.csv", b"a,y\n", "too few rows"),
    ],
)
def test_unreadable_files_say_so(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_file(options(file=tmp_path / name))
    assert caught.value.field == "--data"


def test_npz_without_its_arrays_names_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", features=np.zeros((30, 2)))
    with pytest.raises(DataError, match="needs the arrays x and y") as caught:
        read_file(options(file=tmp_path / "d.npz"))
    assert caught.value.got == "features"


def test_no_file_at_all_names_the_option() -> None:
    with pytest.raises(DataError, match="--data FILE"):
        read_file(options())


# ---- columns


def test_bools_are_numbers_also_where_some_are_missing() -> None:
    works = np.array([True, False] * 20, dtype=object)
    works[3] = None
    raw = from_frame(frame(works=works), options())
    assert set(raw.columns["works"]) == {0.0, 1.0} and len(raw.y) == 39


def test_nullable_columns_are_read_like_plain_ones() -> None:
    numbers = pd.array([1, None, *range(38)], dtype="Int64")
    flags = pd.array([True, False] * 20, dtype="boolean")
    raw = from_frame(frame(n=numbers, f=flags), options())
    assert raw.columns["n"].dtype == np.float64 and len(raw.y) == 39
    assert set(raw.columns["f"]) == {0.0, 1.0}


def test_pandas_categories_are_categories() -> None:
    found = column(frame(c=pd.Categorical(["u", "v"] * 20, categories=["v", "u", "never"])), options(), "c")
    assert isinstance(found, CategoricalColumn) and found.categories == ["u", "v"]


def test_numbers_as_categories_keep_their_whole_numbers_beside_missing_ones() -> None:
    codes = pd.Series([1, 2] * 20, dtype="float64")
    codes[0] = np.nan
    found = column(frame(code=codes), options(categorical=["code"]), "code")
    assert isinstance(found, CategoricalColumn) and found.categories == ["", "1", "2"]


def test_too_many_texts_are_refused_with_the_way_out() -> None:
    table = frame(rows=200, name=[f"person {i}" for i in range(200)])
    with pytest.raises(DataError, match="--drop name") as caught:
        from_frame(table, options())
    assert caught.value.got == "200" and "100" in str(caught.value.expected)
    assert list(from_frame(table, options(drop=["name"])).columns) == ["a"]
    assert "name" in from_frame(table, options(max_categories=200)).columns


def test_constant_columns_are_centred_and_harmless() -> None:
    config = options()
    data = prepare(from_frame(frame(c=np.full(40, 0.1)), config), config, True, 0)
    assert np.allclose(data.x[:, 1], 0, atol=1e-6) and np.isfinite(data.x).all()


def test_columns_of_tiny_numbers_are_not_taken_for_constant() -> None:
    config = options()
    table = frame(c=np.random.default_rng(2).normal(size=40) * 1e-20)
    table["y"] *= 1e-15
    data = prepare(from_frame(table, config), config, True, 0)
    assert abs(float(data.x[~data.test, 1].std()) - 1) < 1e-4
    assert abs(float(data.y[~data.test].std()) - 1) < 1e-4


def test_weird_column_names_pass_through() -> None:
    names = ["", " ", "weights.0", "y\n", "é/π", "a.b", "1"]
    table = frame(**{n: np.arange(40.0) for n in names})
    table[7] = 1.0
    raw = from_frame(table, options())
    assert list(raw.columns) == ["a", *names, "7"]


def test_infinite_numbers_are_left_out_and_said() -> None:
    values = np.arange(40.0)
    values[:3] = [np.inf, -np.inf, np.nan]
    raw = from_frame(frame(b=values), options())
    assert len(raw.y) == 37 and "3 of 40" in raw.notes[0]


def test_a_mostly_empty_column_is_named() -> None:
    values = np.full(40, np.nan)
    values[:10] = 1.0
    with pytest.raises(DataError, match="--drop holes") as caught:
        from_frame(frame(full=np.arange(40.0), holes=values), options())
    assert caught.value.field == "holes"


def test_a_column_of_infinities_is_named() -> None:
    with pytest.raises(DataError, match="--drop endless"):
        from_frame(frame(full=np.arange(40.0), endless=np.full(40, np.inf)), options())


def test_numbers_beyond_float32_are_refused_by_name() -> None:
    config = options()
    raw = from_frame(frame(big=np.geomspace(1, 1e200, 40)), config)
    with pytest.raises(DataError, match="'big' holds numbers too large"):
        prepare(raw, config, True, 0)


@pytest.mark.parametrize("option", [{"drop": ["nothing"]}, {"categorical": ["nothing"]}])
def test_options_that_name_no_column_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no column 'nothing'"):
        from_frame(frame(), options(**option))


def test_a_table_needs_a_column_beside_the_target() -> None:
    with pytest.raises(DataError, match="no column to predict from"):
        from_frame(frame(), options(drop=["a"]))


def test_two_columns_of_one_name_are_refused() -> None:
    table = pd.concat([frame(), frame()[["a"]]], axis=1)
    with pytest.raises(DataError, match="'a' appears twice"):
        from_frame(table, options())


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match="too few rows") as caught:
        from_frame(frame(rows=19), options())
    assert caught.value.expected == "at least 20" and caught.value.got == "19"


# ---- arrays


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros(30)}, "one row for each entry"),
        ({"y": np.zeros(29)}, "one row for each entry"),
        ({"y": np.zeros((30, 2))}, r"one row for each entry .* a model of its own"),
        ({"x": np.full((30, 2, 2), np.nan)}, "no finite numbers"),
        ({"x": np.full((30, 2, 2), "a")}, "no finite numbers"),
        ({"x": np.full((30, 2, 2), 1 + 1j)}, "'x' holds complex numbers"),
        ({"x": np.full((30, 2), 1 + 1j)}, "'x0' holds complex numbers"),
        ({"y": np.full(30, 1 + 1j)}, "'y' holds complex numbers"),
        ({"x": np.ones((30, 2, 2)), "y": np.full(30, 1 + 1j)}, "'y' holds complex numbers"),
        ({"feature_names": ["only"]}, "feature_names needs one entry for each column"),
        ({"feature_names": ["a", "b", "c"]}, "feature_names needs one entry for each column"),
        ({"feature_names": ["a", "a"]}, "'a' appears twice"),
        ({"feature_names": ["a", "y"]}, "'y' appears twice"),
        ({"feature_units": ["cm"]}, "feature_units needs one entry for each column"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {"x": rng.normal(size=(30, 2)), "y": rng.normal(size=30), **change}
    with pytest.raises(DataError, match=message):
        from_arrays(config=DataConfig(task="regression"), **values)


@pytest.mark.parametrize(
    ("names", "message"), [(["u"], "one entry for each class"), (["u", "u"], "class 'u' appears twice")]
)
def test_class_names_that_do_not_fit_are_refused(names: list[str], message: str) -> None:
    config = DataConfig(task="classification")
    raw = from_arrays(np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 2, config, class_names=names)
    with pytest.raises(DataError, match=message):
        prepare(raw, config, True, 0)


def noted(values: list[Any], categorical: list[str] | None = None) -> str:
    frame = pd.DataFrame({"a": np.arange(40.0), "when": values, "y": np.arange(40.0)})
    options = DataConfig(target="y", task="regression", categorical=categorical or [])
    return " ".join(from_frame(frame, options).notes)


def test_dates_and_numbers_with_a_text_among_them_are_told() -> None:
    assert "holds dates" in noted([f"2024-01-{1 + i % 28:02d}" for i in range(40)])
    assert "holds dates" in noted(list(pd.date_range("2024-01-01", periods=40)))
    numbers = [str(i) for i in range(40)]
    assert "as it holds '?' beside numbers" in noted([*numbers[:-1], "?"])
    assert noted(numbers, categorical=["when"]) == noted(["red", "blue"] * 20) == ""


def test_numbers_with_commas_are_told() -> None:
    assert "such as '0,0'; write them with a decimal point" in noted(
        [f"{i / 10:.1f}".replace(".", ",") for i in range(40)]
    )
    assert "none between thousands" in noted([f"{i * 300:,}" for i in range(40)])
    assert noted(["1,5", "2,5"] * 20) == ""
    assert noted([f"{i},{'ab'[i % 2]}" for i in range(40)]) == ""
    assert "as it holds '?' beside" in noted([*map(str, range(37)), "NA", "None", "?"])
    with pytest.raises(DataError, match="400 different texts; it holds numbers with commas"):
        from_frame(frame(rows=400, a=[f"{i},5" for i in range(400)]), options())
    config = options()
    with pytest.raises(DataError, match="regression cannot predict; it holds numbers with commas"):
        prepare(from_frame(frame().assign(y=[f"{i},5" for i in range(40)]), config), config, True, 0)


def test_columns_that_no_comma_separates_are_told(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("x;y\n" + "1;2\n" * 40)
    with pytest.raises(DataError, match="not separated by commas"):
        read_file(DataConfig(file=tmp_path / "table.csv", target="y", task="regression"))
