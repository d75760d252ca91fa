"""Image sets: how they are read, all methods on tiny images, and the goals that are judged from them."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import benchmarks.quality.images.__main__ as command
from benchmarks.networks import lenet5, resnet18, resnet20
from benchmarks.quality.goals import NOT_MEASURED
from benchmarks.quality.images import problem, run
from benchmarks.quality.images.data import FOREIGN_IMAGES, SOURCES, read_images
from benchmarks.quality.images.doubts import NEIGHBOURS, SERVED
from benchmarks.quality.images.run import METHODS, build_ours
from benchmarks.quality.images.summary import _CALLED, beyond_reach, judge, reach_table, summarize
from benchmarks.quality.page import page
from benchmarks.table import MET, NOT_DECIDED, NOT_MET
from builder.network import FunctionalNetwork
from model_store.errors import DataError

SIDE, CLASSES = 8, 3
CIFAR = NOT_MEASURED
"""What is said of goals of the set that is not run."""
QUICK: dict[str, dict[str, Any]] = {
    "map": {"batch_rows": 20, "learning_rate": 0.01, "prior_precision": [1.0]},
    "fiber": {"steps": 3, "refinement": 4},
    "autoencoder": {"steps": 20, "hidden": 8},
}


def tiny_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * (SIDE - 2) ** 2, CLASSES))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny images: class c is bright in its column; foreign ones are bright all over."""
    rng = np.random.default_rng(0)

    def images(count: int) -> tuple[Any, Any]:
        y = rng.permutation(np.arange(count) % CLASSES).astype(np.uint8)
        x = rng.integers(0, 60, size=(count, SIDE, SIDE), dtype=np.uint8)
        for row, c in zip(x, y, strict=True):
            row[:, 2 * c] += 150
        return x, y

    (x_train, y_train), (x_test, y_test) = images(60), images(30)
    np.savez(tmp_path / "fashion_mnist.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    foreign = rng.integers(100, 255, size=(20, SIDE, SIDE), dtype=np.uint8)
    for name in SOURCES["fashion_mnist"].foreign.values():
        np.savez(tmp_path / f"{name}.npz", x_test=foreign)
    monkeypatch.setenv("FIBERWALK_DATA", str(tmp_path))
    monkeypatch.setitem(SOURCES, "fashion_mnist", replace(SOURCES["fashion_mnist"], network=tiny_network))
    monkeypatch.setitem(problem.RECIPES, "fashion_mnist", QUICK)
    monkeypatch.setattr(command, "WORK", tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize(
    ("network", "shape", "weights"),
    [
        (lenet5, (1, 28, 28), 61_706),
        (resnet20, (3, 32, 32), 269_722),
        (resnet18, (3, 32, 32), 11_173_962),
    ],
)
def test_networks_have_the_published_size_and_run_as_a_batch(network: Any, shape: Any, weights: int) -> None:
    function = FunctionalNetwork(network())
    assert function.weights == weights
    thetas, x = torch.stack([function.current(), torch.zeros(weights)]), torch.randn(2, *shape)
    outputs = function.batched(thetas, x)
    assert outputs.shape == (2, 2, 10)
    torch.testing.assert_close(outputs[0], function.module(x), atol=1e-4, rtol=1e-4)


def test_rows_are_the_first_of_each_class() -> None:
    whole, some = read_images("fashion_mnist"), read_images("fashion_mnist", 12, 6)
    assert whole.x.shape == (60, 1, SIDE, SIDE) and whole.foreign["kmnist"].shape == (20, 1, SIDE, SIDE)
    assert np.bincount(some.y).tolist() == [4, 4, 4] and np.bincount(some.y_test).tolist() == [2, 2, 2]
    assert len(some.foreign["mnist"]) == 6
    first = np.sort(np.concatenate([np.flatnonzero(whole.y == c)[:4] for c in range(CLASSES)]))
    np.testing.assert_array_equal(some.x, whole.x[first])


def test_colour_images_come_from_one_picture(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, size=(50, 32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(x.reshape(1, 50, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(32, 1600, 3)).save(
        buffer, "WEBP", lossless=True
    )
    webp, y = np.frombuffer(buffer.getvalue(), dtype=np.uint8), np.arange(50, dtype=np.uint8) % 10
    np.savez(folder / "cifar10_subset.npz", x_train_webp=webp, y_train=y, x_test_webp=webp, y_test=y)
    np.savez(folder / "cifar100_ood.npz", x_test_webp=webp)
    found = read_images("cifar10")
    np.testing.assert_array_equal(found.x, x.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(found.foreign["cifar100"], found.x)


def test_a_missing_file_is_told(folder: Path) -> None:
    (folder / "kmnist_test.npz").unlink()
    with pytest.raises(DataError, match=r"kmnist_test\.npz"):
        read_images("fashion_mnist")


def test_a_build_that_was_stopped_goes_on_and_its_cost_is_that_of_all_parts(folder: Path) -> None:
    asked = problem.make_problem("fashion_mnist", read_images("fashion_mnist"), 5.0, 0)
    first, again = (build_ours(asked, 1, folder / "kept") for _ in range(2))
    assert torch.equal(first.trained.fibers.nodes, again.trained.fibers.nodes)
    assert again.seconds["map"] > 0.9 * first.seconds["map"]
    assert again.cost.seconds > first.seconds["map"] + first.seconds["fiber"]


def test_every_method_answers_and_knows_foreign_images(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "images.json"
    arguments = ["--rows", "60", "--test-rows", "30", "--epochs", "20", "--output", str(file)]
    assert command.main([*arguments, "--families", "ensemble", "laplace", "swag"]) == 0
    assert command.main(arguments) == 0
    log = capsys.readouterr().err
    assert not list((folder / "work").glob("*/*"))
    # What was done the first time is not done again.
    assert log.count("fashion_mnist 0 tuning") == 1 and log.count("fashion_mnist 0 swag") == 1
    content = json.loads(file.read_text())
    (summary,) = content["summary"]
    assert list(summary["methods"]) == list(METHODS) and summary["failed"] == {}
    for method in summary["methods"].values():
        figures = {k: v["mean"] for k, v in method["figures"].items()}
        assert all(math.isfinite(v) for v in figures.values())
        assert figures["accuracy"] > 0.9
        assert 0 <= figures["auroc_mnist"] <= 1
        assert method["gradient_evaluations"] > 0 and method["seconds"] > 0
    text = page({"summary": [], "environments": {}}, None, content)
    assert all(f"| {name} |" in text for name in METHODS.values())
    reaches, (reach,) = (summary["methods"]["fiberwalk_1"][k] for k in ("reaches", "reach"))
    assert len(reaches) == QUICK["fiber"]["steps"] and summary["methods"]["fiberwalk_5"]["reaches"] == []
    assert [r["scale"] for r in reaches] == sorted(r["scale"] for r in reaches)
    assert {"nll", "ece", "auroc_mnist"} <= set(reaches[0])
    rows = reach_table(summary)[1]
    assert [node for node, row in enumerate(rows, 1) if row[-1] == "yes"] == [max(1, reach)]
    assert all(" | ".join(row) in text for row in rows)
    scores = {SERVED, "mutual_information", "nearest_features", "mahalanobis_features"}
    assert set(summary["methods"]["fiberwalk_1"]["doubts"]) == scores
    assert set(summary["methods"]["map"]["doubts"]) == {"max_probability", "energy", "mahalanobis", *NEIGHBOURS}
    assert all(f"| {METHODS['fiberwalk_5']} | {_CALLED.get(score, score)} |" in text for score in scores)
    assert set(summary["methods"]["fiberwalk_5"]["false_alarms"]) == {"0.01", "0.05", "0.1"}
    # Another set in the file stays, and nothing is left to do for this one.
    monkeypatch.setitem(SOURCES, "mnist", SOURCES["fashion_mnist"])
    of_other = [{**r, "set": r["set"].replace("fashion_mnist", "mnist")} for r in content["runs"]]
    file.write_text(json.dumps({**content, "runs": [*of_other, *content["runs"]]}))
    assert command.main(arguments) == 0
    assert [s["set"] for s in json.loads(file.read_text())["summary"]] == ["fashion_mnist", "mnist"]


def test_anchors_of_a_build_are_not_trained_again_for_tuning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("diverged")

    file = folder / "images.json"
    arguments = ["--rows", "30", "--test-rows", "9", "--epochs", "4", "--members", "5", "--output", str(file)]
    arguments += ["--families", "ensemble", "fiberwalk_5"]
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.quality.tuning.train_anchors", fail)
        assert command.main(arguments) == 0
    methods = json.loads(file.read_text())["summary"][0]["methods"]
    assert list(methods) == ["map", "map_tuned", "ensemble_5", "fiberwalk_5"]
    assert methods["map_tuned"]["gradient_evaluations"] < methods["fiberwalk_5"]["gradient_evaluations"]
    # A build that fails is told, and the peers are tuned without it.
    file.unlink()
    monkeypatch.setattr(run, "build", fail)
    assert command.main(arguments) == 1
    (summary,) = json.loads(file.read_text())["summary"]
    assert list(summary["methods"]) == ["map", "map_tuned", "ensemble_5"]
    assert summary["failed"] == {"fiberwalk_5": "RuntimeError: diverged"}


def test_a_family_that_fails_is_named_and_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("diverged")

    arguments = ["--rows", "30", "--test-rows", "9", "--epochs", "2", "--output", str(folder / "images.json")]
    swag = run.FAMILIES["swag"]
    monkeypatch.setitem(run.FAMILIES, "swag", fail)
    assert command.main([*arguments, "--families", "ensemble", "swag"]) == 1
    assert "swag failed: RuntimeError: diverged" in capsys.readouterr().out
    monkeypatch.setitem(run.FAMILIES, "swag", swag)
    assert command.main([*arguments, "--families", "swag"]) == 0


def measured(rows: int, ours: float, peers: float) -> Any:
    """A run in which our figures are all of one value and the peers' of another; AUROC is one less."""

    def figures(value: float) -> Any:
        foreign = {f"auroc_{name}": 1 - value for name in SOURCES["fashion_mnist"].foreign}
        return {"nll": value, "accuracy": 0.9, "ece": value, **foreign}

    methods: Any = {m: {"figures": figures(ours if m.startswith("fiber") else peers)} for m in METHODS}
    foreign = SOURCES["fashion_mnist"].foreign
    methods["fiberwalk_1"]["doubts"] = {SERVED: dict.fromkeys(foreign, 1 - ours)}
    methods["fiberwalk_1"]["false_alarms"] = {"0.01": 0.01, "0.05": 0.05 - ours / 2}
    methods["map"]["doubts"] = {"energy": dict.fromkeys(foreign, 1 - peers)}
    methods["fiberwalk_5"]["reach"] = 0
    return {
        "split": 0,
        "rows": rows,
        "test_rows": 2000,
        "failed": {},
        "methods": {m: {**r, "gradient_evaluations": 1, "seconds": 1.0} for m, r in methods.items()},
    }


@pytest.mark.parametrize(
    ("rows", "ours", "peers", "states"),
    [
        (60_000, 0.005, 0.2, [*[MET] * 7, CIFAR, CIFAR, MET, CIFAR, MET, CIFAR, MET, MET, CIFAR]),
        (60_000, 0.25, 0.2, [*[NOT_MET] * 7, CIFAR, CIFAR, NOT_MET, CIFAR, NOT_MET, CIFAR, NOT_MET, NOT_MET, CIFAR]),
        (
            60_000,
            0.04,
            0.05,
            [*[MET] * 6, NOT_MET, CIFAR, CIFAR, NOT_MET, CIFAR, NOT_MET, CIFAR, NOT_MET, NOT_MET, CIFAR],
        ),
        (5_000, 0.005, 0.2, [*[MET] * 6, NOT_MEASURED, CIFAR, CIFAR, MET, CIFAR, MET, CIFAR, MET, MET, CIFAR]),
    ],
)
def test_goals(rows: int, ours: float, peers: float, states: list[str]) -> None:
    names = ("fashion_mnist", "fashion_mnist_whole")
    summary = [s for name in names if (s := summarize(name, [measured(rows, ours, peers)]))]
    assert len(summary) == len(names)
    (told,) = beyond_reach(summary[0])
    assert told.startswith(METHODS["fiberwalk_5"])
    assert [g.state for g in judge(summary)] == states


def of_fashion(ours: float, peers: float, test_rows: int = 2000, seeds: int = 1) -> dict[str, Any]:
    """By text, without the set's name."""
    runs = [measured(5000, ours, peers) | {"split": i, "test_rows": test_rows} for i in range(seeds)]
    for r in runs:
        for found in r["methods"].values():
            found["figures"]["ece_by_chance"] = 0.03
    one = summarize("fashion_mnist", runs)
    assert one is not None
    return {g.text.partition(": ")[2]: g for g in judge([one]) if "one anchor" in g.text}


def test_an_auroc_that_leads_by_less_than_two_standard_errors_decides_nothing() -> None:
    # Of 2,000 images each, .96 and .95 have errors of .0031 and .0035; of a hundred five times as large ones.
    mnist, known = (
        "AUROC mnist above the ensemble of 5",
        f"AUROC of {SERVED} at least 0.97, and above every peer's score on each",
    )
    goals = of_fashion(0.04, 0.05)
    assert (
        goals[mnist].state == MET and "0.960 against 0.950 (5,000 training rows); +0.010 ± 0.005" in goals[mnist].found
    )
    goals = of_fashion(0.02, 0.03, test_rows=100)
    assert goals[mnist].state == goals[known].state == NOT_DECIDED
    assert "0.980 against 0.970 (notmnist, +0.010 ± 0.0" in goals[known].found
    assert of_fashion(0.05, 0.05)[mnist].state == NOT_MET
    # Leads that nobody doubts are not enough where the mean is too low.
    assert of_fashion(0.04, 0.4)[known].state == NOT_MET


def test_goals_say_how_large_chance_is() -> None:
    goals = of_fashion(0.04, 0.05)
    assert goals["ECE below the ensemble of 5"].found.endswith("; calibrated ones would show 3.0% and 3.0%")
    assert goals["NLL below the tempered MAP"].found.endswith("; one run")
    several = of_fashion(0.04, 0.05, seeds=2)["NLL below the tempered MAP"].found
    assert several == "0.040 ± 0.000 against 0.050 ± 0.000 (5,000 training rows); 2 runs"
    (alarms,) = [g for text, g in goals.items() if "false alarms" in text]
    assert alarms.found == "1.0% at 1% ± 0.2%, 3.0% at 5% ± 0.5%"
    whole = summarize("fashion_mnist_whole", [measured(60_000, 0.005, 0.2)])
    assert whole is not None
    assert next(g.found for g in judge([whole]) if "whole set" in g.text) == "0.005, 0.5%; one run"


def test_every_foreign_set_has_its_number_of_images() -> None:
    assert {f for source in SOURCES.values() for f in source.foreign.values()} == set(FOREIGN_IMAGES)
