"""CIFAR-10 for the experiments: part of the subset in `cifar10_subset.npz`, and a residual net for one core.

The file holds the images as one lossless WebP picture each for `x_train_webp` and `x_test_webp`, 50 images of 32 x 32
a row, and the labels `y_train` and `y_test`.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.data import folder
from benchmarks.quality.problem import Problem
from builder.config import make_config
from builder.data import from_arrays, prepare
from builder.network import FunctionalNetwork
from model_store.encoding import TensorEncoder
from model_store.errors import DataError
from model_store.manifest import TensorInput

NAME = "cifar10_subset"
_SIDE = 32


class SmallResidual(nn.Module):
    """Patches of 4 x 4 pixels and one residual block with group normalisation; (B, 3, 32, 32) -> (B, 10)."""

    def __init__(self, width: int = 12, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.norm1 = nn.GroupNorm(3, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(3, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(h))))))
        out: Tensor = self.head(torch.relu(h).mean((2, 3)))
        return out


def image_problem(split: int, preset: str, train_rows: int, test_rows: int, **stages: dict[str, object]) -> Problem:
    """So many training and test images, evenly taken from the file's; `split` is the seed.

    Raises:
        DataError: the file is missing or lacks an array.
    """
    x, y = _images("train", train_rows)
    x_test, y_test = _images("test", test_rows)
    config = make_config(
        {
            "name": f"{NAME}-{split}",
            "preset": preset,
            "seed": split,
            "device": "cpu",
            **stages,
            "data": {"task": "classification", "test_fraction": 0.0},
        }
    )
    dataset = prepare(from_arrays(x, y, config.data), config.data, True, config.seed)
    assert isinstance(dataset.inputs, TensorInput)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = FunctionalNetwork(SmallResidual())
    return Problem(
        config=config,
        dataset=dataset,
        x=torch.from_numpy(dataset.x),
        y=torch.from_numpy(dataset.y),
        x_test=torch.from_numpy(TensorEncoder(dataset.inputs).encode(x_test)),
        y_test=torch.from_numpy(y_test),
        scale=1.0,
        factory=SmallResidual,
        network=network,
    )


def _images(part: str, count: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Images (count, 3, 32, 32) in [0, 1] and labels."""
    path = folder() / f"{NAME}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            picture, y = file[f"x_{part}_webp"], file[f"y_{part}"].astype(np.int64)
    except (OSError, KeyError) as e:
        raise DataError(
            f"{path} cannot be read ({e}); save a part of CIFAR-10 there in the form that {__name__} gives, and set "
            "FIBERWALK_DATA to its folder.",
            field="FIBERWALK_DATA",
            expected=f"a folder with {NAME}.npz",
        ) from e
    with Image.open(io.BytesIO(picture.tobytes())) as image:
        pixels = np.asarray(image.convert("RGB"))
    rows, columns = pixels.shape[0] // _SIDE, pixels.shape[1] // _SIDE
    tiles = pixels.reshape(rows, _SIDE, columns, _SIDE, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, _SIDE, _SIDE)
    some = np.linspace(0, len(y) - 1, min(count, len(y))).round().astype(int)
    return tiles[some] / 255.0, y[some]
