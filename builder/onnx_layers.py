"""The base of a network of linear layers, written for many weight vectors in the two ways that are fastest.

`columns_model`: activations are (S, n, B), so that weights multiply from the left in the layout that they have; the
first layer, whose input all samples share, is one product for all of them. `row_model`: the same for one row,
activations (S, 1, n), where a product is as fast as weights can be read. Both start from the graph for one weight
vector and take graphs of `Gemm` and element-wise nodes.

Weights are linear in the decoder's columns, and so is what a first layer makes of its input. Where it has fewer columns
than there are samples, it is computed once a column, and samples mix the results (`builder.mixing`).

Lengths: S weight vectors, B rows, O outputs, C columns that are mixed; a layer has n inputs and h outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from builder.onnx_graph import ELEMENTWISE, ONE, OUTPUTS, Cut, Graph, GraphError, base_model, base_of, reads
from model_store.layout import WIDE
from model_store.manifest import MIXING

Shape = Sequence[int]
Heads = Mapping[str, NDArray[np.float32]]
"""By a weight's input name the columns (C, h, n) that it is mixed of."""

WIDE_WEIGHTS = 2**16
"""From so many weights on, those of the first layer of 32 samples are too large for a processor's cache: then reading
them along rows that all samples share is faster than one dot product a hidden unit, by a third to a half."""


def first_layers(graph: Graph, cut: Cut, weights: Mapping[str, Shape]) -> list[str]:
    """Input names of what may be mixed: matrices of wide layers whose input all samples share, used nowhere else."""
    nodes = graph.needed([graph.output], cut)
    found = []
    for node in nodes:
        if node.op_type == "Gemm" and node.input[0] in graph.free and node.input[1].endswith(ONE):
            name = node.input[1].removesuffix(ONE)
            once = sum(node.input[1] in reads(other) for other in nodes) == 1
            if once and math.prod(weights[name]) >= WIDE_WEIGHTS:
                found.append(name)
    return found


def columns_model(
    graph: Graph, cut: Cut, weights: Mapping[str, Shape], outputs: int, heads: Heads | None = None
) -> ModelProto:
    """The base in columns, for any number of rows.

    Args:
        graph: for weight inputs of the given shapes, named with the suffix `ONE`, and the output (B, O).
        cut: what the trunk gives.
        weights: shapes by input name, without the suffix.
        outputs: O.
        heads: of the weights that are mixed, some of `first_layers`; `MIXING` is an input in their place.

    Raises:
        GraphError: there are other nodes than linear layers and element-wise ones, or a weight is used elsewhere.
    """
    layers = Columns(graph, weights, heads)
    layers.take(graph.needed([graph.output], cut))
    return base_model(graph, cut, layers.nodes, given_weights(weights, heads or {}), outputs, layers.constants)


def given_weights(weights: Mapping[str, Shape], heads: Heads) -> dict[str, Shape]:
    """Shapes of what a base takes, by input name: the weights that are not mixed, and what the others are mixed by."""
    given = {name: shape for name, shape in weights.items() if name not in heads}
    for head in heads.values():
        given[MIXING] = [len(head)]
    return given


def row_model(
    graph: Graph, cut: Cut, weights: Mapping[str, Shape], outputs: int, heads: Heads | None = None
) -> ModelProto:
    """`row.onnx`, see `model_store.manifest.ROW_FILE`; arguments and errors as of `columns_model`."""
    layers = _Row(graph, weights, heads)
    layers.take(graph.needed([graph.output], cut))
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in layers.inputs.items()]
    return base_of(graph, cut, layers.nodes, inputs, (1, outputs), layers.constants)


class Layers:
    """The nodes of a base, with the constants that they need beside the graph's own."""

    def __init__(self, graph: Graph, weights: Mapping[str, Shape], heads: Heads | None = None) -> None:
        self.graph, self.weights, self.heads = graph, weights, heads or {}
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._sampled: set[str] = set()

    def take(self, nodes: Sequence[NodeProto], given: Mapping[str, str] | None = None) -> None:
        """Adds the nodes that compute these for many samples, up to `OUTPUTS` (S, B, O).

        Args:
            nodes: in topological order, the last of which gives the graph's output.
            given: by name in these nodes, names of activations that are there already.

        Raises:
            GraphError: a node is neither a linear layer nor element-wise.
        """
        given = given or {}
        self._sampled.update(given.values())
        for node in nodes:
            own = helper.make_node(node.op_type, [given.get(n, n) for n in node.input], node.output)
            own.attribute.extend(node.attribute)
            if not set(node.output) & self.graph.sampled:
                self.nodes.append(own)
                continue
            if own.op_type == "Gemm":
                self._layer(own)
            elif own.op_type in ELEMENTWISE and all(map(self._is_elementwise, own.input)):
                self.nodes.append(own)
            else:
                raise GraphError(f"{own.op_type} is neither a linear layer nor element-wise")
            self._sampled.update(own.output)
        self.finish()

    def _layer(self, node: NodeProto) -> None:
        options = {a.name: a.f if a.name in ("alpha", "beta") else a.i for a in node.attribute}
        plain = options.get("transB") == 1 and not options.get("transA")
        if not plain or (options.get("alpha", 1.0), options.get("beta", 1.0)) != (1.0, 1.0):
            raise GraphError("Gemm is no linear layer")
        data, weight, bias = [*node.input, ""][:3]
        # A weight may enter as a layer's matrix or bias only, in the layout that it has there.
        if data in self._sampled and self._is_given(weight) and (not bias or self._is_given(bias)):
            self.layer(data, weight, bias, node.output[0])
        elif data in self.graph.free and weight.removesuffix(ONE) in self.heads and (not bias or bias.endswith(ONE)):
            self.mixed_layer(data, weight.removesuffix(ONE), bias, node.output[0])
        elif data in self.graph.free and weight.endswith(ONE) and (not bias or bias.endswith(ONE)):
            self.first_layer(data, weight, bias, node.output[0])
        else:
            raise GraphError("Gemm is no linear layer")

    def _is_given(self, name: str) -> bool:
        return name.endswith(ONE) or name in self.graph.constants

    def _is_elementwise(self, name: str) -> bool:
        return name in self._sampled or self.graph.is_scalar(name)

    def shape(self, name: str) -> Shape:
        """That of a weight without S, or of a constant."""
        constant = self.graph.constants.get(name)
        return self.weights[name.removesuffix(ONE)] if constant is None else constant.dims

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Adds a node; returns its output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def numbers(self, name: str, values: list[int]) -> str:
        """Adds a constant; returns its name."""
        self.constants.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name=name))
        return name

    def by_column(self, data: str, weight: str, output: str) -> str:
        """Adds the product of what all samples share (B, n) with the columns of a matrix; returns its name (B, C*h)."""
        head = self.heads[weight]
        self.constants.append(numpy_helper.from_array(head.reshape(-1, head.shape[-1]), name=f"{weight}.head"))
        return self.add("Gemm", [data, f"{weight}.head"], f"{output}.by_column", transB=1)

    def reshaped(self, weight: str, shape: list[int], output: str) -> str:
        """Adds a weight in another shape, that of all samples together; returns its name."""
        return self.add("Reshape", [weight.removesuffix(ONE), self.numbers(f"{output}.shape", shape)], output)

    def first_layer(self, data: str, weight: str, bias: str, output: str) -> None:
        """From what all samples share (B, n)."""
        raise NotImplementedError

    def mixed_layer(self, data: str, weight: str, bias: str, output: str) -> None:
        """The same, mixed of its columns."""
        raise NotImplementedError

    def layer(self, data: str, weight: str, bias: str, output: str) -> None:
        """From what differs from sample to sample."""
        raise NotImplementedError

    def finish(self) -> None:
        """Makes `OUTPUTS` (S, B, O) of the last activations."""
        raise NotImplementedError


class Columns(Layers):
    """Activations (S, n, B)."""

    def first_layer(self, data: str, weight: str, bias: str, output: str) -> None:
        h, n = self.shape(weight)
        name = f"{output}.columns"
        flat = [self.reshaped(weight, [-1, n], f"{name}.weight"), data]
        if bias:
            flat.append(self.reshaped(bias, [-1, 1], f"{name}.bias"))
        self.add("Gemm", flat, f"{name}.flat", transB=1)
        self._apart(data, f"{name}.flat", h, output)

    def mixed_layer(self, data: str, weight: str, bias: str, output: str) -> None:
        count, h, _ = self.heads[weight].shape
        flat = self.by_column(data, weight, output)
        # Not transposed as it is: ONNX Runtime would take that into the product, and then cannot pack the columns.
        apart = self.add("Reshape", [flat, self.numbers(f"{output}.apart", [-1, count, h])], f"{flat}.apart")
        turned = self.add("Transpose", [apart], f"{flat}.turned", perm=[1, 2, 0])
        table = self.add("Reshape", [turned, self.numbers(f"{output}.table", [count, -1])], f"{flat}.table")
        mixed = self.add("MatMul", [MIXING, table], f"{output}.mixed")
        if not bias:
            self._apart(data, mixed, h, output)
            return
        self._apart(data, mixed, h, f"{output}.product")
        self._add_bias(f"{output}.product", bias, output)

    def _apart(self, data: str, flat: str, h: int, output: str) -> None:
        """Adds (S, h, B) of values in this order but of another shape; B is that of `data`."""
        self.add("Shape", [data], f"{output}.rows", start=0, end=1)
        self.add("Concat", [self.numbers(f"{output}.own", [-1, h]), f"{output}.rows"], f"{output}.shape", axis=0)
        self.add("Reshape", [flat, f"{output}.shape"], output)

    def _add_bias(self, product: str, bias: str, output: str) -> None:
        column = self.add("Unsqueeze", [bias.removesuffix(ONE), self.numbers(f"{output}.axis", [-1])], f"{output}.bias")
        self.add("Add", [product, column], output)

    def layer(self, data: str, weight: str, bias: str, output: str) -> None:
        product = self.add("MatMul", [weight.removesuffix(ONE), data], f"{output}.product" if bias else output)
        if bias:
            self._add_bias(product, bias, output)

    def finish(self) -> None:
        self.add("Transpose", [self.graph.output], OUTPUTS, perm=[0, 2, 1])


class _Row(Layers):
    """Activations (S, 1, n). The weights enter in the layouts of `model_store.layout`, which cost no node."""

    def __init__(self, graph: Graph, weights: Mapping[str, Shape], heads: Heads | None = None) -> None:
        super().__init__(graph, weights, heads)
        self.inputs: dict[str, list[int | str]] = {}

    def first_layer(self, data: str, weight: str, bias: str, output: str) -> None:
        h, n = self.shape(weight)
        flat = f"{output}.flat"
        wide = h * n >= WIDE_WEIGHTS
        if wide:
            given = [data, self._given(weight.removesuffix(ONE) + WIDE, [n, f"S*{h}"])]
        else:
            given = [data, self._given(weight, [f"S*{h}", n])]
        if bias:
            given.append(self._given(bias, [f"S*{h}"]))
        self.add("Gemm", given, flat, transB=int(not wide))
        self.add("Reshape", [flat, self.numbers(f"{output}.shape", [-1, 1, h])], output)

    def mixed_layer(self, data: str, weight: str, bias: str, output: str) -> None:
        count, h, _ = self.heads[weight].shape
        flat = self.by_column(data, weight, output)
        table = self.add("Reshape", [flat, self.numbers(f"{output}.table", [count, h])], f"{flat}.table")
        mixed = self.add("MatMul", [self._given(MIXING, ["S", count]), table], f"{output}.mixed")
        row = f"{output}.product" if bias else output
        self.add("Reshape", [mixed, self.numbers(f"{output}.shape", [-1, 1, h])], row)
        if bias:
            self.add("Add", [row, self._given(bias, ["S", 1, h])], output)

    def layer(self, data: str, weight: str, bias: str, output: str) -> None:
        h, n = self.shape(weight)
        sampled = weight.endswith(ONE)
        matrix = self._given(weight, ["S", h, n]) if sampled else weight
        result = f"{output}.product" if bias else output
        if h == 1:
            # So many dot products one by one take longer than all together.
            products = self.add("Mul", [data, matrix], f"{output}.products")
            product = self.add("ReduceSum", [products, self.numbers(f"{output}.axis", [-1])], result, keepdims=1)
        else:
            # ONNX Runtime takes the transposition into the product.
            turned = self.add("Transpose", [matrix], f"{output}.turned", perm=[0, 2, 1] if sampled else [1, 0])
            product = self.add("MatMul", [data, turned], result)
        if bias:
            self.add("Add", [product, self._given(bias, ["S", 1, h]) if bias.endswith(ONE) else bias], output)

    def finish(self) -> None:
        self.add("Identity", [self.graph.output], OUTPUTS)

    def _given(self, weight: str, shape: list[int | str]) -> str:
        name = weight.removesuffix(ONE)
        if self.inputs.setdefault(name, shape) != shape:
            raise GraphError(f"{name} is used in two ways")
        return name


class Rows(_Row):
    """Activations (S, B, n), of layers behind what differs from sample to sample. Weights enter as in the base."""

    def first_layer(self, data: str, weight: str, bias: str, output: str) -> None:
        raise GraphError("a linear layer of what all samples share")

    def _given(self, weight: str, shape: list[int | str]) -> str:
        name = weight.removesuffix(ONE)
        if len(shape) == len(self.shape(weight)) + 1:
            return name
        own = f"{name}.row"
        if all(own not in n.output for n in self.nodes):
            self.reshaped(weight, [-1, *(n for n in shape if isinstance(n, int))], own)
        return own
