"""Linear layers in a row, whose graph is written beside torch's exporter: the same graph, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from onnx import NodeProto, helper
from torch import Tensor, nn

from builder.export import _exporting
from builder.network import MLP, FunctionalNetwork
from builder.onnx_chain import chain_graph
from builder.onnx_graph import Graph
from builder.onnx_traced import _one_by_torch


def every_function() -> nn.Module:
    functions = [nn.ReLU(), nn.Tanh(), nn.SiLU(), nn.GELU(), nn.GELU("tanh")]
    return nn.Sequential(*(part for f in functions for part in (nn.Linear(4, 4), f)), nn.Linear(4, 2))


def described(graph: Graph) -> list[tuple[str, dict[str, object], list[object]]]:
    """Each node's kind, attributes, and what it reads: a node by its place, or an input by its name."""
    places: dict[str, object] = {}
    found = []
    for i, node in enumerate(graph.nodes):
        found.append((node.op_type, attributes(node), [places.get(n, n) for n in node.input]))
        places[node.output[0]] = i
    return found


def attributes(node: NodeProto) -> dict[str, object]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def test_it_is_the_graph_that_torch_exports() -> None:
    network = FunctionalNetwork(every_function())
    ours = chain_graph(network, 4)
    with _exporting("network"):
        theirs = _one_by_torch(network, torch.zeros(5, 4))
    assert ours is not None
    assert described(ours) == described(theirs)
    assert ours.output == theirs.output
    assert ours.row_shape(ours.nodes[3].output[0]) == [4]
    assert {n for n in ours.sampled if n.startswith("weights.")} == {p.input + ".one" for p in network.parameters}


class Doubled(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Shifted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def tied() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer)


def hooked() -> nn.Module:
    module = MLP(4, [3], 2)
    module[0].register_forward_hook(lambda _module, _inputs, out: out + 1)
    return module


@pytest.mark.parametrize(
    "make",
    [
        lambda: Doubled(4, [3], 2),
        lambda: nn.Sequential(Shifted(4, 2)),
        tied,
        hooked,
        lambda: nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)),
        lambda: nn.Sequential(nn.Linear(4, 2, bias=False)),
        lambda: nn.Sequential(nn.Tanh(), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 2))),
    ],
    ids=["own forward", "own layer", "tied", "hook", "other layer", "no bias", "function first", "nested"],
)
def test_other_networks_are_left_to_the_exporter(make: Callable[[], nn.Module]) -> None:
    assert chain_graph(FunctionalNetwork(make()), 4) is None


def test_weights_that_are_fixed_are_left_to_the_exporter() -> None:
    assert chain_graph(FunctionalNetwork(MLP(4, [3], 2), "2"), 4) is None
