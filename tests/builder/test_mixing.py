"""Bases that mix their first layer of the decoder's columns, and the decoders that go with them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from builder.decoder import WeightDecoder
from builder.export import check_export, export_decoder, export_network
from builder.exported import ExportedNetwork, Session
from builder.mixing import matching_decoder, mixture_of
from builder.network import FunctionalNetwork
from model_store.errors import ConfigError
from model_store.layout import laid_out
from model_store.manifest import MIXING

WIDTH = 520


class Gated(nn.Module):
    """Two wide layers of the same inputs, one of them without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(WIDTH, 128, bias=False), nn.Linear(WIDTH, 128)
        self.last = nn.Linear(128, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.value(x) * torch.sigmoid(self.gate(x)))
        return out


class Tied(nn.Module):
    """A wide layer that is there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(torch.relu(self.first(torch.relu(self.first(x)))))
        return out


NETWORKS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "layers": (lambda: nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, 3)), {"weights.0.weight"}),
    "flattened": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 128), nn.Tanh(), nn.Linear(128, 2)),
        {"weights.1.weight"},
    ),
    "gated": (Gated, {"weights.value.weight", "weights.gate.weight"}),
    "tied": (Tied, set()),
    "narrow": (lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 3)), set()),
    "convolution": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, WIDTH)), nn.Conv1d(1, 2, 9), nn.Flatten(), nn.Linear(1024, 2)),
        set(),
    ),
}


def decoder_of(network: FunctionalNetwork, anchors: int = 2, rank: int = 3) -> WeightDecoder:
    """A decoder around the network's present weights."""
    decoder = WeightDecoder(anchors, dimension=4, hidden=8, rank=rank, weights=network.weights)
    nn.init.normal_(decoder.table)
    theta = network.current()
    spread = 0.1 * theta.square().mean().sqrt()
    bases = spread * torch.randn(anchors, rank, network.weights)
    decoder.set_head(theta + spread * torch.randn(anchors, network.weights), bases)
    return decoder


def run(exported: ExportedNetwork, own: dict[str, np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """Outputs (S, B, O) of the base, and of the row's file where there is one row, from decoded parameters."""
    found = [Session(exported.base).run({"inputs": x, **own})["outputs"]]
    if len(x) == 1 and exported.row is not None:
        row = Session(exported.row)
        given = {n: laid_out(n, s, own) for n, s in row.inputs.items() if n != "inputs"}
        found.append(row.run({"inputs": x, **given})["outputs"])
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_decoded_and_mixed_is_what_float64_gives(name: str) -> None:
    make, mixed = NETWORKS[name]
    torch.manual_seed(1)
    network = FunctionalNetwork(make())
    decoder = decoder_of(network)
    exported = export_network(network, torch.randn(4, WIDTH), decoder.head, 32)
    assert exported.spec.mixed.keys() == mixed
    assert exported.spec.random_weights == network.weights
    taken = {i.name for i in onnx.load_from_string(exported.base).graph.input}
    assert not taken & mixed and (MIXING in taken) == bool(mixed)

    parameters = exported.spec.parameters
    matching = Session(export_decoder(matching_decoder(decoder, network, exported.mixture), parameters))
    latents, anchors = torch.randn(5, 4), torch.tensor([0, 1, 1, 0, 1])
    found = matching.run({"latents": latents.numpy(), "anchors": anchors.numpy()})
    parts = {p.input: found[p.input].reshape(-1, *p.shape) for p in parameters}
    assert sum(p[0].size for p in parts.values()) == exported.spec.weights
    with torch.no_grad():
        thetas = decoder.double()(latents.double(), anchors)[1]
        exact = FunctionalNetwork(network.module.double())
    for rows in (1, 2, 33):
        x = torch.randn(rows, WIDTH)
        with torch.no_grad():
            want = torch.stack([exact(theta, x.double()) for theta in thetas]).numpy()
        for got in run(exported, parts, x.numpy()):
            assert got.shape == want.shape
            assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


def test_a_base_of_another_head_is_refused() -> None:
    torch.manual_seed(1)
    network = FunctionalNetwork(NETWORKS["layers"][0]())
    head, other = decoder_of(network).head, decoder_of(network).head
    exported = export_network(network, torch.randn(4, WIDTH), head, 32)
    assert check_export(network, exported, torch.randn(4, WIDTH), head) < 1e-5
    with pytest.raises(ConfigError, match="differs from torch"):
        check_export(network, exported, torch.randn(4, WIDTH), other)


def test_a_decoder_is_left_as_it_is() -> None:
    torch.manual_seed(1)
    network = FunctionalNetwork(NETWORKS["layers"][0]())
    decoder = decoder_of(network)
    before = decoder.head.clone()
    exported = export_network(network, torch.randn(4, WIDTH), decoder.head, 32)
    assert matching_decoder(decoder, network, exported.mixture).head.shape[1] < network.weights
    assert torch.equal(decoder.head, before)
    plain = export_network(network, torch.randn(4, WIDTH))
    assert not plain.spec.mixed and plain.spec.weights == network.weights
    assert matching_decoder(decoder, network, plain.mixture) is decoder


@pytest.mark.parametrize(("samples", "mixed"), [(11, True), (10, False)])
def test_more_columns_than_samples_are_not_mixed(samples: int, mixed: bool) -> None:
    torch.manual_seed(1)
    network = FunctionalNetwork(NETWORKS["layers"][0]())
    exported = export_network(network, torch.randn(4, WIDTH), decoder_of(network).head, samples)
    assert bool(exported.spec.mixed) == (exported.mixture is not None) == mixed


def test_only_independent_columns_count() -> None:
    torch.manual_seed(1)
    network = FunctionalNetwork(NETWORKS["layers"][0]())
    decoder = decoder_of(network)
    layer = decoder.head[:, : 128 * WIDTH]
    # Two columns in float32 that are made of the others, of very different lengths.
    layer[2], layer[5] = 1e-3 * layer[1], 50 * layer[4] - layer[7]
    mixture = mixture_of(network, decoder.head, ["weights.0.weight"])
    assert mixture.shares.shape == (8, 6)
    made = mixture.shares @ torch.from_numpy(mixture.heads["weights.0.weight"]).reshape(6, -1)
    assert float(((made - layer).norm(dim=1) / layer.norm(dim=1)).max()) < 1e-5
    exported = export_network(network, torch.randn(4, WIDTH), decoder.head, 8)
    assert exported.mixture is not None
