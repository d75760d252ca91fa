"""The base of a network of convolutions, of which every part is written for many weight vectors as is fastest for it.

A convolution whose input all samples share is one convolution with the channels of all samples, and so are element-wise
nodes and pooling behind it: activations are (B, S * channels, height, width). Linear layers at the end are those of
`builder.onnx_layers`. What lies between loops over the samples in a `Scan`: ONNX has no convolution of as many groups
as the inputs say.

Lengths: S weight vectors, B rows, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import ModelProto, NodeProto, TensorProto, helper

from builder.onnx_graph import ELEMENTWISE, ONE, Cut, Graph, GraphError, base_model, constants_of, reads
from builder.onnx_layers import Columns, Layers

_POOLING = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})


def images_model(graph: Graph, cut: Cut, weights: Mapping[str, Sequence[int]], outputs: int) -> ModelProto:
    """The base; arguments as of `builder.onnx_layers.columns_model`.

    Raises:
        GraphError: it does not begin with a convolution and end with linear layers.
    """
    nodes = graph.needed([graph.output], cut)
    outer = [n for n in nodes if not set(n.output) & graph.sampled]
    sampled = [n for n in nodes if set(n.output) & graph.sampled]
    wide = shared_convolutions(graph, sampled)
    start, layers = last_layers(graph, sampled)
    rest = [n for n in sampled if n not in wide and n not in layers]
    if not wide or not any(start in n.output for n in rest):
        raise GraphError("there is no convolution that all samples share the input of, or no linear layer at the end")

    made = Columns(graph, weights)
    made.nodes += outer
    for node in wide:
        widen(made, node)
    used = {name for node in rest for name in reads(node)}
    given = [n for node in wide for n in node.output if n in used]
    apart = [stacked(made, name) for name in given]
    own = [n for n in weights if n + ONE in used]
    shared = {n for node in [*outer, *wide] for n in reads(node)}
    loop = helper.make_graph(
        rest,
        "one_weight_vector",
        [helper.make_tensor_value_info(n + ONE, TensorProto.FLOAT, list(weights[n])) for n in own]
        + [graph.values[name] for name in given],
        [helper.make_tensor_value_info(start, TensorProto.FLOAT, None)],
        initializer=[t for t in constants_of(graph, rest) if t.name not in shared],
    )
    inputs = [*own, *apart]
    rows = f"{start}.stacked"
    made.nodes.append(helper.make_node("Scan", inputs, [rows], name="samples", body=loop, num_scan_inputs=len(inputs)))
    made.add("Transpose", [rows], f"{start}.turned", perm=[0, 2, 1])
    # Keeps ONNX Runtime from taking the transposition into the product, which would be slow for one row.
    (width,) = graph.row_shape(start)
    made.add("Reshape", [f"{start}.turned", made.numbers(f"{start}.shape", [0, width, -1])], f"{start}.columns")
    made.take(layers, {start: f"{start}.columns"})
    return base_model(graph, cut, made.nodes, weights, outputs, made.constants)


def shared_convolutions(graph: Graph, sampled: Sequence[NodeProto]) -> list[NodeProto]:
    """The convolutions of what all samples share, with what follows them that treats each channel alike."""
    found: list[NodeProto] = []
    values: set[str] = set()
    for node in sampled:
        if node.op_type == "Conv":
            data, *weights = node.input
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            fits = graph.has_rows(data) and data in graph.free and groups == 1 and all(w.endswith(ONE) for w in weights)
        elif node.op_type in _POOLING:
            fits = node.input[0] in values and len(node.output) == 1
        else:
            fits = node.op_type in ELEMENTWISE and all(n in values or graph.is_scalar(n) for n in node.input)
        if fits:
            found.append(node)
            values.update(node.output)
    return found


def last_layers(graph: Graph, sampled: Sequence[NodeProto]) -> tuple[str, list[NodeProto]]:
    """The linear layers at the end, and the one value that they start from."""
    first = next((n for n in sampled if n.op_type == "Gemm"), None)
    if first is None:
        raise GraphError("there is no linear layer at the end")
    values, found = {first.input[0]}, []
    for node in sampled:
        if node.input[0] in values and node.op_type in {"Gemm", *ELEMENTWISE}:
            found.append(node)
            values.update(node.output)
    return first.input[0], found


def widen(made: Layers, node: NodeProto) -> None:
    """Takes up a node, whose activations are those of all samples."""
    wide = NodeProto()
    wide.CopyFrom(node)
    if node.op_type == "Conv":
        for i, weight in enumerate(node.input[1:], 1):
            shape = made.shape(weight)
            wide.input[i] = made.reshaped(weight, [-1, *shape[1:]], f"{node.output[0]}.wide.{i}")
    made.nodes.append(wide)


def stacked(made: Layers, name: str) -> str:
    """A value (B, S * c, ...) as (S, B, c, ...)."""
    shape = made.graph.row_shape(name)
    apart = made.add("Reshape", [name, made.numbers(f"{name}.shape", [0, -1, *shape])], f"{name}.apart")
    return made.add("Transpose", [apart], f"{name}.stacked", perm=[1, 0, *range(2, len(shape) + 2)])
