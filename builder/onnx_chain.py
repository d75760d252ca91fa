"""The graph of linear layers in a row, written without torch's exporter: it is known beforehand, and the exporter takes
seconds. It is the one that the exporter gives, for one weight vector.

Lengths: B rows, O outputs.
"""

from __future__ import annotations

from onnx import NodeProto, TensorProto, helper
from torch import nn

from builder.network import MLP, FunctionalNetwork
from builder.onnx_graph import INPUTS, IR_VERSION, ONE, OPSET, OUTPUTS, Graph


def chain_graph(network: FunctionalNetwork, columns: int) -> Graph | None:
    """The graph for one weight vector, with weight inputs and output as `builder.export` names them, of a network of
    linear layers with the functions of `builder.network.MLP` between them, all of whose weights are random.

    Args:
        columns: of the inputs (B, columns).

    Returns:
        None for every other network.
    """
    module = network.module
    # A subclass may compute anything, and so may a hook.
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    if type(module) not in (MLP, nn.Sequential) or network.fixed or hooked:
        return None
    nodes: list[NodeProto] = []
    named = {p.name: p.input + ONE for p in network.parameters}
    used: list[str] = []
    value, width = INPUTS, columns
    for name, part in module._modules.items():  # named_children() leaves out what is there twice
        own = f"layer_{name}"
        if type(part) is nn.Linear and part.bias is not None and part.in_features == width:
            used += [f"{name}.weight", f"{name}.bias"]
            weights = [named.get(n, "") for n in used[-2:]]
            nodes.append(helper.make_node("Gemm", [value, *weights], [own], transB=1, transA=0, alpha=1.0, beta=1.0))
            width = part.out_features
        elif not used:
            return None
        elif type(part) is nn.ReLU:
            nodes.append(helper.make_node("Relu", [value], [own]))
        elif type(part) is nn.Tanh:
            nodes.append(helper.make_node("Tanh", [value], [own]))
        elif type(part) is nn.GELU:
            nodes.append(helper.make_node("Gelu", [value], [own], approximate=part.approximate))
        elif type(part) is nn.SiLU:
            nodes.append(helper.make_node("Sigmoid", [value], [f"{own}.gate"]))
            nodes.append(helper.make_node("Mul", [value, f"{own}.gate"], [own]))
        else:
            return None
        value = own
    # A layer that is there twice has its weights once.
    if used != list(named):
        return None
    nodes[-1].output[0] = OUTPUTS + ONE
    inputs = [helper.make_tensor_value_info(INPUTS, TensorProto.FLOAT, ["B", columns])]
    inputs += [helper.make_tensor_value_info(p.input + ONE, TensorProto.FLOAT, p.shape) for p in network.parameters]
    output = helper.make_tensor_value_info(OUTPUTS + ONE, TensorProto.FLOAT, ["B", width])
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(
        helper.make_graph(nodes, "one", inputs, [output]), opset_imports=opset, ir_version=IR_VERSION
    )
    return Graph.read(model, [p.input + ONE for p in network.parameters])
