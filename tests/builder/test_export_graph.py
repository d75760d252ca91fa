"""Where the trunk ends: as few and as small tensors as do, each with the batch as its first axis."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from builder.export import export_network, run_exported
from builder.network import FunctionalNetwork
from builder.onnx_graph import Graph, GraphError, find_cut, scan_model


class Parts(nn.Module):
    """A fixed part and a random head, put together by `join`."""

    def __init__(self, head: int, join: Callable[[Parts, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = nn.Linear(5, 4)
        self.head = nn.Linear(head, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, x)


def with_token(parts: Parts, x: Tensor) -> Tensor:
    """A random token in front of each row, which needs the number of rows."""
    h = parts.body(x)[:, None]
    return parts.head(torch.cat([parts.token.expand(x.shape[0], -1, -1), h], dim=1).tanh().mean(1))


def with_skip(parts: Parts, x: Tensor) -> Tensor:
    """The raw inputs reach the random head too."""
    return parts.head(x) + parts.body(x).tanh()[:, :2]


def with_features(parts: Parts, x: Tensor) -> Tensor:
    """Three cheap features of each hidden unit."""
    h = parts.body(x)
    return parts.head(torch.cat([h, h.sin(), h * h], dim=1))


def transposed(parts: Parts, x: Tensor) -> Tensor:
    """The head sees the batch as its last axis."""
    h = parts.body(x).T.contiguous()
    return (parts.head.weight @ h).T + parts.head.bias


def scaled_only(parts: Parts, x: Tensor) -> Tensor:
    """Nothing but element-wise work before the head."""
    return parts.head(x * 2 + 1) + parts.body.bias[:2]


def two_values(parts: Parts, x: Tensor) -> Tensor:
    """The head sees a value both before and after its activation."""
    h = parts.body(x)
    return parts.head(h) + parts.head(h.relu())


@pytest.mark.parametrize(
    ("join", "head", "posterior", "widths"),
    [
        (with_token, 4, "head|token", [4]),
        (with_skip, 5, "head", [5, 2]),
        (with_features, 12, "head", [4]),
        (transposed, 4, "head", [4]),
        (two_values, 4, "head", [4]),
        (scaled_only, 5, "head", []),
    ],
)
def test_the_cut(join: Callable[[Parts, Tensor], Tensor], head: int, posterior: str, widths: list[int]) -> None:
    torch.manual_seed(0)
    network = FunctionalNetwork(Parts(head, join), posterior)
    exported = export_network(network, torch.randn(4, 5))
    trunk = onnx.load_from_string(exported.trunk).graph.output if exported.trunk else []
    shapes = [[d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in trunk]
    assert [s[0] for s in shapes] == ["B"] * len(widths)
    assert [int(np.prod(s[1:])) for s in shapes] == widths
    for samples, rows in [(1, 1), (3, 7)]:
        thetas, x = torch.randn(samples, network.weights), torch.randn(rows, 5)
        with torch.no_grad():
            want = torch.stack([network(theta, x) for theta in thetas]).numpy()
        got = run_exported(exported, network, thetas, x)
        assert got.shape == want.shape
        assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


def model(nodes: list[onnx.NodeProto], rows: int | str = "n") -> onnx.ModelProto:
    """A graph over `inputs` (rows, 3) and the weights `w.one` (3, 2), with the constant `one`."""
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info("inputs", TensorProto.FLOAT, [rows, 3]),
            helper.make_tensor_value_info("w.one", TensorProto.FLOAT, [3, 2]),
        ],
        [helper.make_tensor_value_info("outputs.one", TensorProto.FLOAT, [rows, 2])],
        [helper.make_tensor("one", TensorProto.FLOAT, [3, 3], np.eye(3).ravel())],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_what_is_free_of_weights_stays_out_of_the_loop() -> None:
    graph = Graph.read(
        model(
            [
                helper.make_node("MatMul", ["inputs", "one"], ["free"]),
                helper.make_node("MatMul", ["free", "w.one"], ["product"]),
                helper.make_node("Tanh", ["product"], ["outputs.one"]),
            ]
        ),
        ["w.one"],
    )
    assert find_cut(graph) == ("free",)
    base = scan_model(graph, (), {"w": [3, 2]}, 2).graph
    assert [n.op_type for n in base.node] == ["MatMul", "Scan"]
    assert [n.op_type for n in base.node[1].attribute[0].g.node] == ["MatMul", "Tanh"]
    assert [t.name for t in base.initializer] == ["one"]
    without = scan_model(graph, ("free",), {"w": [3, 2]}, 2).graph
    assert [n.op_type for n in without.node] == ["Scan"]
    assert list(without.initializer) == []


def test_values_that_a_branch_takes_from_outside_are_seen() -> None:
    def branch(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, None)]
        )

    then = branch("then", helper.make_node("MatMul", ["free", "w.one"], ["then.out"]))
    other = branch("else", helper.make_node("MatMul", ["inputs", "w.one"], ["else.out"]))
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
    graph = Graph.read(
        model(
            [
                yes,
                helper.make_node("MatMul", ["inputs", "one"], ["free"]),
                helper.make_node("If", ["yes"], ["outputs.one"], then_branch=then, else_branch=other),
            ]
        ),
        ["w.one"],
    )
    assert set(find_cut(graph)) == {"inputs", "free"}


def test_a_graph_of_one_batch_size_is_refused() -> None:
    nodes = [helper.make_node("MatMul", ["inputs", "w.one"], ["outputs.one"])]
    with pytest.raises(GraphError, match="accepts 4 rows at a time only"):
        Graph.read(model(nodes, rows=4), ["w.one"])


def test_a_graph_that_ignores_the_weights_is_refused() -> None:
    ends = [helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in (("from", 0), ("to", 2), ("axis", 1))]
    ignoring = model([helper.make_node("Slice", ["inputs", "from", "to", "axis"], ["outputs.one"])])
    ignoring.graph.initializer.extend(ends)
    with pytest.raises(GraphError, match="do not depend on the random weights"):
        Graph.read(ignoring, ["w.one"])
