"""Reading tables and arrays, encoding them, and splitting them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.config import DataConfig
from builder.data import assign_folds, from_arrays, from_frame, prepare, read_file
from model_store.errors import DataError
from model_store.manifest import (
    CategoricalColumn,
    ClassificationTarget,
    NumericColumn,
    RegressionTarget,
    TableInput,
    TensorInput,
)


def options(task: str = "regression", **values: Any) -> DataConfig:
    return DataConfig.model_validate({"target": "y", "task": task, **values})


def frame(rows: int = 40, seed: int = 0, **columns: Any) -> pd.DataFrame:
    """Columns a and y of random numbers, and those given."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"a": rng.normal(size=rows), **columns, "y": rng.normal(size=rows)})


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
        ({"y": np.zeros((30, 2))}, "one row for each entry"),
        ({"x": np.full((30, 2, 2), np.nan)}, "no finite numbers"),
        ({"x": np.full((30, 2, 2), "a")}, "no finite numbers"),
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


# ---- target


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.array([3, 1, 2, 1] * 10), [1, 2, 3]),
        (np.array([2.0, 0.0] * 20), [0, 2]),
        (np.array(["b", "a"] * 20, dtype=object), ["a", "b"]),
        (np.array([True, False] * 20), [0, 1]),
        (np.array([True, False, None, True] * 10, dtype=object), [0, 1]),
        (pd.array([5, 6] * 20, dtype="Int64"), [5, 6]),
        (pd.Categorical(["no", "yes"] * 20), ["no", "yes"]),
    ],
)
def test_class_labels_of_every_kind(labels: Any, classes: list[int | str]) -> None:
    table, config = frame(), options("classification")
    table["y"] = labels
    data = prepare(from_frame(table, config), config, True, 0)
    assert isinstance(data.target, ClassificationTarget)
    assert data.target.classes == classes and [type(c) for c in data.target.classes] == [type(c) for c in classes]
    known = [v for v in table["y"] if not pd.isna(v)]
    assert [classes[i] for i in data.y] == known


def test_a_bool_target_can_be_regressed() -> None:
    table = frame()
    table["y"] = table["a"] > 0
    data = prepare(from_frame(table, options()), options(), True, 0)
    assert isinstance(data.target, RegressionTarget) and len(np.unique(data.y)) == 2


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("regression", ["a", "b"] * 20, "use --task classification"),
        ("regression", [2.5] * 40, "same in every row"),
        ("regression", [1e17] * 40, "same in every row"),
        ("regression", [np.inf, *range(39)], "missing or infinite"),
        ("regression", [1e300, *range(39)], "too large"),
        ("regression", [None] * 25 + [1.0] * 15, "--target"),
        ("classification", [0.5, 1.5] * 20, "use --task regression"),
        ("classification", ["a"] * 40, "only one class"),
        ("classification", list(range(40)), "40 classes"),
        ("classification", [7] + [0, 1, 2] * 13, "of which 7 has 1 row"),
    ],
)
def test_targets_that_do_not_fit_the_task(task: str, values: list[Any], message: str) -> None:
    table, config = frame(), options(task)
    table["y"] = values
    with pytest.raises(DataError, match=message) as caught:
        prepare(from_frame(table, config), config, True, 0)
    assert caught.value.field == "y"


def test_an_unknown_target_lists_the_columns() -> None:
    with pytest.raises(DataError, match="no column 'z'") as caught:
        from_frame(frame(), options(target="z"))
    assert caught.value.field == "--target" and "a, y" in str(caught.value.expected)


def test_a_missing_target_names_the_option() -> None:
    with pytest.raises(DataError, match="--target"):
        from_frame(frame(), options(target=None))


# ---- encoding and splitting


def test_scaling_is_fitted_on_the_training_rows_only() -> None:
    config = options(test_fraction=0.25)
    table = frame(rows=80)
    before = prepare(from_frame(table, config), config, True, 5)
    table.loc[before.test, ["a", "y"]] += 1e6
    after = prepare(from_frame(table, config), config, True, 5)

    assert np.array_equal(before.test, after.test)
    assert before.inputs == after.inputs and before.target == after.target
    assert np.array_equal(before.x[~before.test], after.x[~before.test])
    assert np.allclose([before.x[~before.test].mean(), before.y[~before.test].mean()], 0, atol=1e-5)
    assert np.allclose([before.x[~before.test].std(), before.y[~before.test].std()], 1, atol=1e-5)


def test_without_standardising_numbers_stay_as_they_are() -> None:
    table = frame()
    data = prepare(from_frame(table, options()), options(), False, 0)
    assert np.allclose(data.x[:, 0], table["a"]) and np.allclose(data.y, table["y"])


def test_the_split_follows_the_seed() -> None:
    raw = from_frame(frame(rows=200), options())
    first, again, other = (prepare(raw, options(), True, s).test for s in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@given(
    counts=st.lists(st.integers(4, 80), min_size=2, max_size=5).filter(lambda c: sum(c) >= 25),
    fraction=st.sampled_from([0.0, 0.1, 0.25, 0.5]),
    seed=st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_the_test_part_has_its_size_and_every_class_its_share(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    config = options("classification", test_fraction=fraction)
    table = pd.DataFrame({"a": np.arange(float(len(labels))), "y": labels})
    data = prepare(from_frame(table, config), config, True, seed)
    assert abs(int(data.test.sum()) - fraction * len(labels)) <= 0.5
    for label, count in enumerate(counts):
        assert abs(int(data.test[labels == label].sum()) - fraction * count) < 1 + 1e-9


@given(
    labels=st.lists(st.integers(0, 3), min_size=5, max_size=200), folds=st.integers(2, 5), seed=st.integers(0, 2**31)
)
@settings(max_examples=60, deadline=None)
def test_folds_are_balanced_in_every_stratum(labels: list[int], folds: int, seed: int) -> None:
    strata = np.array(labels)
    fold = assign_folds(strata, folds, seed)
    assert np.ptp(np.bincount(fold, minlength=folds)) <= 1
    for stratum in set(labels):
        assert np.ptp(np.bincount(fold[strata == stratum], minlength=folds)) <= 1
    assert np.array_equal(fold, assign_folds(strata, folds, seed))


ANY_CELL = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=3), st.binary(max_size=2)
)


@given(data=st.data(), task=st.sampled_from(["regression", "classification"]))
@settings(max_examples=60, deadline=None)
def test_any_table_is_encoded_as_finite_numbers_or_refused(data: st.DataObject, task: str) -> None:
    kinds = st.sampled_from([ANY_CELL, st.floats(allow_nan=False), st.sampled_from(["a", "b"]), st.booleans()])
    table = pd.DataFrame(
        {n: pd.Series([data.draw(kind) for _ in range(24)]) for n in ("a", "b", "y") for kind in [data.draw(kinds)]}
    )
    config = options(task)
    try:
        found = prepare(from_frame(table, config), config, True, 0)
    except DataError as e:
        assert e.message.endswith(".") and e.field
        return
    assert np.isfinite(found.x).all() and np.isfinite(found.y).all()
    assert len(found.x) == len(found.y) == len(found.test) >= 20
