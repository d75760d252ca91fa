"""`decoder.onnx`, written node by node: what it computes is known, and torch's exporter takes seconds to find it out.

Lengths: S samples, A anchors, k latent dimensions, P weights of the parameters together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper
from torch import Tensor

from builder.decoder import FARTHEST, NEAREST, WeightDecoder
from builder.onnx_graph import IR_VERSION, OPSET
from model_store.manifest import ParameterSpec


def decoder_model(decoder: WeightDecoder, parameters: Sequence[ParameterSpec]) -> ModelProto:
    """The operations of `WeightDecoder.forward`, in their order: latents (S, k) and anchors (S,) -> coefficients
    (S, A*(1+rank)) and the parts of the weights (S, P) that the base takes, each by itself: cutting them out of the
    whole would copy them all once more."""
    anchors, columns = decoder.anchors, decoder.anchors * (1 + decoder.rank)
    graph = _Nodes()
    every = _coordinates(graph, decoder)
    own = graph.add("Equal", "anchors", graph.whole("each_anchor", np.arange(anchors)[:, None]))
    own = graph.add("Unsqueeze", graph.add("Cast", own, to=TensorProto.FLOAT), graph.whole("last", [-1]))
    masked = graph.add("Concat", own, graph.add("Mul", every, own), axis=-1)
    by_sample = graph.add("Transpose", masked, perm=[1, 0, 2])
    graph.add("Reshape", by_sample, graph.whole("columns", [-1, columns]), output="coefficients")
    sizes = {p.input: math.prod(p.shape) for p in parameters}
    for p in parameters:
        head = graph.tensor(f"head.{p.input}", decoder.head[:, p.offset : p.offset + sizes[p.input]])
        graph.add("MatMul", "coefficients", head, output=p.input)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "decoder",
            [
                helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["S", decoder.dimension]),
                helper.make_tensor_value_info("anchors", TensorProto.INT64, ["S"]),
            ],
            [
                helper.make_tensor_value_info("coefficients", TensorProto.FLOAT, ["S", columns]),
                *(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["S", n]) for name, n in sizes.items()),
            ],
            initializer=graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fiberwalk",
    )
    checker.check_model(model)
    return model


def _coordinates(graph: _Nodes, decoder: WeightDecoder) -> str:
    """`WeightDecoder.coordinates` (A, S, rank), of every anchor for every latent."""
    knots = decoder.knots
    one = graph.number("one", 1.0)
    shared = graph.add("Unsqueeze", "latents", graph.whole("first", [0]))
    latents = graph.add("Expand", shared, graph.whole("every", [decoder.anchors, 1, 1]))
    squares = graph.add("ReduceSum", graph.add("Mul", latents, latents), graph.whole("axis", [-1]), keepdims=1)
    size = graph.add("Sqrt", graph.add("Clip", squares, graph.number("nearest", NEAREST)))
    direction = graph.add("Div", latents, size)
    hidden = direction
    for i, (matrix, bias) in enumerate(zip(decoder.matrices, decoder.biases, strict=True)):
        product = graph.add("MatMul", hidden, graph.tensor(f"matrix_{i}", matrix))
        hidden = graph.add("Tanh", graph.add("Add", product, graph.tensor(f"bias_{i}", bias)))
    features = graph.add("Concat", direction, hidden, axis=-1)

    most = graph.number("knots", float(knots))
    place = graph.add("Clip", graph.add("Mul", size, most), one, most)
    away = graph.add("Abs", graph.add("Sub", place, graph.values("each_knot", np.arange(1.0, knots + 1))))
    hats = graph.add("Relu", graph.add("Sub", one, away))
    outer = graph.add(
        "Mul",
        graph.add("Unsqueeze", hats, graph.whole("inner", [-1])),
        graph.add("Unsqueeze", features, graph.whole("outer", [-2])),
    )
    table = graph.tensor("table", decoder.table)
    # Zero: as in the input, of which there are A and S.
    flat = graph.add("Reshape", outer, graph.whole("flat", [0, 0, decoder.table.shape[1]]))
    length = graph.add("Div", squares, size)
    if decoder.growth:
        grown = graph.add("Clip", length, "", graph.number("farthest", FARTHEST))
        grown = graph.add("Exp", graph.add("Mul", grown, graph.number("growth", decoder.growth)))
        length = graph.add("Div", graph.add("Sub", grown, one), graph.number("unit", math.expm1(decoder.growth)))
    return graph.add("Mul", graph.add("MatMul", flat, table), length)


class _Nodes:
    """The nodes and constants of a graph, in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: int | Sequence[int]) -> str:
        """Adds a node; returns its output."""
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def tensor(self, name: str, values: Tensor) -> str:
        """Adds a constant; returns its name."""
        return self.values(name, values.detach().numpy())

    def values(self, name: str, values: ArrayLike) -> str:
        return self._constant(name, np.asarray(values, dtype=np.float32))

    def number(self, name: str, value: float) -> str:
        return self.values(name, value)

    def whole(self, name: str, values: ArrayLike) -> str:
        return self._constant(name, np.asarray(values, dtype=np.int64))

    def _constant(self, name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
        self.constants.append(numpy_helper.from_array(values, name=name))
        return name
