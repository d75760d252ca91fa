"""First layers of fewer columns than the decoder has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from builder.decoder import WeightDecoder
from builder.export import export_network
from builder.likelihood import CategoricalLikelihood, GaussianLikelihood
from builder.narrowing import narrow_first_layers
from builder.network import FunctionalNetwork
from model_store.manifest import LatentPlan

WIDTH, HIDDEN, RANK = 512, 128, 12
FIRST = HIDDEN * WIDTH
PLAN = LatentPlan(name="predict", samples=32, drift_scale=1.0)


def layers(outputs: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, outputs))


class Own(nn.Module):
    """A linear layer that is none of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(HIDDEN, WIDTH) / WIDTH**0.5)
        self.bias = nn.Parameter(torch.zeros(HIDDEN))
        self.last = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(F.linear(x, self.first, self.bias)))
        return out


class Posterior:
    """A decoder of twelve columns around a network's weights, and nodes of its latent space.

    What the first layer makes of rows varies in three directions only, and in others hardly.
    """

    def __init__(self, module: nn.Module, hardly: float, anchors: int = 1) -> None:
        torch.manual_seed(2)
        self.network = FunctionalNetwork(module)
        self.decoder = WeightDecoder(anchors, dimension=4, hidden=8, rank=RANK, weights=self.network.weights)
        nn.init.normal_(self.decoder.table)
        self.decoder.requires_grad_(False)
        theta = self.network.current()
        bases = theta.square().mean().sqrt() * torch.randn(anchors, RANK, self.network.weights)
        bases[:, 3:, :FIRST] *= hardly
        self.decoder.set_head(theta.expand(anchors, -1), bases)
        direction = F.normalize(torch.randn(anchors, 8, 1, 4), dim=-1)
        self.nodes = direction * torch.linspace(0, 1, 6)[:, None]
        self.x = torch.randn(300, WIDTH)

    def narrowed(self, columns: int | None = None, plan: LatentPlan = PLAN) -> WeightDecoder:
        likelihood = GaussianLikelihood(0.02)
        return narrow_first_layers(self.network, self.decoder, self.nodes, self.x, likelihood, plan, columns)

    def columns(self, decoder: WeightDecoder) -> int:
        """Independent ones of the first layer, the mean among them."""
        return int(torch.linalg.matrix_rank(decoder.head[:, :FIRST].double(), rtol=1e-6))


def test_as_many_columns_are_kept_as_answers_need() -> None:
    own = Posterior(layers(), hardly=1e-3)
    before = own.decoder.head.clone()
    narrow = own.narrowed()
    assert torch.equal(own.decoder.head, before)
    assert own.columns(own.decoder) == 1 + RANK
    assert own.columns(narrow) == 4
    assert torch.equal(narrow.head[:, FIRST:], before[:, FIRST:])
    latents, anchors = 0.8 * own.nodes[0, :, -1], torch.zeros(8, dtype=torch.long)
    outputs = [own.network.batched(d(latents, anchors)[1], own.x) for d in (own.decoder, narrow)]
    assert float((outputs[0] - outputs[1]).abs().max()) < 0.02 * float(outputs[0].std(0).mean())
    exported = export_network(own.network, own.x[:4], narrow.head, PLAN.samples)
    assert exported.mixture is not None and exported.mixture.shares.shape[1] == 4


def test_where_answers_would_differ_all_columns_stay() -> None:
    own = Posterior(layers(), hardly=1.0)
    assert own.narrowed(plan=PLAN.model_copy(update={"samples": 4})) is own.decoder
    # A recipe may ask for fewer all the same, or for no fewer.
    assert own.columns(own.narrowed(2)) == 3
    own = Posterior(layers(), hardly=1e-3)
    assert own.narrowed(0) is own.decoder


def test_anchors_have_columns_of_their_own() -> None:
    own = Posterior(layers(), hardly=1e-3, anchors=3)
    assert own.columns(own.narrowed(3)) == 1 + 3 * 3  # means are the same
    many = Posterior(layers(), hardly=1e-3, anchors=12)
    assert many.narrowed() is many.decoder


def test_classes_are_answered_as_before() -> None:
    module = layers(3)
    with torch.no_grad():
        module[2].weight.mul_(30.0)
    own = Posterior(module, hardly=1e-3)
    narrow = narrow_first_layers(own.network, own.decoder, own.nodes, own.x, CategoricalLikelihood(3), PLAN)
    assert own.columns(narrow) == 4


@pytest.mark.parametrize(
    "make",
    [
        Own,
        lambda: nn.Sequential(nn.Linear(WIDTH, 100), nn.Tanh(), nn.Linear(100, 1)),
        lambda: nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 1)),
        lambda: nn.Sequential(nn.Unflatten(1, (1, WIDTH)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(1020, 1)),
    ],
    ids=["own layer", "small", "normalised", "convolution"],
)
def test_other_networks_are_left_alone(make: Callable[[], nn.Module]) -> None:
    own = Posterior(make(), hardly=1e-3)
    assert own.narrowed(2) is own.decoder
