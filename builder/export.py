"""Decoder and network as ONNX files, the form in which the server runs them.

`base.onnx` takes all S weight vectors and the whole batch in one run, in the first of these forms that is right at
every size that is tried. Written here, from the network exported for one weight vector: linear layers with element-
wise functions between them (`builder.onnx_layers`, with `row.onnx` for single rows; the first may be mixed of the
decoder's columns, `builder.mixing`), and convolutions with such layers behind them (`builder.onnx_images`, with
`blocked.onnx` where ONNX Runtime has a faster layout for them).
`torch.func.vmap` of the network, exported with S and B dynamic, for which torch has rules where layers are linear. For
every other network that torch can export, the one for one weight vector, looped over the samples inside the graph. In
the manifest a form without a loop is `batched`, one with a loop `scan`.

What is known beforehand is written without torch's exporter: the decoder (`builder.onnx_decoder`), and the graph for
one weight vector where linear layers follow each other (`builder.onnx_chain`).

Lengths: S weight vectors, B rows, P random weights, O outputs.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from builder import onnx_graph
from builder.decoder import WeightDecoder
from builder.exported import Array, ExportedNetwork, Runner, Session, reason, refusal
from builder.features import FeatureModule, FeatureNetworks
from builder.mixing import given_parameters, mixture_of, worthwhile
from builder.network import FunctionalNetwork
from builder.onnx_blocked import blocked_models
from builder.onnx_decoder import decoder_model
from builder.onnx_graph import Cut, Graph
from builder.onnx_images import images_model
from builder.onnx_layers import WIDE_WEIGHTS, columns_model, first_layers, row_model
from builder.onnx_traced import quiet_exporter, traced_batched, traced_fixed, traced_once, traced_one
from model_store.errors import ConfigError
from model_store.layout import has_blocks
from model_store.manifest import NetworkSpec, ParameterSpec

Form = Literal["layers", "images", "batched", "scan"]
_WRAPS: Final[dict[Form, Callable[[Graph, Cut, Mapping[str, Sequence[int]], int], ModelProto]]] = {
    "images": images_model,
    "batched": onnx_graph.batched_model,
    "scan": onnx_graph.scan_model,
}
_log = logging.getLogger(__name__)

TOLERANCE = 1e-5
"""Largest difference between ONNX and torch, relative to the largest output."""

_EXAMPLE_ROWS = 5
_CHECKED_SIZES = ((1, 1), (1, 6), (3, 1), (4, 7))
SCALE_ROWS = 32
"""Of the example, whose outputs say what is a large difference."""
_MAX_BYTES = 2**31 - 1
_FEATURES = "features"


def export_decoder(decoder: WeightDecoder, parameters: Sequence[ParameterSpec]) -> bytes:
    """`decoder.onnx` of a decoder whose weights (P) are those of the parameters, see
    `model_store.manifest.DECODER_FILE`.

    Raises:
        ConfigError: it does not fit into one ONNX file, or computes something else there.
    """
    _refuse_oversize(4 * decoder.head.numel(), "decoder")
    decoder = copy.deepcopy(decoder).cpu().eval()
    with _exporting("decoder"):
        model = decoder_model(decoder, parameters)
    data = _serialise(model, "decoder")
    session = Session(data)
    generator = torch.Generator().manual_seed(0)
    for n in (1, 5):
        z = torch.randn(n, decoder.dimension, generator=generator)
        z[0] = 0.0  # the anchor itself
        a = torch.randint(decoder.anchors, (n,), generator=generator)
        got = session.run({"latents": z.numpy(), "anchors": a.numpy()})
        with torch.no_grad():
            coefficients, weights = decoder(z, a)
        _refuse_difference(got["coefficients"], coefficients, "decoder", f"coefficients, S={n}")
        found = np.concatenate([got[p.input] for p in parameters], axis=1)
        _refuse_difference(found, weights, "decoder", f"weights, S={n}")
    return data


def export_network(
    network: FunctionalNetwork, example: Tensor, head: Tensor | None = None, samples: int = 0
) -> ExportedNetwork:
    """`base.onnx` of a network and what else serves it, see `model_store.manifest`.

    Args:
        network: the network; its fixed part is exported as it is now.
        example: encoded inputs (B, ...), of any number of rows, that the network takes.
        head: (C, P), the decoder's, where weights may be mixed of its columns (`builder.mixing`).
        samples: S that a server draws; they are mixed where that is faster.

    Raises:
        ConfigError: the network returns something else than one row of outputs for each input row, uses an operator
            that ONNX or its exporter lacks, or computes something else there.
    """
    _refuse_oversize(4 * network.fixed_weights, "network")
    network = _on_cpu(network)
    example = example.detach().cpu().float()
    outputs = _output_width(network, example)
    # All forms but one start from the same graph, or fail as it did.
    one = traced_once(network, _rows(example, _EXAMPLE_ROWS))
    forms: tuple[Form, ...] = ("layers", "images", "batched")
    for form in forms:
        try:
            return _export_as(form, one, network, example, outputs, head, samples)
        except ConfigError as e:
            _log.debug("not exported as %s: %s", form, e.message)
    return _export_as("scan", one, network, example, outputs)


def export_fixed(module: nn.Module, example: Tensor) -> bytes:
    """One network with its present weights as constants: `inputs` (B, ...) -> `outputs` (B, O).

    Raises:
        ConfigError: as `export_network`.
    """
    with _exporting("network"):
        x = _rows(example, _EXAMPLE_ROWS)
        model = traced_fixed(module, x)
    return _serialise(model, "network")


def export_features(networks: FeatureNetworks, example: Tensor, exported: ExportedNetwork | None = None) -> bytes:
    """The features that a server looks at, with weights as constants: `features` (B, d) from what the trunk of the
    exported network gives, where that is enough, so that the trunk runs once for both, and else from `inputs`
    (B, ...).

    Raises:
        ConfigError: as `export_network`.
    """
    networks = FeatureNetworks(_on_cpu(networks.network), networks.anchors[:1].detach().cpu())
    example = example.detach().cpu().float()
    module = FeatureModule(networks.network, networks.anchors[0])
    with _exporting("network"):
        graph = Graph.read(traced_fixed(module, _rows(example, _EXAMPLE_ROWS), None), ())
    if exported is not None and exported.trunk is not None:
        try:
            return _features(graph, exported.spec.trunk_outputs, Session(exported.trunk), networks, example)
        except ConfigError as e:
            _log.debug("features not exported behind the trunk: %s", e.message)
    return _features(graph, (), None, networks, example)


def _features(
    graph: Graph, given: Sequence[str], trunk: Session | None, networks: FeatureNetworks, example: Tensor
) -> bytes:
    """`features.onnx` from what the trunk gives, or where there is none from the inputs, checked."""
    with _exporting("network"):
        data = _serialise(onnx_graph.fixed_model(graph, given, _FEATURES), "network")
        session = Session(data)
    for rows in (1, _EXAMPLE_ROWS):
        x = _rows(example, rows)
        want = networks.served(x)
        assert want is not None  # otherwise there is nothing to export
        feeds: dict[str, NDArray[np.generic]] = {onnx_graph.INPUTS: x.numpy()}
        if trunk is not None:
            feeds = {n: v for n, v in trunk.run(feeds).items() if n in session.inputs}
        _refuse_difference(session.run(feeds)[_FEATURES], want, "network", f"B={rows}")
    return data


def mixable(network: FunctionalNetwork, example: Tensor) -> list[ParameterSpec]:
    """The parameters that a base may mix, see `builder.mixing`: those of wide first layers, where all else is linear
    layers and element-wise functions.

    Args:
        example: encoded inputs (B, ...) that the network takes.
    """
    if max(math.prod(p.shape) for p in network.parameters) < WIDE_WEIGHTS:
        return []  # without a graph, which may take seconds
    network, example = _on_cpu(network), _rows(example, _EXAMPLE_ROWS).float()
    shapes = {p.input: p.shape for p in network.parameters}
    try:
        with _exporting("network"):
            graph = traced_one(network, example)
            cut = onnx_graph.find_cut(graph) if network.fixed_weights else ()
            columns_model(graph, cut, shapes, _output_width(network, example))
            inputs = first_layers(graph, cut, shapes)
    except ConfigError as e:
        _log.debug("nothing to mix: %s", e.message)
        return []
    return [p for p in network.parameters if p.input in inputs]


def run_exported(exported: ExportedNetwork, network: FunctionalNetwork, thetas: Tensor, x: Tensor) -> Array:
    """Outputs (S, B, O) of the exported files in ONNX Runtime for weights (S, P) and inputs (B, ...).

    Those of the file in blocks or of the row's file, where there is one.
    """
    return Runner(exported, network)(thetas, x)[-1]


def check_export(
    network: FunctionalNetwork, exported: ExportedNetwork, example: Tensor, head: Tensor | None = None
) -> float:
    """Compares the exported files with torch at several S and B, 1 included, at weights around the present ones.

    Args:
        head: (C, P), the decoder's, where weights are mixed of its columns; weights are then some that it makes.

    Returns:
        the largest difference found, relative to the largest output in magnitude that the weights give on some rows:
        that of the row compared may happen to be next to nought.

    Raises:
        ConfigError: it exceeds `TOLERANCE`, or ONNX Runtime cannot run the files.
    """
    network = _on_cpu(network)
    runner = Runner(exported, network)
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    theta = network.current().cpu()
    spread = 0.1 * theta.abs() + 0.02 * theta.square().mean().sqrt()
    for samples, rows in _CHECKED_SIZES:
        coefficients = None
        if exported.mixture is not None and head is not None:
            coefficients = torch.randn(samples, len(head), generator=generator) / len(head) ** 0.5
            thetas = coefficients @ head.detach().cpu()
        else:
            thetas = theta + torch.randn(samples, network.weights, generator=generator) * spread
        x = _rows(example, rows)
        with torch.no_grad():
            want = network.batched(thetas, x)
            scale = float(network.batched(thetas, _rows(example, SCALE_ROWS)).abs().max())
        for found in runner(thetas, x, coefficients):
            worst = max(worst, _refuse_difference(found, want, "network", f"S={samples}, B={rows}", scale))
    return worst


def _export_as(
    form: Form,
    one: Callable[[], Graph],
    network: FunctionalNetwork,
    example: Tensor,
    outputs: int,
    head: Tensor | None = None,
    samples: int = 0,
) -> ExportedNetwork:
    """One form of the network, checked; `one` gives the graph for one weight vector."""
    shapes = {p.input: p.shape for p in network.parameters}
    with _exporting("network"):
        graph = traced_batched(network, _rows(example, _EXAMPLE_ROWS)) if form == "batched" else one()
        cut = onnx_graph.find_cut(graph) if network.fixed_weights else ()
        mixture = None
        if form == "layers" and head is not None:
            mixture = worthwhile(mixture_of(network, head.detach().cpu(), first_layers(graph, cut, shapes)), samples)
        heads = mixture.heads if mixture is not None else {}
        if form == "layers":
            base = columns_model(graph, cut, shapes, outputs, heads)
        else:
            base = _WRAPS[form](graph, cut, shapes, outputs)
        trunk = onnx_graph.trunk_model(graph, cut) if cut else None
        row = row_model(graph, cut, shapes, outputs, heads) if form == "layers" else None
    parameters = given_parameters(network.parameters, heads)
    spec = NetworkSpec(
        form="batched" if form in ("layers", "batched") else "scan",
        outputs=outputs,
        weights=sum(math.prod(p.shape) for p in parameters),
        fixed_weights=network.fixed_weights,
        parameters=parameters,
        mixed={p.input: p.shape for p in network.parameters if p.input in heads},
        trunk_outputs=onnx_graph.cut_names(cut),
        description=_describe(network.module),
    )
    exported = ExportedNetwork(
        spec,
        _serialise(base, "network"),
        _serialise(trunk, "trunk") if trunk else None,
        _serialise(row, "network") if row else None,
        mixture=mixture,
    )
    check_export(network, exported, example, head)
    in_blocks = form == "images" and has_blocks()
    return _with_blocks(exported, graph, cut, network, example) if in_blocks else exported


def _with_blocks(
    exported: ExportedNetwork, graph: Graph, cut: Cut, network: FunctionalNetwork, example: Tensor
) -> ExportedNetwork:
    """The same with the files in blocks, where the network fits."""
    shapes = {p.input: p.shape for p in network.parameters}
    try:
        with _exporting("network"):
            blocked, blocks = blocked_models(graph, cut, shapes, exported.spec.outputs)
        found = replace(exported, blocked=_serialise(blocked, "network"), blocks=_serialise(blocks, "network"))
        check_export(network, found, example)
    except ConfigError as e:
        _log.debug("not exported in blocks: %s", e.message)
        return exported
    return found


def _refuse_difference(got: Array, want: Tensor, what: str, where: str, scale: float | None = None) -> float:
    """The difference relative to a scale, by default the largest value; ConfigError where it is too large."""
    if got.shape != want.shape:
        raise refusal(what, f"the file gives shape {got.shape} at {where}, torch gives {tuple(want.shape)}")
    expected = want.numpy()
    if scale is None or not math.isfinite(scale):
        scale = float(np.abs(expected).max())
    with np.errstate(invalid="ignore"):  # infinite in both: not a number, and so refused below
        error = float(np.abs(got - expected).max()) / max(scale, float(np.finfo(np.float32).tiny))
    if not error <= TOLERANCE:
        raise ConfigError(
            f"The exported {what} differs from torch by {error:.1e} of its largest output ({where}). Outputs that are "
            "not finite or layers whose results depend on the batch are the usual reasons; remove them.",
            code="export_differs",
            field="network",
            expected=f"at most {TOLERANCE:.0e}",
            got=f"{error:.1e}",
        )
    return error


@contextlib.contextmanager
def _exporting(what: str) -> Iterator[None]:
    """Turns whatever torch and onnx raise into a ConfigError, and keeps their chatter from the screen."""
    with quiet_exporter():
        try:
            yield
        except ConfigError:
            raise
        except Exception as e:  # the exporters raise errors of a dozen unrelated classes
            raise refusal(what, reason(e)) from e


def _refuse_oversize(size: int, what: str) -> None:
    if size > _MAX_BYTES:
        raise ConfigError(
            f"The {what} needs {size / 2**30:.1f} GiB, more than one ONNX file holds. Choose a smaller network, fewer "
            "random weights with --posterior, a lower rank or fewer anchors.",
            code="export_failed",
            field="network",
            expected="at most 2 GiB",
            got=f"{size / 2**30:.1f} GiB",
        )


def _serialise(model: ModelProto, what: str) -> bytes:
    _refuse_oversize(model.ByteSize(), what)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _output_width(network: FunctionalNetwork, example: Tensor) -> int:
    try:
        with torch.no_grad():
            return network(network.current(), example).shape[1]
    except (RuntimeError, ValueError, TypeError) as e:
        raise ConfigError(
            f"The network does not take inputs of shape {tuple(example.shape)}: {reason(e)}.",
            field="network",
            expected="a network for these inputs",
            got=reason(e),
        ) from e


def _on_cpu(network: FunctionalNetwork) -> FunctionalNetwork:
    """The network itself, or a copy where it lives on another device."""
    state = [*network.module.parameters(), *network.module.buffers()]
    return network if all(t.device.type == "cpu" for t in state) else copy.deepcopy(network).to("cpu")


def _rows(example: Tensor, rows: int) -> Tensor:
    """As many rows as asked for, repeating those of the example."""
    return example.detach().cpu()[torch.arange(rows) % example.shape[0]]


def _describe(module: nn.Module) -> str:
    layers = collections.Counter(type(m).__name__ for m in module.modules() if not any(m.children()))
    return f"{type(module).__name__}: " + ", ".join(f"{n} {name}" for name, n in layers.items())
