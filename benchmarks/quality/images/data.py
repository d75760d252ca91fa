"""Image sets with the sets that are out of distribution to them.

Read from the folder FIBERWALK_DATA: `.npz` with `x_train`, `x_test` (n, height, width) uint8 and `y_train`, `y_test`,
as torchvision has them, or with a channel (n, channels, height, width), or, for colour, `x_train_webp`, `x_test_webp`:
the bytes of one lossless WebP picture with 50 images of 32 x 32 a row.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from benchmarks.data import folder
from benchmarks.networks import lenet5, resnet18, resnet20
from model_store.errors import DataError

Array = NDArray[Any]

_SIDE = 32


@dataclass(frozen=True)
class Source:
    """An image set's file, network and foreign sets, by file name."""

    file: str
    title: str
    network: Callable[[], nn.Module]
    foreign: dict[str, str]


_FASHION: Final = Source(
    "fashion_mnist",
    "FashionMNIST, LeNet-5",
    lenet5,
    {"mnist": "mnist_20k", "kmnist": "kmnist_test", "notmnist": "notmnist_2k"},
)
SOURCES: Final = {
    "fashion_mnist": _FASHION,
    "fashion_mnist_whole": replace(_FASHION, title="FashionMNIST, whole, LeNet-5"),
    "mnist": Source(
        "mnist_20k",
        "MNIST (20,000 images), LeNet-5",
        lenet5,
        {"fashion_mnist": "fashion_mnist", "kmnist": "kmnist_test", "notmnist": "notmnist_2k"},
    ),
    "cifar10": Source("cifar10_subset", "CIFAR-10 (10,000 images), ResNet-20", resnet20, {"cifar100": "cifar100_ood"}),
    "cifar10_whole": Source("cifar10", "CIFAR-10, whole, ResNet-18", resnet18, {"cifar100": "cifar100_ood"}),
}
FOREIGN_IMAGES: Final = {
    "mnist_20k": 10_000,
    "kmnist_test": 10_000,
    "notmnist_2k": 2_000,
    "fashion_mnist": 10_000,
    "cifar100_ood": 500,
}
"""Test images in the files of foreign sets."""


@dataclass(frozen=True)
class ImageSet:
    """Images (n, channels, height, width) uint8 with their classes (n,), and foreign images by name."""

    source: Source
    x: Array
    y: Array
    x_test: Array
    y_test: Array
    foreign: dict[str, Array]


def read_images(name: str, rows: int | None = None, test_rows: int | None = None) -> ImageSet:
    """A set, or `rows` of its training and `test_rows` of its test images, the first of each class, as many of each.

    Of each foreign set the first `test_rows` are taken.

    Raises:
        DataError: there is no such set, or a file is missing.
    """
    if name not in SOURCES:
        raise DataError(
            f"There is no image set {name!r}.", field="--sets", expected="one of: " + ", ".join(SOURCES), got=name
        )
    source = SOURCES[name]
    own = read_arrays(source.file, "x_train", "y_train", "x_test", "y_test")
    train, test = _first_of_each(own["y_train"], rows), _first_of_each(own["y_test"], test_rows)
    foreign = {key: read_arrays(file, "x_test")["x_test"][:test_rows] for key, file in source.foreign.items()}
    return ImageSet(
        source,
        own["x_train"][train],
        own["y_train"][train].astype(np.int64),
        own["x_test"][test],
        own["y_test"][test].astype(np.int64),
        foreign,
    )


def _first_of_each(y: Array, rows: int | None) -> Array:
    """Places of the first rows in all, of each class as many, in their order."""
    if rows is None:
        return np.arange(len(y))
    classes = np.unique(y)
    each = [np.flatnonzero(y == c)[: max(1, rows // len(classes))] for c in classes]
    return np.sort(np.concatenate(each))


def read_arrays(file: str, *names: str) -> dict[str, Array]:
    """Arrays of a file by name, images as (n, channels, height, width) uint8.

    Raises:
        DataError: the file is missing or lacks an array.
    """
    path = folder() / f"{file}.npz"
    if not path.is_file():
        raise DataError(
            f"There is no {path}. Get the set by its public name, save it in the form that benchmarks/quality/images/"
            "data.py gives, and set FIBERWALK_DATA to its folder.",
            field="FIBERWALK_DATA",
            expected=f"a folder with {file}.npz",
        )
    with np.load(path, allow_pickle=False) as z:
        lacking = [name for name in names if name not in z and f"{name}_webp" not in z]
        if lacking:
            raise DataError(
                f"{path} lacks {', '.join(lacking)}; write it anew in the form that benchmarks/quality/images/data.py "
                "gives.",
                field="FIBERWALK_DATA",
                expected=", ".join(names),
            )
        return {name: _images(z[f"{name}_webp"]) if f"{name}_webp" in z else _with_channel(z[name]) for name in names}


def _with_channel(values: Array) -> Array:
    return values[:, None] if values.ndim == 3 else values


def _images(webp: Array) -> Array:
    """(n, 3, 32, 32) from the bytes of one picture of them all."""
    pixels = np.asarray(Image.open(io.BytesIO(webp.tobytes())).convert("RGB"))
    tiles = pixels.reshape(len(pixels) // _SIDE, _SIDE, -1, _SIDE, 3)
    return np.ascontiguousarray(tiles.transpose(0, 2, 4, 1, 3).reshape(-1, 3, _SIDE, _SIDE))
