"""Layers that are trained already and frozen by `requires_grad_(False)`: a build leaves them as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from builder.pipeline import run_build
from model_store.manifest import TRUNK_FILE, TableInput
from tests.builder.builds import config, serve, table, watched

pytestmark = pytest.mark.usefixtures("rough_pictures")


class Pretrained(nn.Module):
    """A frozen body with statistics of its own, and a head to be trained."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.body = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh())
            self.body(2 * torch.randn(50, 3))
        self.body.requires_grad_(False)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.body(x)
        out: Tensor = self.head(h)
        return out


def test_a_frozen_body_becomes_a_trunk_for_all_anchors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    table().to_csv(tmp_path / "table.csv", index=False)
    result = run_build(config(tmp_path), factory=Pretrained)
    manifest = result.bundle.manifest
    assert TRUNK_FILE in manifest.files and manifest.latent.anchors == 2 and manifest.network.weights == 9
    assert any(warning.startswith("Frozen parameters stay") for warning in manifest.build.warnings)

    (trained,) = seen
    plan, target = trained.plans["predict"], trained.dataset.target
    weights = trained.posterior.draw(plan, plan.samples)[0]
    assert isinstance(manifest.inputs, TableInput)
    column = manifest.inputs.columns[0]
    rows = [[(v - column.mean) / column.scale, red == 0, red] for v, red in ((0.5, 1), (-1.2, 0))]
    with torch.no_grad():
        h = Pretrained().eval().body(torch.tensor(rows, dtype=torch.float32))
        outputs = torch.stack([h @ w[:8] + w[8] for w in weights])
    expected = outputs.mean(0).numpy() * target.scale + target.mean
    answer = serve(result.bundle, [[0.5, "red"], [-1.2, "blue"]])
    np.testing.assert_allclose(answer["mean"], expected, rtol=1e-4, atol=1e-4)
