"""A whole build: what it publishes, that it repeats and resumes, and networks of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import builder.learning as learning
from builder.pipeline import BuildResult, run_build
from builder.trained import Trained
from model_store.errors import ConfigError
from model_store.manifest import TRUNK_FILE, CategoricalColumn, TableInput
from tests.builder.builds import build_table, config, serve, table, watched

pytestmark = pytest.mark.usefixtures("rough_pictures")


@dataclass(frozen=True)
class Watched:
    """A build, what it published as torch has it, and the rows (A, n) that the anchors of each walk have seen."""

    result: BuildResult
    trained: Trained
    members: list[torch.Tensor]


def watched_build(folder: Path, **changes: Any) -> Watched:
    members: list[torch.Tensor] = []
    walk = learning.walk_fibers

    def watch(network: Any, anchors: torch.Tensor, x: Any, y: Any, member: torch.Tensor, *rest: Any) -> Any:
        members.append(member)
        return walk(network, anchors, x, y, member, *rest)

    with pytest.MonkeyPatch.context() as patch:
        seen = watched(patch)
        patch.setattr(learning, "walk_fibers", watch)
        result = build_table(folder, **changes)
    return Watched(result, seen[0], members)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A regression on a number and a category, from a CSV file."""
    return watched_build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """The same with one anchor."""
    return watched_build(tmp_path_factory.mktemp("one"), map={"anchors": 1})


@pytest.fixture(scope="module")
def built(of_two: Watched) -> BuildResult:
    return of_two.result


def contents(result: BuildResult) -> dict[str, Any]:
    """Everything of a manifest that its inputs determine; the card tells the date."""
    manifest = result.bundle.manifest.model_dump(mode="json")
    del manifest["version"], manifest["build"]["created"], manifest["build"]["seconds"], manifest["files"]["card.md"]
    del manifest["files"]["report.html"]
    return manifest


def fail(*_: object, **__: object) -> None:
    raise AssertionError("the stage is run again")


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_the_bundle_is_whole(built: BuildResult) -> None:
    bundle = built.bundle
    bundle.verify()
    manifest = bundle.manifest
    assert isinstance(manifest.inputs, TableInput)
    assert [c.name for c in manifest.inputs.columns] == ["a", "colour"]
    assert isinstance(manifest.inputs.columns[1], CategoricalColumn)
    assert manifest.inputs.columns[1].categories == ["blue", "red"]
    assert (manifest.latent.anchors, manifest.latent.trajectories) == (2, 6)
    assert set(manifest.build.seconds) >= {"map", "fiber", "autoencoder", "calibration"}
    assert {"card.md", "report.html", "decoder.onnx", "base.onnx"} <= set(manifest.files)
    report = built.bundle.read("report.html").decode()
    assert report.count('src="data:image/png;base64,') >= 5 and ".png" not in report
    worst = report.split(">Rows predicted worst</h2>")[1]
    # The test part holds 16 rows.
    assert worst.count("<tr>") == 1 + 10
    assert "sharpness.png" in manifest.files and "unfamiliar.png" in manifest.files


def test_metrics_are_published(built: BuildResult) -> None:
    assert built.bundle.manifest.metrics == built.metrics
    found = {(m.predictor, m.split): m for m in built.metrics}
    parts = {("posterior", "out_of_fold"), ("map", "out_of_fold")}
    assert set(found) == parts | {(p, "test") for p in ("posterior", "fiber", "map")}
    posterior = found["posterior", "test"]
    assert posterior.rows == 16
    assert set(posterior.values) == {"nll", "rmse", "coverage_90", "width_90"}
    assert all(math.isfinite(v) for m in built.metrics for v in m.values.values())


def test_the_prediction_is_the_known_function(built: BuildResult) -> None:
    a = np.linspace(-1.5, 1.5, 21)
    for colour, shift in (("blue", 0.0), ("red", 1.0)):
        answer = serve(built.bundle, [[float(v), colour] for v in a])
        # Within the noise (0.3) of 144 training rows.
        assert np.sqrt(np.mean((answer["mean"] - 2 * np.sin(2 * a) - shift) ** 2)) < 0.4


def test_no_file_names_of_the_builder_are_published(built: BuildResult) -> None:
    text = (built.bundle.path / "manifest.json").read_text()
    assert str(built.bundle.path.parent) not in text
    assert "table.csv" not in text


def test_the_same_inputs_give_the_same_bundle(
    tmp_path: Path, built: BuildResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    again = build_table(tmp_path / "again", work=None)
    assert contents(again) == contents(built)
    # Work of no named folder is cleared.
    assert not (tmp_path / ".fiberwalk" / "tiny").exists()
    other = build_table(tmp_path / "other", seed=1)
    files = [r.bundle.manifest.files for r in (built, other)]
    assert files[0]["arrays.safetensors"] != files[1]["arrays.safetensors"]
    assert files[0]["decoder.onnx"] != files[1]["decoder.onnx"]


def test_an_interrupted_build_goes_on(tmp_path: Path, built: BuildResult, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(learning, "walk_fibers", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_table(tmp_path)
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["map.safetensors"]
    assert not list((tmp_path / "models").glob("*/*/manifest.json"))
    with monkeypatch.context() as patch:
        patch.setattr(learning, "train_anchors", fail)
        resumed = build_table(tmp_path)
    assert contents(resumed) == contents(built)

    # Everything is finished now: the same build again trains nothing.
    for stage in ("train_anchors", "walk_fibers", "train_autoencoder"):
        monkeypatch.setattr(learning, stage, fail)
    repeated = build_table(tmp_path)
    assert repeated.bundle.version == 2
    assert contents(repeated) == contents(built)
    # But not with another seed.
    with pytest.raises(AssertionError, match="run again"):
        build_table(tmp_path, seed=1)


def test_a_build_interrupted_while_refitting_goes_on(
    tmp_path: Path, of_one: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"anchors": 1}
    for stage in ("refit_anchors", "train_autoencoder"):
        with monkeypatch.context() as patch:
            patch.setattr(learning, stage, interrupt)
            with pytest.raises(KeyboardInterrupt):
                build_table(tmp_path, map=options)
    for stage in ("train_anchors", "walk_fibers", "refit_anchors"):
        monkeypatch.setattr(learning, stage, fail)
    assert contents(build_table(tmp_path, map=options)) == contents(of_one.result)


def test_a_damaged_work_file_is_ignored(tmp_path: Path, built: BuildResult) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "map.safetensors").write_bytes(b"\x08cut off")
    assert contents(build_table(tmp_path)) == contents(built)


# ---- networks of the user's own


class Headed(nn.Module):
    """A body, whose weights may stay fixed, and a head."""

    def __init__(self, inputs: int = 3, outputs: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh())
        self.head = nn.Linear(8, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(x))
        return out


def test_what_is_served_has_seen_all_rows_and_what_chose_it_has_not(
    tmp_path: Path, of_two: Watched, of_one: Watched
) -> None:
    trained, members = of_two.trained, of_two.members
    assert not members[0].all() and members[1].all()
    assert torch.equal(trained.anchors, trained.fibers.nodes[0, :, 0])
    assert len(trained.fibers.nodes) == trained.reach.used + 1 < len(trained.cross_fitted.nodes)
    first = trained.cross_fitted.nodes[0, :, 0]
    assert 0 < float((trained.anchors - first).norm()) < float((first[0] - first[1]).norm())
    walks = trained.cross_fitted.gradient_evaluations + trained.fibers.gradient_evaluations
    assert trained.gradient_evaluations == trained.training_gradients + walks

    own = watched_build(tmp_path, map={"refit": False}).trained
    assert torch.equal(own.anchors, first) and own.fibers is own.cross_fitted
    # One anchor alone would lack many rows.
    one, members = of_one.trained, of_one.members
    assert members[-1].all() and not members[-2].all() and one.fibers is not one.cross_fitted


def test_fewer_anchors_may_be_served_than_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    options: dict[str, Any] = {"anchors": 4, "folds": 2}
    few = build_table(tmp_path / "few", map={**options, "served": 2}, fiber={"trajectories": 6})
    few.bundle.verify()
    assert few.bundle.manifest.latent.anchors == 2 and few.bundle.manifest.latent.trajectories == 6
    all_ = build_table(tmp_path / "all", map=options, fiber={"trajectories": 6})
    assert all_.bundle.manifest.latent.anchors == 4
    judged = [t.judged.weights for t in seen]
    assert torch.equal(*judged) and len(judged[0]) == 4
    assert torch.equal(seen[0].anchors, seen[1].anchors[:2])
    # As many fibers are judged in all as are served.
    assert seen[0].cross_fitted.nodes.shape[1:3] == (4, 3) and seen[0].fibers.nodes.shape[1:3] == (2, 6)
    # Two average less than four, and what they answer is known to be worse.
    assert seen[0].calibrated.nll > seen[1].calibrated.nll
    assert seen[0].training_gradients < seen[1].training_gradients
    for wrong in ({"served": 5}, {"served": 2, "refit": False}):
        with pytest.raises(ConfigError, match=r"map\.(anchors|served)"):
            build_table(tmp_path / "wrong", map={**options, **wrong})


def test_all_anchors_may_leave_out_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    options = {"anchors": None, "folds": 1, "holdout": 0.25, "served": 3}
    result = build_table(tmp_path / "part", map=options)
    result.bundle.verify()
    (trained,) = seen
    # No more are judged than are served, and all of them have been trained on all rows when they are.
    assert trained.member.shape[0] == len(trained.judged.weights) == result.bundle.manifest.latent.anchors == 3
    left_out = ~trained.member
    assert torch.equal(left_out, left_out[:1].expand(3, -1))
    assert trained.calibrated.points == trained.detection.described.points == int(left_out[0].sum())
    assert int(left_out[0].sum()) == pytest.approx(0.25 * len(trained.x), abs=1)


def test_a_fixed_body_becomes_a_trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    table().to_csv(tmp_path / "table.csv", index=False)
    result = run_build(config(tmp_path, map={"anchors": None}, network={"posterior": "head"}), factory=Headed)
    manifest = result.bundle.manifest
    result.bundle.verify()
    assert TRUNK_FILE in manifest.files
    assert manifest.latent.anchors == 1
    assert manifest.network.weights == 9
    assert {p.name for p in manifest.network.parameters} == {"head.weight", "head.bias"}

    (trained,) = seen
    module, target = trained.network.module, trained.dataset.target
    plan = trained.plans["predict"]
    weights = trained.posterior.draw(plan, plan.samples)[0]
    rows = [[0.5, "red"], [-1.2, "blue"], [1.9, "red"]]
    x = torch.tensor([[(v - manifest.inputs.columns[0].mean) / manifest.inputs.columns[0].scale,
                       float(c == "blue"), float(c == "red")] for v, c in rows])  # fmt: skip
    with torch.no_grad():
        # By hand: the body once, then every sample's head.
        outputs = [module.body(x) @ w[:8] + w[8] for w in weights]
    expected = torch.stack(outputs).mean(0).numpy() * target.scale + target.mean
    np.testing.assert_allclose(serve(result.bundle, rows)["mean"], expected, rtol=1e-4, atol=1e-4)


class Wide(nn.Module):
    """Two hundred copies of each of three inputs, each with its own weights, for 128 hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(600, 128), nn.Linear(128, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(torch.tanh(self.first(x.repeat(1, 200))))
        return out


def test_a_wide_first_layer_is_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    table().to_csv(tmp_path / "table.csv", index=False)
    mapped = {"anchors": 1, "steps": 100, "learning_rate": 0.003, "prior_precision": [3.0]}
    options = {"map": mapped, "fiber": {"trajectories": 3}, "autoencoder": {"first_rank": 3}}
    result = run_build(config(tmp_path, **options), factory=Wide)
    network = result.bundle.manifest.network
    assert list(network.mixed) == ["weights.first.weight"]
    assert network.random_weights == 600 * 128 + 128 + 129
    assert network.weights == 128 + 129 + 4  # a column for the anchor itself

    (trained,) = seen
    target, plan = trained.dataset.target, trained.plans["predict"]
    weights = trained.posterior.draw(plan, plan.samples)[0].double()
    exact = trained.network.module.double()
    for rows in ([[0.5, "red"]], [[0.5, "red"], [-1.2, "blue"], [1.9, "red"]]):
        x = np.array([[row[0], row[1] == "blue", row[1] == "red"] for row in rows], dtype=np.float64)
        column = result.bundle.manifest.inputs.columns[0]
        x[:, 0] = (x[:, 0] - column.mean) / column.scale
        outputs = []
        for w in weights:
            parts = torch.split(w, [p.numel() for p in exact.parameters()])
            named = {n: v.reshape(p.shape) for (n, p), v in zip(exact.named_parameters(), parts, strict=True)}
            outputs.append(torch.func.functional_call(exact, named, (torch.from_numpy(x),))[:, 0].detach())
        expected = torch.stack(outputs).mean(0).numpy() * target.scale + target.mean
        spread = torch.stack(outputs).var(0, unbiased=False).numpy() * target.scale**2
        answer = serve(result.bundle, rows)
        np.testing.assert_allclose(answer["mean"], expected, rtol=1e-4)
        np.testing.assert_allclose(answer["epistemic_variance"], spread, rtol=1e-3)


def test_given_weights_are_the_anchor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    torch.manual_seed(3)
    module = Headed()
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    frame = table()
    x = torch.tensor(np.c_[frame["a"], frame["colour"] == "blue", frame["colour"] == "red"], dtype=torch.float32)
    y = torch.tensor(frame["y"].to_numpy(), dtype=torch.float32)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.mse_loss(module(x)[:, 0], y).backward()
        optimizer.step()
    save_file(module.state_dict(), tmp_path / "trained.safetensors")
    monkeypatch.setattr(learning, "train_anchors", fail)
    frame.to_csv(tmp_path / "table.csv", index=False)
    options = {"map": {"anchors": None}, "network": {"weights": tmp_path / "trained.safetensors"}}
    result = run_build(config(tmp_path, **options), factory=Headed)
    given = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert "trained.safetensors" not in (result.bundle.path / "manifest.json").read_text()
    (trained,) = seen
    assert torch.equal(trained.anchors, given[None]) and trained.fibers is trained.cross_fitted
    # Made for the numbers as they are: nothing is standardised.
    assert isinstance(result.bundle.manifest.inputs, TableInput)
    assert (result.bundle.manifest.inputs.columns[0].mean, result.bundle.manifest.inputs.columns[0].scale) == (0, 1)
    at_map = module(torch.tensor([[0.5, 0.0, 1.0]])).item()
    answer = serve(result.bundle, [[0.5, "red"]])
    assert abs(answer["mean"][0] - at_map) < 1


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


@pytest.mark.parametrize(
    ("factory", "message", "expected"),
    [
        (lambda: Headed(outputs=2), "wrong number of outputs", "1 output"),
        (lambda: Headed(inputs=7), "does not take the data", "inputs of shape (rows, 3)"),
        (normed, "batch normalisation", None),
    ],
    ids=["outputs", "inputs", "batch norm"],
)
def test_a_network_that_does_not_fit_is_refused(
    tmp_path: Path, factory: Callable[[], nn.Module], message: str, expected: str | None
) -> None:
    table().to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(ConfigError, match=message) as e:
        run_build(config(tmp_path), factory=factory)
    assert e.value.field == "network"
    if expected:
        assert e.value.expected is not None
        assert expected in e.value.expected
    assert not (tmp_path / "models").exists()
