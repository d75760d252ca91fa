"""`builder.build` from every kind of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import builder
from builder.pipeline import BuildResult
from model_store.errors import ConfigError, DataError, StoreError
from model_store.manifest import ClassificationTarget, TensorInput
from tests.builder.builds import TINY, classes, serve, table

pytestmark = pytest.mark.usefixtures("rough_pictures")


def build(folder: Path, data: Any, **arguments: Any) -> BuildResult:
    options = {**TINY, **arguments.pop("options", {})}
    arguments = {"task": "regression", "name": "tiny", "store": folder / "models", "device": "cpu", **arguments}
    return builder.build(data, options=options, **arguments)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_classes_in_text_from_a_file(tmp_path: Path) -> None:
    classes().to_csv(tmp_path / "kinds.csv", index=False)
    result = build(tmp_path, tmp_path / "kinds.csv", target="kind", task="classification")
    result.bundle.verify()
    target = result.bundle.manifest.target
    assert isinstance(target, ClassificationTarget)
    assert target.classes == ["over", "under"]
    found = {(m.predictor, m.split): m.values for m in result.metrics}
    assert set(found["posterior", "test"]) == {"nll", "accuracy", "ece"}
    assert found["posterior", "test"]["accuracy"] >= 0.75
    answer = serve(result.bundle, [[2.0, 1.0], [-2.0, -1.0]])
    assert answer["label"].tolist() == [0, 1]
    assert answer["mean"].min(axis=1).max() < 0.2


def test_images_from_npz(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = rng.normal(size=(90, 4, 4))
    x[:, 0, :3] += 4 * np.eye(3)[y]
    np.savez(tmp_path / "images.npz", x=x, y=y, class_names=["left", "middle", "right"])
    result = build(tmp_path, str(tmp_path / "images.npz"), task="classification")
    result.bundle.verify()
    assert isinstance(result.bundle.manifest.inputs, TensorInput)
    assert result.bundle.manifest.inputs.shape == [4, 4]
    assert result.bundle.manifest.target.classes == ["left", "middle", "right"]
    assert serve(result.bundle, [v.tolist() for v in x[:9]])["label"].tolist() == y[:9].tolist()


def test_a_network_in_place_of_what_makes_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"network is a network itself\. Give a callable"):
        build(tmp_path, table(), target="y", network=nn.Linear(3, 1))


def test_a_frame_and_arrays_hold_the_same(tmp_path: Path) -> None:
    frame = table()[["a", "y"]]
    first = build(tmp_path, frame, target="y")
    arrays = (frame["a"].to_numpy()[:, None], frame["y"].to_numpy())
    second = build(tmp_path, arrays, target="y")
    assert (first.bundle.version, second.bundle.version) == (1, 2)
    assert [c.name for c in second.bundle.manifest.inputs.columns] == ["x0"]
    # The name of a column is no part of what is learned from it.
    assert first.metrics == second.metrics
    np.testing.assert_array_equal(serve(first.bundle, [[0.3]])["mean"], serve(second.bundle, [[0.3]])["mean"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": None}, DataError, "--target"),
        ({"target": "z"}, DataError, "no column 'z'"),
        ({"target": "y", "options": {"fiber": {"legs": 3}}}, ConfigError, r"fiber\.legs"),
        ({"target": "y", "preset": "lazy"}, ConfigError, "preset"),
        ({"target": "y", "network": "nowhere"}, ConfigError, "module:factory"),
        ({"target": "y", "posterior": "tail"}, ConfigError, "posterior"),
    ],
)
def test_what_cannot_be_used_is_refused(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(tmp_path, table(), **arguments)
    assert not (tmp_path / "models").exists()


def test_what_cannot_be_written_is_told_before_data_are_read(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"task": "regression", "name": "tiny", "target": "y"}
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        builder.build("nowhere.csv", store=tmp_path / "file" / "store", **asked)
    (tmp_path / ".fiberwalk").touch()
    with pytest.raises(ConfigError, match="Finished stages cannot be kept"):
        builder.build("nowhere.csv", **asked)
