"""Targets, encoding and splitting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.data import assign_folds, from_frame, prepare
from model_store.encoding import TableEncoder
from model_store.errors import DataError
from model_store.manifest import CategoricalColumn, ClassificationTarget, RegressionTarget, TableInput
from tests.builder.tables import frame, options

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


def test_the_logarithm_of_a_target() -> None:
    table, config = frame(), options(log_target=True)
    table["y"] = np.exp(table["a"])
    data = prepare(from_frame(table, config), config, True, 0)
    assert isinstance(data.target, RegressionTarget) and data.target.log
    np.testing.assert_allclose(data.y * data.target.scale + data.target.mean, table["a"], atol=1e-5)


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("regression", [0.0, 3.0, -1.0, *range(1, 38)], "2 of 40 rows .* not above zero"),
        ("regression", [2.5] * 40, "same in every training row"),
        ("classification", [0, 1] * 20, "A class has no logarithm"),
    ],
)
def test_targets_without_a_logarithm_are_refused(task: str, values: list[Any], message: str) -> None:
    table, config = frame(), options(task, log_target=True)
    table["y"] = values
    with pytest.raises(DataError, match=message):
        prepare(from_frame(table, config), config, True, 0)


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("regression", ["a", "b"] * 20, "use --task classification"),
        ("regression", [2.5] * 40, "same in every training row"),
        ("regression", [1e17] * 40, "same in every training row"),
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


@pytest.mark.parametrize(
    ("kinds", "message"), [(["a", "b"] * 10, "too few rows"), (["a"] * 2 + ["b"] * 58, "every row of the class 'a'")]
)
def test_a_test_part_that_leaves_too_little_is_refused(kinds: list[str], message: str) -> None:
    config = options("classification", test_fraction=0.75)
    table = frame(rows=len(kinds))
    table["y"] = kinds
    with pytest.raises(DataError, match=f"{message}.*lower test_fraction"):
        prepare(from_frame(table, config), config, True, 0)


def test_rows_that_are_equal_by_chance_are_no_copies() -> None:
    rng = np.random.default_rng(0)
    colours = pd.DataFrame({"a": rng.choice(["red", "blue"], 80), "y": rng.integers(0, 3, 80)})
    copies = pd.concat([frame(rows=30)] * 2, ignore_index=True)
    chance, copied = (prepare(from_frame(t, options()), options(), True, 0).notes for t in (colours, copies))
    assert chance == ()
    assert len(copied) == 1 and copied[0].startswith("30 of 60 rows are copies")


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


@pytest.mark.parametrize("standardize", [True, False])
def test_categories_are_those_of_the_training_rows(standardize: bool) -> None:
    config = options(test_fraction=0.25)
    table = frame(rows=80)
    table["town"] = "Bonn"
    test = prepare(from_frame(table, config), config, True, 5).test
    table.loc[test, "town"] = "Ulm"
    data = prepare(from_frame(table, config), config, standardize, 5)
    assert isinstance(data.inputs, TableInput)
    (town,) = [c for c in data.inputs.columns if isinstance(c, CategoricalColumn)]
    assert town.categories == ["Bonn"]
    np.testing.assert_array_equal(TableEncoder(data.inputs).unseen(data.x).any(axis=1), test)
    trained_elsewhere = prepare(from_frame(table, config), config, standardize, 5, given_weights=True)
    assert isinstance(trained_elsewhere.inputs, TableInput)
    assert not TableEncoder(trained_elsewhere.inputs).unseen(trained_elsewhere.x).any()


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
