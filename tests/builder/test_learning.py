"""The stages of a build: which are run again, what is refused before any, and what networks they bear."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import builder.learning as learning
from builder.pipeline import run_build
from model_store.errors import ConfigError
from tests.builder.builds import build_table, classes, config
from tests.builder.test_pipeline import fail

pytestmark = pytest.mark.usefixtures("rough_pictures")

SHORT = {"steps": 30}
"""Of the training: nothing here is about what was learned."""


def test_what_an_option_does_not_touch_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_table(tmp_path, map=SHORT)
    for stage in ("train_anchors", "refit_anchors"):
        monkeypatch.setattr(learning, stage, fail)
    build_table(tmp_path, map=SHORT, fiber={"momentum": 0.7})
    for stage in ("walk_fibers", "train_autoencoder"):
        monkeypatch.setattr(learning, stage, fail)
    build_table(tmp_path, map=SHORT, fiber={"momentum": 0.7}, autoencoder={"first_rank": 2})


def test_more_served_than_there_are_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No more anchors can be served"):
        build_table(tmp_path, map={"served": 99})
    assert not list((tmp_path / "work").glob("*"))


class Flattening(nn.Module):
    """Of no rows it could not tell how wide they are."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.tanh(self.body(x.view(x.shape[0], -1))))
        return out


@pytest.mark.parametrize("test_fraction", [0.0, 0.1])
def test_a_network_that_flattens_what_it_is_given(tmp_path: Path, test_fraction: float) -> None:
    classes().to_csv(tmp_path / "table.csv", index=False)
    data = {"target": "kind", "task": "classification", "test_fraction": test_fraction}
    result = run_build(config(tmp_path, data=data, map=SHORT), factory=Flattening)
    assert len(result.metrics) == (5 if test_fraction else 2)


class Waves(Flattening):
    """The same layers, of which it makes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.cos(self.body(x)))
        return out


def test_another_forward_of_the_same_layers_is_trained_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes().to_csv(tmp_path / "table.csv", index=False)
    options = config(tmp_path, data={"target": "kind", "task": "classification"}, map=SHORT)
    run_build(options, factory=Flattening)
    Waves.__name__ = Flattening.__name__  # as after an edit
    monkeypatch.setattr(learning, "train_anchors", fail)
    run_build(options, factory=Flattening)
    with pytest.raises(AssertionError):
        run_build(options, factory=Waves)


class Probable(Flattening):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).softmax(1)


def test_what_a_user_should_know_of_the_network_is_noted(tmp_path: Path) -> None:
    classes().to_csv(tmp_path / "table.csv", index=False)
    torch.manual_seed(0)
    save_file(Probable().state_dict(), tmp_path / "trained.safetensors")
    options = config(
        tmp_path,
        data={"target": "kind", "task": "classification"},
        map={"anchors": None},
        network={"weights": tmp_path / "trained.safetensors"},
    )
    build = run_build(options, factory=Probable).bundle.manifest.build
    assert build.given_weights
    assert [w.split(":")[0].split(" (")[0] for w in build.warnings[:2]] == [
        "Weights were given",
        "The network's outputs are probabilities",
    ]
