"""Graph surgery on an exported network: the trunk is cut off, and one weight vector becomes many.

Three kinds of nodes, told apart by what they depend on:

- sampled: on a random weight, so they differ from sample to sample;
- free: on the network's input only, so one run serves every sample;
- constant: on neither; such nodes are copied to wherever they are needed.

Lengths: S weight vectors, B rows, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import (
    AttributeProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    checker,
    helper,
    shape_inference,
)

OPSET = 20
IR_VERSION = 10
"""With operator set 20: what ONNX Runtime reads since 1.18, and what torch writes without converting."""

INPUTS, OUTPUTS = "inputs", "outputs"
ONE = ".one"
"""Suffix of what belongs to one weight vector, inside the Scan."""

_LAYOUT = (
    "Cast CastLike Concat Constant ConstantOfShape Expand Flatten Gather Identity Pad Range Reshape Shape Size Slice "
    "Split Squeeze Tile Transpose Unsqueeze"
)
_ELEMENTWISE = (
    "Abs Add And Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater HardSigmoid HardSwish LeakyRelu Less Log Max "
    "Min Mish Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Tanh "
    "ThresholdedRelu Where"
)
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
_CHEAP = ELEMENTWISE | frozenset(_LAYOUT.split())


Cut = tuple[str, ...]
"""The values that end the trunk and begin the base; empty where there is no trunk."""


class GraphError(Exception):
    """The graph cannot be rewritten; the message says why."""


@dataclass(frozen=True)
class Graph:
    """An ONNX graph with what the surgery asks of it.

    Attributes:
        nodes: in topological order.
        constants: initialisers by name.
        values: type and shape by value name, as far as known.
        producers: the node that computes a value.
        sampled, free: names of the values of each kind; the rest is constant.
        rows: symbol of the batch axis.
        output: name of the graph's output.
    """

    nodes: list[NodeProto]
    constants: Mapping[str, TensorProto]
    values: Mapping[str, ValueInfoProto]
    output: str
    rows: str
    producers: dict[str, NodeProto] = field(default_factory=dict)
    sampled: set[str] = field(default_factory=set)
    free: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, model: ModelProto, weights: Iterable[str]) -> Graph:
        """Sorts the values of a model with the input `inputs` (B, ...) and the given weight inputs, if it has any, into
        their kinds.

        Raises:
            GraphError: the batch axis is fixed, or the output depends on no random weight.
        """
        graph = shape_inference.infer_shapes(model).graph
        values = {v.name: v for v in [*graph.value_info, *graph.input, *graph.output]}
        rows = _dimensions(values[INPUTS])[0]
        if not isinstance(rows, str):
            raise GraphError(f"it accepts {rows} rows at a time only")
        self = cls(list(graph.node), {t.name: t for t in graph.initializer}, values, graph.output[0].name, rows)
        self.sampled.update(weights)
        fixed = not self.sampled
        self.free.add(INPUTS)
        for node in self.nodes:
            used = reads(node)
            kind = self.sampled if used & self.sampled else self.free if used & self.free else None
            for name in filter(None, node.output):
                self.producers[name] = node
                if kind is not None:
                    kind.add(name)
        if self.output not in self.sampled and not fixed:
            raise GraphError("its outputs do not depend on the random weights")
        return self

    def has_rows(self, name: str) -> bool:
        """Whether a value is known to have the batch as its first axis."""
        dimensions = _dimensions(self.values[name]) if name in self.values else []
        return bool(dimensions) and dimensions[0] == self.rows

    def row_size(self, name: str) -> float:
        """Elements a row of a value; infinite where unknown."""
        sizes = _dimensions(self.values[name])[1:]
        return math.inf if any(isinstance(n, str) for n in sizes) else math.prod(int(n) for n in sizes)

    def row_shape(self, name: str) -> list[int]:
        """Shape of a value without its rows; GraphError where it is not known."""
        sizes = _dimensions(self.values[name])[1:] if self.has_rows(name) else []
        if not sizes or any(isinstance(n, str) for n in sizes):
            raise GraphError(f"the shape of {name} is not known")
        return [int(n) for n in sizes]

    def is_scalar(self, name: str) -> bool:
        """Whether a value is a constant of one element."""
        return name in self.constants and math.prod(self.constants[name].dims) == 1

    def sources(self, node: NodeProto) -> set[str]:
        """Free values that a node uses, but for the number of rows, which every tensor with rows tells."""
        return {n for n in reads(node) & self.free if n == INPUTS or not self.counts_rows(self.producers[n])}

    def counts_rows(self, node: NodeProto) -> bool:
        """Whether a node computes B as a tensor of shape (1,)."""
        if node.op_type != "Shape" or not self.has_rows(node.input[0]):
            return False
        ends = {a.name: a.i for a in node.attribute}
        return ends.get("start", 0) == 0 and ends.get("end") == 1

    def needed(self, names: Iterable[str], given: Cut = ()) -> list[NodeProto]:
        """The nodes that compute `names`, in order, from the values `given` or else from the inputs.

        Where values are given, the number of rows is read off the first of them.
        """
        wanted, stop = set(names), set(given)
        taken: list[NodeProto] = []
        for node in reversed(self.nodes):
            if not (wanted - stop) & set(node.output):
                continue
            if given and node.output[0] in self.free and self.counts_rows(node):
                node = helper.make_node("Shape", [given[0]], [*node.output], start=0, end=1)
            taken.append(node)
            wanted |= reads(node)
        return taken[::-1]


def reads(node: NodeProto) -> set[str]:
    """Names of the values a node uses, those its subgraphs take from outside included."""
    names = {n for n in node.input if n}
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
            inner = {i.name for i in graph.input} | {t.name for t in graph.initializer}
            for child in graph.node:
                names |= reads(child) - inner
                inner |= set(child.output)
            names |= {o.name for o in graph.output} - inner
    return names


def find_cut(graph: Graph) -> Cut:
    """The cut with the fewest elements a row that a greedy search finds, empty where no trunk is worth it.

    Starts behind the last free nodes, so that the trunk does all it can. A value that does not have the batch as its
    first axis is computed in the base instead, from what its node reads; so are layout and element-wise nodes, if that
    makes the cut smaller. A trunk of nothing but such nodes is none.
    """
    cut = {n for node in graph.nodes if set(node.output) & graph.sampled for n in graph.sources(node)}
    while unfit := {n for n in cut if not graph.has_rows(n)}:
        cut = (cut - unfit).union(*(graph.sources(graph.producers[n]) for n in unfit))
    while smaller := _smaller(graph, cut):
        cut = smaller
    if all(n.op_type in _CHEAP for n in graph.needed(cut)):
        return ()
    return tuple(n for n in [INPUTS, *graph.producers] if n in cut)


def _smaller(graph: Graph, cut: set[str]) -> set[str] | None:
    """The smallest cut that has one more value in it and leaves the cheap nodes behind that value to the base."""
    cheap: list[NodeProto] = []
    reached = set(cut)
    for node in reversed(graph.nodes):
        if node.op_type in _CHEAP and set(node.output) & reached:
            cheap.insert(0, node)
            reached |= graph.sources(node)
    best, least = None, _size(graph, cut)
    for start in sorted(reached):
        behind, before = {start}, set[str]()
        for node in cheap:
            if behind & graph.sources(node):
                behind.update(node.output)
                before |= graph.sources(node)
        candidate = (cut | before) - behind | {start}
        if all(map(graph.has_rows, candidate)) and (size := _size(graph, candidate)) < least:
            best, least = candidate, size
    return best


def _size(graph: Graph, cut: Iterable[str]) -> float:
    return sum(map(graph.row_size, cut))


def trunk_model(graph: Graph, cut: Cut) -> ModelProto:
    """The trunk: `inputs` (B, ...) -> the cut's values, under the names that `cut_names` gives."""
    nodes = graph.needed(cut)
    nodes += [helper.make_node("Identity", [v], [n]) for v, n in zip(cut, cut_names(cut), strict=True) if v != n]
    outputs = [_value(graph, v, n) for v, n in zip(cut, cut_names(cut), strict=True)]
    return _model(graph, nodes, [_value(graph, INPUTS, INPUTS)], outputs, "trunk")


def fixed_model(graph: Graph, trunk: Sequence[str], output: str) -> ModelProto:
    """A graph without random weights, its output under a name of its own, from a trunk's outputs or from `inputs`.

    Args:
        graph: of the trunk's nodes, under the same names, and more.
        trunk: the trunk's outputs, those of `cut_names`; empty where there is none.
        output: what the graph's output is called.

    Raises:
        GraphError: it needs more than the trunk gives.
    """
    given = tuple(v for v in trunk if v in graph.producers)
    nodes = graph.needed([graph.output], given)
    used = {n for node in nodes for n in reads(node)}.union([graph.output])
    taken = [v for v in (given if trunk else (INPUTS,)) if v in used]
    if lacking := (used & graph.free).difference(taken, *(node.output for node in nodes)):
        raise GraphError(f"it needs {sorted(lacking)}, which the trunk does not give")
    nodes.append(helper.make_node("Identity", [graph.output], [output]))
    return _model(
        graph, nodes, [_value(graph, v, v) for v in taken], [_value(graph, graph.output, output)], "fixed_network"
    )


def cut_names(cut: Cut) -> list[str]:
    """Names of the trunk's outputs and base's inputs; a tensor cannot be input and output by the same name."""
    return [f"{v}.rows" if v == INPUTS else v for v in cut]


def batched_model(graph: Graph, cut: Cut, weights: Mapping[str, Sequence[int]], outputs: int) -> ModelProto:
    """The base of a graph whose nodes compute all samples, without what the trunk does.

    Args:
        graph: with weight inputs (S, *shape) and the output (S, B, O).
        cut: what the trunk gives.
        weights: shapes without S by input name.
        outputs: O.
    """
    return base_model(graph, cut, graph.needed([graph.output], cut), weights, outputs)


def scan_model(graph: Graph, cut: Cut, weights: Mapping[str, Sequence[int]], outputs: int) -> ModelProto:
    """The base of a graph for one weight vector, looped over the samples by a `Scan`.

    Sampled nodes go into the loop; free ones stay before it and run once.

    Args:
        graph: with weight inputs of the given shapes, named with the suffix `ONE`, and the output (B, O).
        cut: what the trunk gives.
        weights: shapes by input name, without the suffix.
        outputs: O.
    """
    needed = graph.needed([graph.output], cut)
    body = [n for n in needed if set(n.output) & graph.sampled]
    outer = [n for n in needed if not set(n.output) & graph.sampled]
    shared = {n for node in outer for n in reads(node)}
    loop = helper.make_graph(
        body,
        "one_weight_vector",
        [helper.make_tensor_value_info(n + ONE, TensorProto.FLOAT, list(s)) for n, s in weights.items()],
        [helper.make_tensor_value_info(graph.output, TensorProto.FLOAT, ["B", outputs])],
        initializer=[t for t in constants_of(graph, body) if t.name not in shared],
    )
    scan = helper.make_node("Scan", list(weights), [OUTPUTS], name="samples", body=loop, num_scan_inputs=len(weights))
    return base_model(graph, cut, [*outer, scan], weights, outputs)


def base_model(
    graph: Graph,
    cut: Cut,
    nodes: Sequence[NodeProto],
    weights: Mapping[str, Sequence[int]],
    outputs: int,
    constants: Sequence[TensorProto] = (),
) -> ModelProto:
    """The base that these nodes make, which take every weight as (S, *shape) and give the output (S, B, O).

    Args:
        constants: what the nodes need beside the graph's own.
    """
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["S", *s]) for n, s in weights.items()]
    return base_of(graph, cut, nodes, inputs, ("B", outputs), constants)


def base_of(
    graph: Graph,
    cut: Cut,
    nodes: Sequence[NodeProto],
    weights: Sequence[ValueInfoProto],
    rows_and_outputs: tuple[int | str, int],
    constants: Sequence[TensorProto] = (),
    operators: Sequence[str] = (),
) -> ModelProto:
    """The same with the weights as they are described, for any number of rows (`"B"`) or so many."""
    rows = rows_and_outputs[0]
    names = cut_names(cut)
    nodes = [helper.make_node("Identity", [n], [v]) for v, n in zip(cut, names, strict=True) if v != n] + [*nodes]
    inputs = [_value(graph, v, n, rows) for v, n in zip(cut, names, strict=True)]
    inputs = inputs or [_value(graph, INPUTS, INPUTS, rows)]
    output = helper.make_tensor_value_info(OUTPUTS, TensorProto.FLOAT, ["S", *rows_and_outputs])
    return _model(graph, nodes, [*inputs, *weights], [output], "base", constants, operators)


def _model(
    graph: Graph,
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    name: str,
    constants: Sequence[TensorProto] = (),
    operators: Sequence[str] = (),
) -> ModelProto:
    return model_of(nodes, inputs, outputs, name, [*constants_of(graph, nodes), *constants], operators)


def model_of(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    name: str,
    constants: Sequence[TensorProto],
    operators: Sequence[str] = (),
) -> ModelProto:
    """A file of these nodes, checked; `operators` are operator sets beside ONNX's."""
    model = helper.make_model(
        helper.make_graph(nodes, name, inputs, outputs, initializer=list(constants)),
        opset_imports=[helper.make_opsetid("", OPSET), *(helper.make_opsetid(o, 1) for o in operators)],
        ir_version=IR_VERSION,
        producer_name="fiberwalk",
    )
    checker.check_model(model)
    return model


def constants_of(graph: Graph, nodes: Iterable[NodeProto]) -> list[TensorProto]:
    """Those of the graph's constants that these nodes use."""
    used = {n for node in nodes for n in reads(node)}
    return [t for name, t in graph.constants.items() if name in used]


def _dimensions(value: ValueInfoProto) -> list[int | str]:
    """Length of each axis, or its symbol; empty where the rank is unknown."""
    axes = value.type.tensor_type.shape.dim
    return [a.dim_value if a.HasField("dim_value") else a.dim_param or "?" for a in axes]


def _value(graph: Graph, name: str, rename: str, rows: int | str = "B") -> ValueInfoProto:
    """Type and shape of a value that has rows, with so many or the batch axis called B."""
    kind = TypeProto()
    kind.CopyFrom(graph.values[name].type)
    axis = kind.tensor_type.shape.dim[0]
    if isinstance(rows, int):
        axis.dim_value = rows
    else:
        axis.dim_param = rows
    return helper.make_value_info(rename, kind)
