"""CIFAR-10 for the experiments: part of the subset in `cifar10_subset.npz`, and a residual net for one core."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.quality.images.data import Array, read_arrays
from benchmarks.quality.images.problem import image_problem
from benchmarks.quality.problem import Problem
from builder.config import make_config

NAME = "cifar10_subset"


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


def small_problem(split: int, preset: str, train_rows: int, test_rows: int, **stages: dict[str, object]) -> Problem:
    """So many training and test images, evenly taken from the file's; `split` is the seed.

    Raises:
        DataError: the file is missing or lacks an array.
    """
    own = read_arrays(NAME, "x_train", "y_train", "x_test", "y_test")
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
    (x, y), (x_test, y_test) = _some(own, "train", train_rows), _some(own, "test", test_rows)
    return image_problem(config, x, y, x_test, y_test, SmallResidual)


def _some(own: dict[str, Array], part: str, count: int) -> tuple[Array, Array]:
    """So many images in [0, 1] of a part, evenly taken, and their labels."""
    x, y = own[f"x_{part}"], own[f"y_{part}"].astype(np.int64)
    some = np.linspace(0, len(y) - 1, min(count, len(y))).round().astype(int)
    return x[some] / 255.0, y[some]
