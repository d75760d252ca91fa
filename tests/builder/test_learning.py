"""The stages of a build: which are run again, what is refused before any, and what networks they bear."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import builder.learning as learning
from builder.pipeline import run_build
from model_store.errors import ConfigError
from tests.builder.builds import build_table, classes, config
from tests.builder.test_pipeline import fail

pytestmark = pytest.mark.usefixtures("rough_pictures")


def test_what_an_option_does_not_touch_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_table(tmp_path)
    for stage in ("train_anchors", "refit_anchors"):
        monkeypatch.setattr(learning, stage, fail)
    build_table(tmp_path, fiber={"momentum": 0.7})
    for stage in ("walk_fibers", "train_autoencoder"):
        monkeypatch.setattr(learning, stage, fail)
    build_table(tmp_path, fiber={"momentum": 0.7}, autoencoder={"first_rank": 2})


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
    result = run_build(config(tmp_path, data=data), factory=Flattening)
    assert len(result.metrics) == (5 if test_fraction else 2)


def test_other_statistics_of_the_same_weights_are_another_network(tmp_path: Path) -> None:
    torch.manual_seed(3)
    found = []
    for variance in (1.0, 25.0):
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        module[1].running_var.fill_(variance)
        found.append(learning._digest(module.requires_grad_(False)))
        torch.manual_seed(3)
    assert found[0] != found[1]
