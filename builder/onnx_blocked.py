"""The base of a network of convolutions in the layout in which ONNX Runtime convolves fastest.

That layout holds channels in blocks, as many as the processor's vectors are long, and weights too. ONNX Runtime puts
convolutions into it whose weights are constants. Here weights are inputs, so the nodes of its own operator set are
written out: `ReorderInput`, which also lays out weights, `Conv`, `MaxPool` and `ReorderOutput`. They are right for
blocks of 8 and of 16 channels alike; where a processor has neither, a server uses `base.onnx`. A second file lays out
the weights, once for all runs, in the blocks of the processor that it runs on.

As in `builder.onnx_images`, the first convolution is one for all samples and the others are in a loop over them. What
follows the last of them row by row is done for all samples at once, and so are the linear layers, in activations
(S, B, n).

Lengths: S weight vectors, B rows, O outputs; a convolution has c inputs and o outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from builder.onnx_graph import ONE, Cut, Graph, GraphError, base_of, constants_of, model_of, reads
from builder.onnx_images import last_layers, shared_convolutions, stacked, widen
from builder.onnx_layers import Layers, Rows
from model_store.layout import BLOCKS as LAID_OUT

DOMAIN = "com.microsoft.nchwc"
"""ONNX Runtime's operator set of the layout."""

_BLOCK, _LEAST = 16, 8
"""Channels of the largest block and of the smallest."""

_SAMPLES = "samples.count"

_CONV = frozenset({"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"})
_POOL = frozenset({"auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides"})


def blocked_models(
    graph: Graph, cut: Cut, weights: Mapping[str, Sequence[int]], outputs: int
) -> tuple[ModelProto, ModelProto]:
    """`blocked.onnx` and `blocks.onnx`, see `model_store.manifest`; arguments as of
    `builder.onnx_layers.columns_model`.

    Raises:
        GraphError: it does not begin with a convolution and end with linear layers, or no convolution fits.
    """
    nodes = graph.needed([graph.output], cut)
    outer = [n for n in nodes if not set(n.output) & graph.sampled]
    sampled = [n for n in nodes if set(n.output) & graph.sampled]
    wide = shared_convolutions(graph, sampled)
    start, layers = last_layers(graph, sampled)
    rest = [n for n in sampled if n not in wide and n not in layers]
    if not wide or not any(start in n.output for n in rest):
        raise GraphError("there is no convolution that all samples share the input of, or no linear layer at the end")
    made = _Made(graph, weights, Counter(n for node in nodes for n in reads(node)))
    made.nodes += outer
    made.take_shared(wide)
    tail = made.tail(rest, start)
    loop = [n for n in rest if n not in tail]
    end = tail[0].input[0] if tail else start
    shared = {n for node in [*outer, *wide, *tail] for n in reads(node)}
    made.take(layers, {start: made.loop(loop, tail, end, shared)})
    if not made.laid_out:
        raise GraphError("no convolution fits into blocks")
    read = {n for node in made.nodes for n in reads(node)}
    shapes: dict[str, Sequence[int | str]] = {n: ["S", *shape] for n, shape in weights.items() if n in read}
    shapes |= made.laid_out
    first = next((n for n, shape in shapes.items() if shape[0] == "S"), None)
    if first is None:
        raise GraphError("nothing tells the number of samples")
    made.nodes.insert(0, helper.make_node("Shape", [first], [_SAMPLES], start=0, end=1))
    return (
        base_of(graph, cut, made.nodes, _floats(shapes), ("B", outputs), made.constants, [DOMAIN]),
        made.layout.model(made.laid_out),
    )


def _floats(shapes: Mapping[str, Sequence[int | str]]) -> list[ValueInfoProto]:
    return [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()]


class _Layout(Layers):
    """The nodes that lay out weights, once each. Each method returns the shape of what it makes, with names for lengths
    that go with S."""

    def model(self, made: Mapping[str, Sequence[int | str]]) -> ModelProto:
        """`blocks.onnx`, which makes these."""
        read = {n for node in self.nodes for n in reads(node)}
        inputs = _floats({n: ["S", *shape] for n, shape in self.weights.items() if n in read})
        return model_of(self.nodes, inputs, _floats(made), "blocks", self.constants, [DOMAIN])

    def in_blocks(self, weight: str) -> list[int | str]:
        """Weights (S, o, c, height, width), each in blocks of o of blocks of c, as (height, width, c of a block, o of
        one); where c is less than a block, in blocks of o as (c, height, width, o of a block)."""
        o, c, *kernel = shape = [*self.shape(weight)]
        name, last = f"{weight}.in", weight.removesuffix(ONE)
        if c >= _LEAST:
            images = self.reshaped(weight, [-1, *shape[1:]], f"{name}.c")
            last = self.add("ReorderInput", [images], f"{name}.c.blocks", domain=DOMAIN)
        rows = self.numbers(f"{name}.o.shape", [-1, o, c * kernel[0], kernel[1]])
        self.add("Reshape", [last, rows], f"{name}.o")
        self.add("ReorderInput", [f"{name}.o"], f"{name}.o.blocks", domain=DOMAIN)
        return self._end(weight, f"{name}.o.blocks", [-1, *shape], ["S", *shape])

    def all_in_blocks(self, weight: str) -> list[int | str]:
        """Weights (S, o, c, height, width) as those of one convolution (o of all, c, height, width), with c less than a
        block, filled up with zeros to whole blocks."""
        _, c, *kernel = self.shape(weight)
        name = f"{weight}.in"
        padded = self._padded(weight, [c * kernel[0] * kernel[1]])
        self.add("Reshape", [padded, self.numbers(f"{name}.shape", [1, -1, c * kernel[0], kernel[1]])], name)
        self.add("ReorderInput", [name], f"{name}.blocks", domain=DOMAIN)
        return self._end(weight, f"{name}.blocks", [-1, c, *kernel], ["channels", c, *kernel])

    def filled(self, bias: str) -> list[int | str]:
        """Biases (S, o) as those of one convolution (o of all), filled up likewise."""
        return self._end(bias, self._padded(bias, []), [-1], ["channels"])

    def _padded(self, weight: str, shape: list[int]) -> str:
        """A weight of all samples as (S * o, *shape), and zeros up to a multiple of `_BLOCK`."""
        name = f"{weight}.all"
        flat = self.reshaped(weight, [-1, *shape], name)
        self.add("Shape", [flat], f"{name}.count", start=0, end=1)
        self.add("Neg", [f"{name}.count"], f"{name}.less")
        fill = self.add("Mod", [f"{name}.less", self.numbers(f"{name}.block", [_BLOCK])], f"{name}.fill")
        zeros = [self.numbers(f"{name}.zeros", [0] * n) for n in [len(shape)] if n]
        before = self.numbers(f"{name}.before", [0] * (len(shape) + 1))
        self.add("Concat", [before, fill, *zeros], f"{name}.fills", axis=0)
        return self.add("Pad", [flat, f"{name}.fills"], f"{name}.padded")

    def _end(self, weight: str, value: str, shape: list[int], described: list[int | str]) -> list[int | str]:
        name = weight.removesuffix(ONE) + LAID_OUT
        self.add("Reshape", [value, self.numbers(f"{name}.shape", shape)], name)
        return described


def _kept(node: NodeProto, names: frozenset[str]) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in names}


class _Blocks:
    """Nodes for one batch of images, of which convolutions and pooling behind them are in blocks.

    Attributes:
        blocked: by value, the name of the same value in blocks, where there is one.
    """

    def __init__(self, graph: Graph, uses: Counter[str], blocked: Mapping[str, str] | None = None) -> None:
        """Args:
        uses: how often each value is read.
        blocked: values that are given in blocks.
        """
        self.graph, self.nodes, self.blocked = graph, list[NodeProto](), dict(blocked or {})
        self._uses, self._plain, self._fused = uses, set[str](), set[str]()

    def take(self, nodes: Sequence[NodeProto], shapes: Mapping[str, Sequence[int]]) -> None:
        """Adds nodes in topological order; `shapes` of weights as they are in these nodes."""
        readers = {n: node for node in nodes for n in node.input}
        for node in nodes:
            if node.output[0] in self._fused:
                continue
            if node.op_type == "Conv" and fits(node, shapes):
                self._convolve(node, shapes[node.input[1]], readers.get(node.output[0]))
            elif node.op_type == "MaxPool" and node.input[0] in self.blocked and len(node.output) == 1:
                self._add("MaxPool", [self.blocked[node.input[0]]], node.output[0], **_kept(node, _POOL))
            else:
                for name in sorted(reads(node)):
                    self.plain(name)
                self.nodes.append(node)

    def plain(self, name: str) -> str:
        """Makes sure that a value is there as images; returns its name."""
        if name in self.blocked and name not in self._plain:
            self._plain.add(name)
            channels = self.graph.row_shape(name)[0]
            own = [self.blocked[name]]
            self.nodes.append(helper.make_node("ReorderOutput", own, [name], domain=DOMAIN, channels=channels))
        return name

    def _convolve(self, node: NodeProto, shape: Sequence[int], reader: NodeProto | None) -> None:
        data, weight, *bias = node.input
        if shape[1] < _LEAST:
            data = self.plain(data)
        elif data not in self.blocked:
            self._plain.add(data)
            self._add("ReorderInput", [data], data)
            data = self.blocked[data]
        else:
            data = self.blocked[data]
        result, options = node.output[0], _kept(node, _CONV)
        if reader is not None and reader.op_type == "Relu" and self._uses[result] == 1:
            result, options["activation"] = reader.output[0], "Relu"
            self._fused.add(result)
        self._add("Conv", [data, weight + LAID_OUT, *bias], result, **options)

    def _add(self, kind: str, inputs: list[str], value: str, **attributes: Any) -> None:
        self.blocked[value] = f"{value}.blocks"
        self.nodes.append(helper.make_node(kind, inputs, [f"{value}.blocks"], domain=DOMAIN, **attributes))


def fits(node: NodeProto, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether a convolution of weights with these shapes can be in blocks, of whichever size."""
    options = _kept(node, _CONV)
    if options.get("group", 1) != 1 or options.get("auto_pad", b"NOTSET") != b"NOTSET":
        return False
    if not all(name in shapes for name in node.input[1:]) or len(shapes[node.input[1]]) != 4:
        return False
    o, c = shapes[node.input[1]][:2]
    return o % _BLOCK == 0 and (c < _LEAST or c % _BLOCK == 0)


class _Made(Rows):
    """The nodes of the base.

    Attributes:
        layout: the nodes that lay out weights.
        laid_out: shapes of what they make, by name.
    """

    def __init__(self, graph: Graph, weights: Mapping[str, Sequence[int]], uses: Counter[str]) -> None:
        super().__init__(graph, weights)
        self.layout, self.laid_out = _Layout(graph, weights), dict[str, list[int | str]]()
        self._uses = uses

    def take_shared(self, nodes: Sequence[NodeProto]) -> None:
        """Adds convolutions whose input all samples share, and what follows them, with the channels of all samples."""
        done = set[str]()
        for i, node in enumerate(nodes):
            if node.output[0] in done:
                continue
            found = self._share_in_blocks(nodes[i:]) if node.op_type == "Conv" else set()
            if not found:
                widen(self, node)
            done |= found

    def _take(self, lay_out: Callable[[str], list[int | str]], weight: str) -> str:
        """The base's input that takes a weight as it is laid out."""
        name = weight.removesuffix(ONE) + LAID_OUT
        shape = lay_out(weight)
        if self.laid_out.setdefault(name, shape) is not shape:
            raise GraphError(f"{name} is used in two ways")
        return name

    def _share_in_blocks(self, nodes: Sequence[NodeProto]) -> set[str]:
        """Takes up the first of these nodes, a convolution, and those behind it that go with it; returns what they
        give, which is nothing where it does not fit."""
        first = nodes[0]
        options = _kept(first, _CONV)
        data, weight, *bias = first.input
        o, c, *kernel = self.shape(weight)
        if len(kernel) != 2 or c >= _LEAST or options.get("auto_pad", b"NOTSET") != b"NOTSET":
            return set()
        name, result = first.output[0], first.output[0]
        given = [
            data,
            self._take(self.layout.all_in_blocks, weight),
            *(self._take(self.layout.filled, n) for n in bias),
        ]
        behind = list(nodes[1:])
        done = {result}
        if behind and behind[0].op_type == "Relu" and behind[0].input[0] == result and self._uses[result] == 1:
            options["activation"] = "Relu"
            result = behind.pop(0).output[0]
            done.add(result)
        row = _Made(self.graph, self.weights, self._uses)
        row.add("Unsqueeze", [f"{name}.row", self.numbers(f"{name}.zero", [0])], f"{name}.image")
        given[0] = f"{name}.image"
        value = row.add("Conv", given, f"{name}.wide", domain=DOMAIN, **options)
        if behind and behind[0].op_type == "MaxPool" and behind[0].input[0] == result and self._uses[result] == 1:
            result = behind[0].output[0]
            value = row.add("MaxPool", [value], f"{name}.pooled", domain=DOMAIN, **_kept(behind[0], _POOL))
            done.add(result)
        # As images of one block each, as an image's channels must be a fixed number here.
        _, height, width = self.graph.row_shape(result)
        row.add("Reshape", [value, self.numbers(f"{name}.one", [-1, _BLOCK, height, width])], f"{name}.blocks")
        row.add("ReorderOutput", [f"{name}.blocks"], f"{name}.ordered", domain=DOMAIN, channels=_BLOCK)
        joint = row.add(
            "Reshape", [f"{name}.ordered", self.numbers(f"{name}.all", [-1, height, width])], f"{name}.filled"
        )
        # Without the zeros that fill up the last block.
        count = self.add("Mul", [_SAMPLES, self.numbers(f"{name}.own", [o])], f"{name}.count")
        found = row.add("Slice", [joint, f"{name}.zero", count, f"{name}.zero"], f"{name}.found")
        body = helper.make_graph(
            row.nodes,
            "one_row",
            [helper.make_tensor_value_info(f"{name}.row", TensorProto.FLOAT, self.graph.row_shape(data))],
            [helper.make_tensor_value_info(found, TensorProto.FLOAT, None)],
        )
        # Row by row, as what all samples make of one fits into the processor's cache.
        self.add("Scan", [data], result, body=body, num_scan_inputs=1)
        return done

    def tail(self, rest: Sequence[NodeProto], start: str) -> list[NodeProto]:
        """What ends in `start`, behind the last convolution, and treats every row alike whatever sample it is of:
        functions and pooling of one value, and one last node that makes rows of numbers of it."""
        made = {n.output[0]: n for n in rest}
        found: list[NodeProto] = []
        value = start
        while (node := made.get(value)) is not None and self._uses[value] == 1 and node.input[0] in made:
            flat = node.op_type in {"Flatten", "Reshape"}
            if flat != (value == start) or not (flat or node.op_type in {"MaxPool", "Relu"}):
                break
            if node.op_type == "Relu" and made[node.input[0]].op_type == "Conv":
                break  # ONNX Runtime takes it into the convolution.
            if not self.graph.has_rows(node.input[0]) or len(self.graph.row_shape(node.input[0])) != 3:
                break
            found.insert(0, node)
            value = node.input[0]
        return found

    def loop(self, nodes: Sequence[NodeProto], tail: Sequence[NodeProto], end: str, shared: set[str]) -> str:
        """Adds a loop over the samples of the first nodes, up to the value `end`, and behind it those of the tail.

        Args:
            shared: constants that are initialisers of the base.

        Returns:
            The name of what linear layers start from, (S, B, n).
        """
        shapes = {n + ONE: list(shape) for n, shape in self.weights.items()}
        blocks = _Blocks(self.graph, self._uses)
        blocks.take(nodes, shapes)
        in_blocks = bool(tail) and end in blocks.blocked
        result = blocks.blocked[end] if in_blocks else blocks.plain(end)
        used = {n for node in blocks.nodes for n in reads(node)}
        own = {n: shape for n, shape in shapes.items() if n in used}
        laid_out = {n + LAID_OUT: shape for n, shape in shapes.items() if n + LAID_OUT in used}
        values = sorted({n for node in nodes for n in reads(node)} & self.graph.sampled - shapes.keys())
        values = [n for n in values if not any(n in node.output for node in nodes)]
        body = helper.make_graph(
            blocks.nodes,
            "one_weight_vector",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in {**own, **laid_out}.items()]
            + [self.graph.values[n] for n in values],
            [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)],
            initializer=[t for t in constants_of(self.graph, blocks.nodes) if t.name not in shared],
        )
        taken = [n.removesuffix(ONE) for n in own]
        taken += [self._take(self.layout.in_blocks, n.removesuffix(LAID_OUT)) for n in laid_out]
        taken += [stacked(self, n) for n in values]
        found = f"{end}.samples"
        self.nodes.append(
            helper.make_node("Scan", taken, [found], name="samples", body=body, num_scan_inputs=len(taken))
        )
        if not tail:
            return found
        # All samples' images as if they were rows of one batch.
        joint = f"{end}.blocks" if in_blocks else end
        self.add("Reshape", [found, self.numbers(f"{end}.joint", [-1, *self.graph.row_shape(end)])], joint)
        behind = _Blocks(self.graph, self._uses, {end: joint} if in_blocks else {})
        behind.take(tail[:-1], {})
        images = behind.plain(tail[-1].input[0])
        self.nodes += behind.nodes
        rows = tail[-1].output[0]
        self.add("Shape", [found], f"{rows}.sizes", start=0, end=2)
        width = self.numbers(f"{rows}.width", self.graph.row_shape(rows))
        self.add("Concat", [f"{rows}.sizes", width], f"{rows}.shape", axis=0)
        return self.add("Reshape", [images, f"{rows}.shape"], f"{rows}.all")
