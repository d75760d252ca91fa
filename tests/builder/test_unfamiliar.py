"""Stand-ins for unfamiliar rows, the figures about them, and the rows predicted worst."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import nn

from builder import histograms
from builder.data import prepare, read_file
from builder.learning import learn
from builder.pipeline import run_build
from builder.preparation import make_factory
from builder.progress import StageBars
from builder.publication import publish
from builder.unfamiliar import SHIFT, stand_in_scores, stand_ins
from builder.worst import worst_rows
from model_store.manifest import (
    FEATURES_FILE,
    CategoricalColumn,
    ClassificationTarget,
    NumericColumn,
    RegressionTarget,
    TableInput,
    TensorInput,
)
from model_store.plan import draw_latents
from model_store.store import ModelStore
from service.model import Asked, ServedModel
from tests.builder.builds import classes, config, table

TABLE = TableInput(
    columns=[NumericColumn(name="a"), CategoricalColumn(name="c", categories=["u", "v", "w"]), NumericColumn(name="b")]
)

pytestmark = pytest.mark.usefixtures("rough_pictures")

SHORT = {"steps": 30}
"""Of the training: what is compared is so of any weights."""


def table_rows(rows: int = 500) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    rng = np.random.default_rng(0)
    a = rng.normal(size=rows)
    code = (a > 0.5).astype(int) + (a > -0.5)
    return np.column_stack([a, np.eye(3)[code], 2 * a]).astype(np.float32)


def test_shuffled_columns_keep_their_values_and_lose_their_company() -> None:
    x = table_rows()
    found = stand_ins(TABLE, x, 0)["columns shuffled"]
    np.testing.assert_array_equal(np.sort(found[:, 0]), np.sort(x[:, 0]))
    assert set(map(tuple, found[:, 1:4])) == set(map(tuple, np.eye(3)))
    assert abs(np.corrcoef(found[:, 0], found[:, 4])[0, 1]) < 0.2


def test_shifted_rows_keep_their_categories() -> None:
    x = table_rows()
    found = stand_ins(TABLE, x, 0)["rows shifted"]
    np.testing.assert_array_equal(found[:, 1:4], x[:, 1:4])
    for at in (0, 4):
        np.testing.assert_allclose(np.abs(found[:, at] - x[:, at]), SHIFT * x[:, at].std(), rtol=1e-3)


def test_kinds_that_would_change_nothing_are_left_out() -> None:
    one = TableInput(columns=[NumericColumn(name="a")])
    assert set(stand_ins(one, table_rows()[:, :1], 0)) == {"rows shifted"}
    words = TableInput(columns=[CategoricalColumn(name=name, categories=["u", "v", "w"]) for name in "cd"])
    assert set(stand_ins(words, np.tile(table_rows()[:, 1:4], 2), 0)) == {"columns shuffled"}
    images = np.random.default_rng(0).normal(size=(1200, 2, 3)).astype(np.float32)
    found = stand_ins(TensorInput(shape=[2, 3], mean=0.0, scale=1.0), images, 0)
    assert {kind: rows.shape for kind, rows in found.items()} == dict.fromkeys(
        ["columns shuffled", "rows shifted"], (1000, 2, 3)
    )


def test_the_auroc_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    own, strange = rng.normal(size=200).round(1), rng.normal(0.7, 1, size=90).round(1)
    labels = np.repeat([0, 1], [200, 90])
    assert histograms.auroc(own, strange) == pytest.approx(roc_auc_score(labels, np.concatenate([own, strange])))


@pytest.mark.parametrize("kind", ["numbers", "classes", "images"])
def test_stand_ins_are_scored_as_a_server_does(tmp_path: Path, kind: str) -> None:
    if kind == "numbers":
        table().to_csv(tmp_path / "table.csv", index=False)
        options = config(tmp_path, map=SHORT)
    elif kind == "images":
        rng = np.random.default_rng(0)
        np.savez(tmp_path / "images.npz", x=rng.normal(size=(90, 1, 4, 4)), y=np.arange(90) % 3)
        data = {"file": tmp_path / "images.npz", "target": "y", "task": "classification"}
        options = config(tmp_path, data=data, map=SHORT)
    else:
        classes().to_csv(tmp_path / "table.csv", index=False)
        options = config(tmp_path, data={"target": "kind", "task": "classification"}, map=SHORT)
    dataset = prepare(read_file(options.data), options.data, True, 0)
    trained = learn(options, dataset, make_factory(options, dataset), StageBars(quiet=True), {})
    publish(trained, [], [], {})
    model = ServedModel(ModelStore(options.store).open("tiny"))
    assert bool(model.detectors.features) == (kind == "images")
    plan = model.plan("predict")
    latents, anchors = draw_latents(plan, model.nodes, plan.samples, 0)
    weights = model.engine.bind(model.engine.decode(latents, anchors), anchors)
    found, left_out = stand_in_scores(trained)
    assert not left_out
    assert set(found) == {"columns shuffled", "rows shifted"}
    for name, rows in stand_ins(dataset.inputs, dataset.x[~dataset.test], 0).items():
        score = model.unfamiliarity(rows, model.predict(weights, rows, Asked(None, scores=True))).score
        np.testing.assert_allclose(found[name], score, rtol=1e-3, atol=1e-3)


def test_a_given_networks_trunk_gives_the_features_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", x=rng.normal(size=(90, 1, 4, 4)), y=np.arange(90) % 3)
    save_file(pictured().state_dict(), tmp_path / "trained.safetensors")
    data = {"file": tmp_path / "images.npz", "target": "y", "task": "classification"}
    network = {"weights": tmp_path / "trained.safetensors", "posterior": "3"}
    options = config(tmp_path, data=data, map={"anchors": None}, network=network)
    dataset = prepare(read_file(options.data), options.data, False, 0)
    trained = learn(options, dataset, pictured, StageBars(quiet=True), {})
    publish(trained, [], [], {})
    bundle = ModelStore(options.store).open("tiny")
    (entering,) = onnx.load_from_string(bundle.read(FEATURES_FILE)).graph.input
    assert [entering.name] == bundle.manifest.network.trunk_outputs
    with torch.no_grad():
        expected = trained.network.module[:3](trained.x)  # type: ignore[index]
    assert ServedModel(bundle).engine.features(trained.x.numpy()) == pytest.approx(expected.numpy(), abs=1e-5)


class Coded(nn.Module):
    """A code and a number, (B, 2) -> (B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.head = nn.Embedding(4, 3), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.cat([self.codes(x[:, 0].long()), x[:, 1:]], 1))
        return out


def test_what_a_network_does_not_take_is_left_out_of_the_report(tmp_path: Path) -> None:
    raw = table()
    pd.DataFrame({"code": np.arange(len(raw)) % 4, "a": raw["a"], "y": raw["y"]}).to_csv(tmp_path / "table.csv")
    options = config(tmp_path, data={"standardize": False, "drop": ["Unnamed: 0"]}, map=SHORT)
    (note,) = run_build(options, factory=Coded).bundle.manifest.build.warnings
    assert note.startswith("The network does not take stand-ins for unfamiliar rows (rows shifted)")


def pictured() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3))


# ---- pictures


def panels(monkeypatch: pytest.MonkeyPatch, make: Callable[[], object]) -> list[Any]:
    """The axes of a picture."""
    with monkeypatch.context() as patch:
        patch.setattr(histograms, "png", lambda draw: draw)
        draw: Any = make()
    figure = Figure()
    draw(figure)
    return figure.axes


def test_scores_are_shown_with_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    own, strange = np.arange(10.0), np.array([8.5, 20.0])
    left, right = panels(
        monkeypatch, lambda: histograms.unfamiliar(own, 8.6, 0.1, {"rows shifted": strange, "none": np.zeros(0)})
    )
    (threshold,) = [line for line in left.lines if "flagged from here" in str(line.get_label())]
    assert threshold.get_xdata()[0] == 8.6
    # As high as the histograms go, and no higher, where the legend is.
    top = max(shape.get_xy()[:, 1].max() for shape in left.patches)
    assert max(threshold.get_ydata()) * left.get_ylim()[1] == pytest.approx(top, rel=0.01)
    assert left.get_legend_handles_labels()[1] == [
        "familiar rows (10)", "rows shifted (2)", "flagged from here on (10% by mistake)"
    ]  # fmt: skip
    assert "rows shifted: AUROC 0.950" in right.get_legend_handles_labels()[1]
    assert histograms.unfamiliar(np.array([np.nan]), 0.0, 0.1, {}) is None
    left, _ = panels(monkeypatch, lambda: histograms.unfamiliar(own, None, 0.01, {}))
    assert not left.lines[0].get_xdata().size  # nothing but its line in the legend
    assert "none is flagged: too few rows for 1%" in left.get_legend_handles_labels()[1]


def test_sharpness_counts_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    (axes,) = panels(monkeypatch, lambda: histograms.sharpness_of_numbers(np.full(9, 2.0), np.ones(9), "price (€)"))
    # Those of a kind are in one bin here, which the shape is as high as.
    assert [shape.get_xy()[:, 1].max() for shape in axes.patches] == [9, 9]
    assert axes.get_xlabel() == "predictive standard deviation of price (€)"
    right = np.array([True, False, True])
    (axes,) = panels(monkeypatch, lambda: histograms.sharpness_of_classes(np.array([0.1, 0.6, np.nan]), right, 2))
    assert axes.get_legend_handles_labels()[1] == [
        "right (1 row, median 0.1)", "wrong (1 row, median 0.6)"
    ]  # fmt: skip


# ---- the rows predicted worst


def test_the_worst_numbers_come_first() -> None:
    target = RegressionTarget(name="price", mean=0.0, scale=1.0)
    predictions = {"y": np.array([0.0, 5.0, -1.0]), "mean": np.zeros(3), "std": np.array([1.0, 2.0, 0.1])}
    text = worst_rows(target, np.array([3, 1200, 70]), predictions)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    loss = [50 + math.log(0.1) + 0.919, 3.125 + math.log(2) + 0.919, 0.919]
    assert [line[:4] for line in lines[2:]] == [
        ["70", "-1", "0", "0.1"], ["1,200", "5", "0", "2"], ["3", "0", "0", "1"]
    ]  # fmt: skip
    assert [float(line[4]) for line in lines[2:]] == pytest.approx(loss, rel=0.01)
    assert worst_rows(target, np.zeros(0, dtype=np.int64), {}) == ""


def test_the_worst_classes_are_named() -> None:
    target = ClassificationTarget(name="kind", classes=["a|b", "c"])
    predictions = {"y": np.array([0, 1]), "probabilities": np.array([[0.9, 0.1], [0.75, 0.25]], dtype=np.float32)}
    text = worst_rows(target, np.array([5, 6]), predictions)
    assert "| 6 | c | 0.25 | a\\|b | 0.75 | 1.39 |\n| 5 | a\\|b | 0.9 | a\\|b | 0.9 | 0.105 |" in text
