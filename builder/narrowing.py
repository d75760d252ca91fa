"""A first layer of few columns: what a server can mix instead of reading the weights of every sample.

Most weights of a network of linear layers with many inputs are those of the first. They count only by what they make of
the inputs, and there the fibers of an anchor, which leave it along one direction each, span hardly more dimensions than
there are fibers. So the decoder's columns of such a layer are projected onto the few directions in which its
activations vary most,

    c H  ->  c Q H,   Q of rank r, the best for E norm(c (1 - Q) H x)^2

for coordinates c of the sampled nodes, the layer's part H of the decoder's basis, and training rows x. All other layers
keep the rank of the decoder. `builder.mixing` makes a base of it.

Lengths: A anchors, N trajectories, T steps, r columns, n inputs and h outputs of a layer, C columns of the head.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from builder.calibration import DecodedPosterior
from builder.decoder import WeightDecoder
from builder.export import mixable
from builder.likelihood import GaussianLikelihood, Likelihood
from builder.mixing import most_columns
from builder.network import FunctionalNetwork
from builder.predictive import answer_of, answers_apart, sample_outputs
from model_store.manifest import LatentPlan, ParameterSpec

_TOLERATED: Final = 0.008
"""Nats a row by which a narrow layer may move the answers to training rows. What it costs on test rows is a fraction:
in the experiment `ranks` a thousandth where it moves them by this."""
_ROWS: Final = 512
_SAMPLES: Final = 64


def narrow_first_layers(
    network: FunctionalNetwork,
    decoder: WeightDecoder,
    nodes: Tensor,
    x: Tensor,
    likelihood: Likelihood,
    plan: LatentPlan,
    columns: int | None = None,
) -> WeightDecoder:
    """A decoder whose wide first layers have as few columns an anchor as answers can be given with.

    Args:
        network, decoder: of P weights.
        nodes: (A, N, T+1, k) latents.
        x: (B, ...) encoded training rows.
        likelihood: what answers are compared under.
        plan: what a server draws; its samples bound the columns.
        columns: r; by default the fewest with which the averaged predictive distributions of training rows stay as they
            are, if these are few enough to pay; 0 for none.

    Returns:
        The decoder itself where there is no such layer, or nothing to gain.
    """
    rows = x[:: -(-len(x) // _ROWS)]
    layers = mixable(network, rows) if columns != 0 else []
    given = _given(network, layers, rows)
    if not layers or given is None:
        return decoder
    # Those of all layers are mixed together.
    most = (most_columns(plan.samples) // decoder.anchors - 1) // len(layers)
    ranks: Sequence[int] = [columns] if columns else _ranks(min(most, decoder.rank - 1))
    if not ranks:
        return decoder
    ordered = [_directions(decoder, nodes, layer, flat) for layer, flat in zip(layers, given, strict=True)]
    want = _answer(network, decoder, nodes, rows, likelihood, plan)
    for rank in ranks:
        narrow = _projected(decoder, layers, ordered, rank)
        if columns:
            return narrow
        got = _answer(network, narrow, nodes, rows, likelihood, plan)
        apart = answers_apart(want, got, isinstance(likelihood, GaussianLikelihood))
        if apart <= _TOLERATED:
            return narrow
    return decoder


def _given(network: FunctionalNetwork, layers: Sequence[ParameterSpec], rows: Tensor) -> list[Tensor] | None:
    """What each layer takes of the rows, (B, n); None where one is no `nn.Linear`, or takes more than once."""
    found: dict[str, list[Tensor]] = {p.name: [] for p in layers}

    def keep(name: str, taken: tuple[Tensor, ...]) -> None:
        found[name].append(taken[0].detach())

    hooks = []
    for name in found:
        owner = network.module.get_submodule(name.rpartition(".")[0])
        if type(owner) is not nn.Linear:
            return None
        hooks.append(owner.register_forward_pre_hook(lambda _, taken, name=name: keep(name, taken)))
    try:
        with torch.no_grad():
            network.module(rows)
    finally:
        for hook in hooks:
            hook.remove()
    return [taken[0] for taken in found.values()] if all(len(t) == 1 for t in found.values()) else None


def _ranks(most: int) -> list[int]:
    return [r for r in range(1, most + 1) if r <= 4 or r % 2 == 0 or r == most]


def _directions(
    decoder: WeightDecoder, nodes: Tensor, layer: ParameterSpec, flat: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """For each anchor (rank, rank) root and directions: `root^-1 u u^T root` projects coordinates onto direction u, the
    last of which matter most."""
    n = layer.shape[1]
    coordinates = decoder.coordinates(nodes.flatten(1, 2)).detach().double()
    found = []
    for anchor, basis in enumerate(_of_layer(decoder, layer)):
        response = (basis.reshape(-1, n) @ flat.T).reshape(len(basis), -1).double()
        values, vectors = torch.linalg.eigh(response @ response.T / len(flat))
        values = values.clamp(min=1e-10 * max(float(values.max()), 1e-30)).sqrt()
        root, inverse = vectors * values @ vectors.T, vectors / values @ vectors.T
        own = coordinates[anchor] @ root
        _, directions = torch.linalg.eigh(own.T @ own)
        found.append((root @ directions, directions.T @ inverse))
    return found


def _of_layer(decoder: WeightDecoder, layer: ParameterSpec) -> Tensor:
    """(A, rank, h*n): the layer's part of each anchor's basis."""
    part = decoder.head[:, layer.offset : layer.offset + math.prod(layer.shape)]
    return part.view(decoder.anchors, 1 + decoder.rank, -1)[:, 1:]


def _projected(
    decoder: WeightDecoder, layers: Sequence[ParameterSpec], ordered: Sequence[list[tuple[Tensor, Tensor]]], rank: int
) -> WeightDecoder:
    narrow = copy.deepcopy(decoder)
    for layer, anchors in zip(layers, ordered, strict=True):
        for basis, (into, back) in zip(_of_layer(narrow, layer), anchors, strict=True):
            basis.copy_((into[:, -rank:] @ back[-rank:]).to(basis.dtype) @ basis)
    return narrow


def _answer(
    network: FunctionalNetwork,
    decoder: WeightDecoder,
    nodes: Tensor,
    rows: Tensor,
    likelihood: Likelihood,
    plan: LatentPlan,
) -> tuple[Tensor, Tensor]:
    weights, _ = DecodedPosterior(network, decoder, nodes.cpu().numpy()).draw(plan, _SAMPLES)
    regression = isinstance(likelihood, GaussianLikelihood)
    spread = likelihood.noise_std if isinstance(likelihood, GaussianLikelihood) else 1.0
    return answer_of(sample_outputs(network, weights, rows), spread, regression)
