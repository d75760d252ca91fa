"""Graphs of a network: as torch's exporter traces it, or known beforehand.

Lengths: S weight vectors, B rows, O outputs.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack, pop_dynamic_layer_stack
from torch.func import functional_call, vmap

from builder.network import FunctionalNetwork
from builder.onnx_chain import chain_graph
from builder.onnx_graph import INPUTS, ONE, OPSET, OUTPUTS, Graph
from builder.plain import in_plain_operators

T = TypeVar("T")

_EXAMPLE_SAMPLES = 3
_CHATTY = {
    "torch.onnx._internal.exporter._registration": logging.ERROR,  # warns that torchvision is not installed
    "torch._guards": logging.CRITICAL,  # shows where the stack was when reading the code failed
}


def traced_fixed(module: nn.Module, x: Tensor, output: str | None = OUTPUTS) -> ModelProto:
    """The graph of a module as it is: `inputs` (B, ...) -> `outputs` (B, O), or an output of another name; None is the
    name of the operator that computes it."""
    outputs = None if output is None else [output]

    def trace(strict: bool) -> ModelProto:
        return _to_onnx(_Fixed(module), (x,), {"x": {0: torch.export.Dim("B")}}, [INPUTS], outputs, strict)

    return _in_either_way(trace)


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


class _Single(nn.Module):
    """The network for parameters of their own shapes."""

    def __init__(self, network: FunctionalNetwork) -> None:
        super().__init__()
        self.names = [p.name for p in network.parameters]
        self.module, self.fixed = network.module, network.fixed

    def forward(self, x: Tensor, *weights: Tensor) -> Tensor:
        # As the exporter may read this code, which knows no `strict`: the network's own `apply`, written out.
        own = dict(zip(self.names, weights))  # noqa: B905
        out: Tensor = functional_call(self.module, {**self.fixed, **own}, (x,))
        return out


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


def traced_once(network: FunctionalNetwork, x: Tensor) -> Callable[[], Graph]:
    """As `traced_one`, which runs at the first call; later ones give the same graph, or raise the same error."""

    @functools.cache
    def traced() -> Graph | Exception:
        try:
            return traced_one(network, x)
        except Exception as e:  # as of `builder.export`
            return e

    def give() -> Graph:
        found = traced()
        if isinstance(found, Exception):
            raise found
        return found

    return give


def _one_by_torch(network: FunctionalNetwork, x: Tensor) -> Graph:
    weights = network.unflatten(network.current())
    names = [p.input + ONE for p in network.parameters]
    dynamic = {"x": {0: torch.export.Dim.DYNAMIC}, "weights": tuple({} for _ in names)}

    def trace(strict: bool) -> Graph:
        args = (x, *weights.values())
        return Graph.read(_to_onnx(_Single(network), args, dynamic, [INPUTS, *names], [OUTPUTS + ONE], strict), names)

    return _in_either_way(trace)


def _in_either_way(trace: Callable[[bool], T]) -> T:
    """What a trace gives: of tensors that pass through the module's code or, where that fails, of the code itself,
    which takes longer, but to which `len(x)` is no fixed number."""
    try:
        return trace(False)
    except Exception as e:  # as of `builder.export`
        try:
            return trace(True)
        except Exception:
            raise e from e.__cause__


def _to_onnx(
    module: nn.Module,
    args: tuple[Tensor, ...],
    dynamic: Mapping[str, object],
    inputs: list[str],
    outputs: list[str] | None,
    strict: bool = False,
) -> ModelProto:
    with _transforms_ended(), torch.no_grad(), in_plain_operators(list(module.modules())):
        program = torch.export.export(module.eval(), args, dynamic_shapes=dict(dynamic), strict=strict)
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
def _transforms_ended() -> Iterator[None]:
    """Ends a vmap that torch leaves open where the export of one fails: whatever runs later would run within it."""
    try:
        yield
    finally:
        while peek_interpreter_stack() is not None:
            pop_dynamic_layer_stack()


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keeps the exporter's chatter from the screen."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger, least in zip(loggers, _CHATTY.values(), strict=True):
        logger.setLevel(least)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)
            warnings.filterwarnings("ignore", r"# The axis name", UserWarning)
            warnings.filterwarnings("ignore", r"The tensor attributes? .* during export", UserWarning)
            warnings.filterwarnings("ignore", r"While compiling, we found certain side effects", UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
