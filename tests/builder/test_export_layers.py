"""Linear layers and convolutions in the forms that are fastest for many weight vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from builder.export import export_network, run_exported
from builder.exported import ExportedNetwork
from builder.network import MLP, FunctionalNetwork
from model_store.layout import WIDE, laid_out


class Residual(nn.Module):
    """Two ways from the inputs to the outputs, and one around a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.skip = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(5, 2)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        h = h + torch.tanh(self.inner(h))
        return self.last(h) + 0.5 * self.skip(x)


class Tied(nn.Module):
    """One matrix as the first layer and, turned, as the last."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.weight) @ self.weight.T


LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "one output": (lambda: MLP(5, [7], 1, "tanh"), ".*"),
    "three layers": (lambda: MLP(5, [7, 4], 3, "silu"), ".*"),
    "wide": (lambda: nn.Sequential(nn.Linear(5, 2**14), nn.ReLU(), nn.Linear(2**14, 2)), ".*"),
    "no biases": (lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.GELU(), nn.Linear(4, 2, bias=False)), ".*"),
    "one layer": (lambda: nn.Linear(5, 3), ".*"),
    "residual": (Residual, ".*"),
    "first layer": (lambda: MLP(5, [7, 4], 1), "0"),
    "last layer": (lambda: MLP(5, [7, 4], 2), "4"),
}

OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "normalised": (lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2)), ".*"),
    "tied": (Tied, ".*"),
    "first bias": (lambda: MLP(5, [7], 1), r"0\.bias"),
}

IMAGES: dict[str, Callable[[], nn.Module]] = {
    "two convolutions": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    ),
    "one convolution": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, bias=False), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 2)
    ),
    "normalised": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ),
}


def exported(make: Callable[[], nn.Module], posterior: str, shape: tuple[int, ...]) -> ExportedNetwork:
    """The export of a network, after it was held against torch in float64."""
    torch.manual_seed(3)
    network = FunctionalNetwork(make(), posterior)
    found = export_network(network, torch.randn(4, *shape))
    for samples, rows in [(1, 1), (5, 1), (1, 3), (6, 9)]:
        thetas, x = torch.randn(samples, network.weights), torch.randn(rows, *shape)
        got = run_exported(found, network, thetas, x)
        with torch.no_grad():
            network.module.double()
            exact = FunctionalNetwork(network.module, posterior)
            want = torch.stack([exact(theta, x.double()) for theta in thetas.double()]).numpy()
            network.module.float()
        assert got.shape == want.shape
        assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    return found


def kinds(data: bytes) -> list[str]:
    return [n.op_type for n in onnx.load_from_string(data).graph.node]


@pytest.mark.parametrize("name", LAYERS)
def test_linear_layers_have_a_graph_for_one_row(name: str) -> None:
    found = exported(*LAYERS[name], (5,))
    assert found.row is not None
    assert found.spec.form == "batched"
    graph = onnx.load_from_string(found.row).graph
    own = [i.name for i in graph.input if i.name.startswith("weights.")]
    assert {n.removesuffix(WIDE) for n in own} == {p.input for p in found.spec.parameters}
    assert any(n.endswith(WIDE) for n in own) == (name == "wide")
    # The layer whose input all samples share is one product.
    assert kinds(found.base).count("Gemm") == kinds(found.row).count("Gemm") == (2 if name == "residual" else 1)


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_do_without(name: str) -> None:
    assert exported(*OTHERS[name], (5,)).row is None


@pytest.mark.parametrize("name", IMAGES)
def test_a_convolution_of_the_inputs_is_one_for_all_samples(name: str) -> None:
    found = exported(IMAGES[name], ".*", (2, 8, 8))
    assert (found.row, found.spec.form) == (None, "scan")
    outer = kinds(found.base)
    assert (outer.count("Conv"), outer.count("Scan")) == (1, 1)
    assert "MatMul" in outer[outer.index("Scan") :]
    (loop,) = (n for n in onnx.load_from_string(found.base).graph.node if n.op_type == "Scan")
    inner = [n.op_type for a in loop.attribute if a.name == "body" for n in a.g.node]
    assert inner.count("Conv") == int(name == "two convolutions")
    assert not {"Gemm", "MatMul"} & set(inner)


def test_weights_are_laid_out_as_a_graph_says() -> None:
    weight = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert laid_out("w", ["S", 1, 12], {"w": weight}).shape == (2, 1, 12)
    flat = laid_out("w", ["S*3", 4], {"w": weight})
    assert flat.shape == (6, 4)
    assert np.shares_memory(flat, weight)
    wide = laid_out("w" + WIDE, [4, "S*3"], {"w": weight})
    assert wide.flags.c_contiguous
    assert all(np.array_equal(wide[:, 3 * s : 3 * s + 3], weight[s].T) for s in range(2))
