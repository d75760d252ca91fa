"""CIFAR-10 as the experiments read it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.experiments.decoding import sample
from benchmarks.experiments.images import NAME, small_problem
from benchmarks.experiments.latents import vary
from benchmarks.experiments.stages import train
from model_store.errors import DataError


def write(folder: Path, train_images: np.ndarray, test_images: np.ndarray) -> None:
    """Images (n, 32, 32, 3) of an even number, two of them a row of the picture."""
    arrays = {}
    for part, images in (("train", train_images), ("test", test_images)):
        picture = images.reshape(-1, 2, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 64, 3)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "WEBP", lossless=True)
        arrays[f"x_{part}_webp"] = np.frombuffer(buffer.getvalue(), np.uint8)
        arrays[f"y_{part}"] = (np.arange(len(images)) % 10).astype(np.uint8)
    np.savez(folder / f"{NAME}.npz", **arrays)


def test_images_come_out_pixel_by_pixel_and_a_network_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIBERWALK_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size=(n, 32, 32, 3), dtype=np.uint8) for n in (60, 20)]
    write(tmp_path, *images)
    stages = {
        "map": {"anchors": 1, "steps": 5, "prior_precision": [1.0]},
        "fiber": {"trajectories": 2, "steps": 2, "refinement": 1},
        "autoencoder": {"steps": 5},
    }
    problem = small_problem(0, "default", 60, 10, **stages)
    assert problem.x.shape == (60, 3, 32, 32) and problem.x_test.shape == (10, 3, 32, 32)
    assert problem.y.tolist() == [i % 10 for i in range(60)]
    values = images[0].transpose(0, 3, 1, 2) / 255.0
    assert torch.allclose(problem.x, torch.from_numpy((values - values.mean()) / values.std()).float(), atol=1e-4)
    assert torch.equal(problem.y_test, torch.linspace(0, 19, 10).round().long() % 10)

    found = vary(sample(train(problem)), (1,), 4)
    assert found["anchors"] == 1 and 0 < found["decoded"][0]["nll"] < 10


def test_a_missing_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIBERWALK_DATA", str(tmp_path))
    with pytest.raises(DataError, match="cifar10_subset"):
        small_problem(0, "default", 10, 10)
