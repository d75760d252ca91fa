"""Graphs of a network: as torch's exporter traces it, or known beforehand.

Lengths: S weight vectors, B rows, O outputs.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping

import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.func import vmap

from builder.network import FunctionalNetwork
from builder.onnx_chain import chain_graph
from builder.onnx_graph import INPUTS, ONE, OPSET, OUTPUTS, Graph

_EXAMPLE_SAMPLES = 3


def traced_fixed(module: nn.Module, x: Tensor, output: str | None = OUTPUTS) -> ModelProto:
    """The graph of a module as it is: `inputs` (B, ...) -> `outputs` (B, O), or an output of another name; None is the
    name of the operator that computes it."""
    outputs = None if output is None else [output]
    return _to_onnx(_Fixed(module), (x,), {"x": {0: torch.export.Dim("B")}}, [INPUTS], outputs)


class _Fixed(nn.Module):
    """A module as it is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x)
        return out


class _Batched(nn.Module):
    """The network for parameters (S, *shape), computed by every operator at once."""

    def __init__(self, network: FunctionalNetwork) -> None:
        super().__init__()
        self.names = [p.name for p in network.parameters]
        self.network = network

    def forward(self, x: Tensor, *weights: Tensor) -> Tensor:
        return vmap(lambda own: self.network.apply(dict(zip(self.names, own, strict=True)), x))(weights)


class _Single(_Batched):
    """The network for parameters of their own shapes."""

    def forward(self, x: Tensor, *weights: Tensor) -> Tensor:
        return self.network.apply(dict(zip(self.names, weights, strict=True)), x)


def traced_batched(network: FunctionalNetwork, x: Tensor) -> Graph:
    weights = network.unflatten(network.current().expand(_EXAMPLE_SAMPLES, -1).contiguous())
    samples = torch.export.Dim("S")
    names = [p.input for p in network.parameters]
    dynamic = {"x": {0: torch.export.Dim("B")}, "weights": tuple({0: samples} for _ in names)}
    model = _to_onnx(_Batched(network), (x, *weights.values()), dynamic, [INPUTS, *names], [OUTPUTS])
    return Graph.read(model, names)


def traced_one(network: FunctionalNetwork, x: Tensor) -> Graph:
    known = chain_graph(network, x.shape[1]) if x.ndim == 2 else None
    return known if known is not None else _one_by_torch(network, x)


def _one_by_torch(network: FunctionalNetwork, x: Tensor) -> Graph:
    weights = network.unflatten(network.current())
    names = [p.input + ONE for p in network.parameters]
    dynamic = {"x": {0: torch.export.Dim.DYNAMIC}, "weights": tuple({} for _ in names)}
    model = _to_onnx(_Single(network), (x, *weights.values()), dynamic, [INPUTS, *names], [OUTPUTS + ONE])
    return Graph.read(model, names)


def _to_onnx(
    module: nn.Module,
    args: tuple[Tensor, ...],
    dynamic: Mapping[str, object],
    inputs: list[str],
    outputs: list[str] | None,
) -> ModelProto:
    with torch.no_grad():
        program = torch.export.export(module.eval(), args, dynamic_shapes=dict(dynamic), strict=False)
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            external_data=False,
            verify=False,
            verbose=False,
        )
    assert onnx_program is not None
    model: ModelProto = onnx_program.model_proto
    return model


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keeps the exporter's chatter from the screen."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision, which nothing here needs, is not installed
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)
            warnings.filterwarnings("ignore", r"# The axis name", UserWarning)
            yield
    finally:
        logger.setLevel(level)
