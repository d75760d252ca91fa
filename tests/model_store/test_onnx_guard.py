"""The guard against external data, held against the `onnx` library and ONNX Runtime."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from model_store import IntegrityError
from model_store.onnx_guard import refuse_external_data

# ---- models with tensors in every place that the format has


def tensor(external: bool, values: np.ndarray | None = None) -> TensorProto:
    t: TensorProto = numpy_helper.from_array(np.ones(3, dtype=np.float32) if values is None else values, name="t")
    if external:
        t.ClearField("raw_data")
        t.data_location = TensorProto.EXTERNAL
        t.external_data.add(key="location", value="weights.bin")
    return t


def in_graph(graph: GraphProto) -> ModelProto:
    return helper.make_model(graph)


def empty_graph() -> GraphProto:
    return GraphProto(name="g")


def with_initializer(t: TensorProto) -> GraphProto:
    graph = empty_graph()
    graph.initializer.append(t)
    return graph


def with_sparse_initializer(t: TensorProto, *, indices: bool) -> GraphProto:
    graph = empty_graph()
    sparse = graph.sparse_initializer.add()
    (sparse.indices if indices else sparse.values).CopyFrom(t)
    return graph


def node_with(attribute: str, value: object) -> NodeProto:
    node = NodeProto(op_type="Op")
    node.attribute.append(helper.make_attribute(attribute, value))
    return node


def with_node(node: NodeProto) -> GraphProto:
    graph = empty_graph()
    graph.node.append(node)
    return graph


def sparse_tensor(t: TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=t, indices=numpy_helper.from_array(np.zeros(3, dtype=np.int64)), dims=[3])


def in_function(node: NodeProto) -> ModelProto:
    model = in_graph(empty_graph())
    model.functions.append(onnx.FunctionProto(name="f", domain="d", node=[node]))
    return model


def in_function_default(t: TensorProto) -> ModelProto:
    model = in_graph(empty_graph())
    model.functions.append(onnx.FunctionProto(name="f", attribute_proto=[helper.make_attribute("a", t)]))
    return model


def in_training(graph: GraphProto, *, algorithm: bool) -> ModelProto:
    model = in_graph(empty_graph())
    info = model.training_info.add()
    (info.algorithm if algorithm else info.initialization).CopyFrom(graph)
    return model


PLACES = {
    "initializer": lambda t: in_graph(with_initializer(t)),
    "sparse values": lambda t: in_graph(with_sparse_initializer(t, indices=False)),
    "sparse indices": lambda t: in_graph(with_sparse_initializer(t, indices=True)),
    "attribute": lambda t: in_graph(with_node(node_with("value", t))),
    "attribute list": lambda t: in_graph(with_node(node_with("values", [t]))),
    "sparse attribute": lambda t: in_graph(with_node(node_with("value", sparse_tensor(t)))),
    "sparse attribute list": lambda t: in_graph(with_node(node_with("values", [sparse_tensor(t)]))),
    "subgraph": lambda t: in_graph(with_node(node_with("body", with_initializer(t)))),
    "subgraph list": lambda t: in_graph(with_node(node_with("bodies", [with_initializer(t)]))),
    "subgraph of a subgraph": lambda t: in_graph(
        with_node(node_with("body", with_node(node_with("body", with_initializer(t)))))
    ),
    "function": lambda t: in_function(node_with("value", t)),
    "function default": in_function_default,
    "training": lambda t: in_training(with_initializer(t), algorithm=False),
    "training algorithm": lambda t: in_training(with_initializer(t), algorithm=True),
}


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_wherever_a_tensor_may_be(place: str) -> None:
    refuse_external_data(PLACES[place](tensor(False)).SerializeToString(), "m.onnx")
    with pytest.raises(IntegrityError, match="keeps tensors in another file") as raised:
        refuse_external_data(PLACES[place](tensor(True)).SerializeToString(), "m.onnx")
    assert raised.value.code == "external_data"


def test_the_places_are_all_that_the_format_has() -> None:
    """Where a release of onnx adds a field that reaches a tensor, the guard has to learn it."""
    from model_store.onnx_guard import _CHILDREN

    names = {
        "Model": ModelProto,
        "Training": onnx.TrainingInfoProto,
        "Function": onnx.FunctionProto,
        "Graph": GraphProto,
        "Node": NodeProto,
        "Attribute": onnx.AttributeProto,
        "Sparse": onnx.SparseTensorProto,
        "Tensor": TensorProto,
    }
    by_type = {kind.DESCRIPTOR.full_name: name for name, kind in names.items()}
    reaching = {
        name: {
            field.number: by_type[field.message_type.full_name]
            for field in kind.DESCRIPTOR.fields
            if field.message_type is not None and field.message_type.full_name in by_type
        }
        for name, kind in names.items()
    }
    assert reaching == _CHILDREN


@pytest.mark.parametrize("half", ["location only", "data only"])
def test_either_mark_of_external_data_is_enough(half: str) -> None:
    t = tensor(False)
    if half == "location only":
        t.data_location = TensorProto.EXTERNAL
    else:
        t.external_data.add(key="location", value="weights.bin")
    with pytest.raises(IntegrityError, match="keeps tensors in another file"):
        refuse_external_data(in_graph(with_initializer(t)).SerializeToString(), "m.onnx")


# ---- random models


arrays = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=6).map(
    lambda v: np.array(v, dtype=np.float32)
)


@st.composite
def graphs(draw: st.DrawFn, depth: int = 2) -> GraphProto:
    graph = GraphProto(name=draw(st.text(max_size=5)), doc_string=draw(st.text(max_size=5)))
    for values in draw(st.lists(arrays, max_size=3)):
        graph.initializer.append(tensor(draw(st.integers(0, 9)) == 0, values))
    for _ in range(draw(st.integers(0, 3))):
        node = NodeProto(
            op_type=draw(st.sampled_from(["Add", "Loop", "If"])), input=draw(st.lists(st.text(max_size=3)))
        )
        for _ in range(draw(st.integers(0, 2))):
            kind = draw(st.sampled_from(["int", "ints", "text", "tensor", "graph"]))
            value = {
                "int": lambda: draw(st.integers(-(2**63), 2**63 - 1)),
                "ints": lambda: draw(st.lists(st.integers(-9, 9), min_size=1, max_size=4)),
                "text": lambda: draw(st.text(max_size=4)),
                "tensor": lambda: tensor(draw(st.integers(0, 9)) == 0, draw(arrays)),
                "graph": lambda: draw(graphs(depth - 1)) if depth else empty_graph(),
            }[kind]()
            node.attribute.append(helper.make_attribute("a", value))
        graph.node.append(node)
    return graph


def tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """All tensors, found by the onnx library's own parser."""
    yield from graph.initializer
    for node in graph.node:
        for a in node.attribute:
            if a.HasField("t"):
                yield a.t
            if a.HasField("g"):
                yield from tensors(a.g)


@settings(max_examples=200)
@given(graphs())
def test_the_guard_agrees_with_the_onnx_library(graph: GraphProto) -> None:
    data = in_graph(graph).SerializeToString()
    external = any(t.data_location == TensorProto.EXTERNAL for t in tensors(onnx.load_model_from_string(data).graph))
    if external:
        with pytest.raises(IntegrityError, match="keeps tensors in another file"):
            refuse_external_data(data, "m.onnx")
    else:
        refuse_external_data(data, "m.onnx")


# ---- bytes that are no model


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_any_bytes_pass_or_raise_integrity_error(data: bytes) -> None:
    try:
        refuse_external_data(data, "m.onnx")
    except IntegrityError as e:
        assert "m.onnx" in e.message


@settings(max_examples=300)
@given(graphs(), st.data())
def test_damaged_models_pass_or_raise_integrity_error(graph: GraphProto, data: st.DataObject) -> None:
    raw = bytearray(in_graph(graph).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        refuse_external_data(bytes(raw), "m.onnx")
    except IntegrityError as e:
        assert "m.onnx" in e.message


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a",  # a field without content
        b"\x3a\x05abc",  # content shorter than its length
        b"\xff" * 20,  # a varint without end
        b"\x00\x00",  # field 0
        b"\x38\x01",  # a graph that is a number
        b"\x3b\x3c",  # a group
        b"\x09\x00",  # a cut fixed64
        b"\x0d\x00",  # a cut fixed32
    ],
)
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="not a readable ONNX file"):
        refuse_external_data(data, "m.onnx")


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(tag: bytes, content: bytes) -> bytes:
    return tag + varint(len(content)) + content


def test_graphs_nested_without_end_are_refused() -> None:
    graph = with_initializer(tensor(True)).SerializeToString()
    for _ in range(100):
        attribute = field(b"\x32", graph)  # Attribute.g
        graph = field(b"\x0a", field(b"\x2a", attribute))  # Graph.node, Node.attribute
    with pytest.raises(IntegrityError, match="not a readable ONNX file"):
        refuse_external_data(field(b"\x3a", graph), "m.onnx")


TAGS = {
    "plain": varint(7 << 3 | 2),
    "padded": b"\xba\x80\x00",
    "over 32 bits": varint(7 << 3 | 2 | 1 << 32),
    "far over 32 bits": varint(7 << 3 | 2 | 1 << 45),
}


@pytest.mark.parametrize("tag", TAGS)
def test_no_spelling_of_a_tag_hides_a_graph_from_the_guard(tag: str, tmp_path: Path) -> None:
    """Protobuf reads some malformed tags as if they were sound: what the runtime would load, the guard must see."""
    values = np.array([1, 2, 4, 8], dtype="<f4")
    (tmp_path / "weights.bin").write_bytes(values.tobytes())
    external = tensor(True, values)
    float4 = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "t"], ["y"])], "g", float4[:1], float4[1:], [external])
    rest = ModelProto(ir_version=9, opset_import=[helper.make_opsetid("", 18)])
    data = rest.SerializeToString() + field(TAGS[tag], graph.SerializeToString())
    with pytest.raises(IntegrityError):
        refuse_external_data(data, "m.onnx")

    # The danger is real: from a path, the runtime does load the other file for the tags that protobuf accepts.
    (tmp_path / "m.onnx").write_bytes(data)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(os.fspath(tmp_path / "m.onnx"), options)
    except Exception as e:
        assert tag == "far over 32 bits", e
    else:
        (loaded,) = session.run(None, {"x": np.zeros(4, dtype=np.float32)})
        np.testing.assert_array_equal(loaded, values)
