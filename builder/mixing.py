"""Weights that a base mixes of few columns instead of taking them, and the decoder that goes with it.

The decoder's head is linear, `weights = coefficients @ head`. Where its part for the first layers has few independent
columns, `head = shares @ columns`, the base has the columns as constants, computes the layers once for each, and mixes
the results of a sample by `coefficients @ shares`, which the decoder gives in place of the layers' weights: these are
neither decoded nor kept nor read.

Lengths: C columns of the head, r independent ones of the part that is mixed, P random weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from builder.decoder import WeightDecoder
from builder.network import FunctionalNetwork
from builder.onnx_layers import Heads
from model_store.manifest import MIXING, ParameterSpec

_INDEPENDENT: Final = 1e-6
"""Length of what is new in a column, beside its own: less is the rounding of float32."""


def most_columns(samples: int) -> int:
    """Up to how many columns mixing is faster than the weights of so many samples: a layer's cost goes with either."""
    return samples * 3 // 4


@dataclass(frozen=True)
class Mixture:
    """What is mixed.

    Attributes:
        heads: by input name of a parameter its columns (r, *shape).
        shares: (C, r), of the decoder's columns in these.
    """

    heads: Heads
    shares: Tensor


def mixture_of(network: FunctionalNetwork, head: Tensor, inputs: Iterable[str]) -> Mixture:
    """That of the parameters with these input names, of a head (C, P) on the CPU."""
    wanted = set(inputs)
    chosen = [p for p in network.parameters if p.input in wanted]
    if not chosen:
        return Mixture({}, head.new_zeros(len(head), 0))
    part = torch.cat([head[:, p.offset : p.offset + math.prod(p.shape)] for p in chosen], dim=1)
    length = part.norm(dim=1, keepdim=True).double().clamp(min=1e-30)
    unit = part.double() / length
    values, vectors = torch.linalg.eigh(unit @ unit.T)
    kept = values > values.max() * _INDEPENDENT**2
    columns = (vectors[:, kept].T @ unit).float()
    shares = (length * vectors[:, kept]).float()
    sizes = [math.prod(p.shape) for p in chosen]
    heads = {
        p.input: columns_of.reshape(-1, *p.shape).contiguous().numpy()
        for p, columns_of in zip(chosen, columns.split(sizes, dim=1), strict=True)
    }
    return Mixture(heads, shares)


def worthwhile(mixture: Mixture, samples: int) -> Mixture | None:
    """The mixture, where it makes an answer of so many samples faster."""
    return mixture if mixture.heads and mixture.shares.shape[1] <= most_columns(samples) else None


def given_parameters(parameters: Sequence[ParameterSpec], heads: Heads) -> list[ParameterSpec]:
    """What a base takes that mixes those of `heads`: the others, and what they are mixed by if there are any."""
    found: list[ParameterSpec] = []
    end = 0
    for p in parameters:
        if p.input not in heads:
            found.append(p.model_copy(update={"offset": end}))
            end += math.prod(p.shape)
    if heads:
        columns = len(next(iter(heads.values())))
        found.append(ParameterSpec(name=MIXING, input=MIXING, shape=[columns], offset=end))
    return found


def matching_decoder(decoder: WeightDecoder, network: FunctionalNetwork, mixture: Mixture | None) -> WeightDecoder:
    """The decoder that gives what a base takes with such a mixture; the same for none."""
    if mixture is None:
        return decoder
    head = decoder.head.detach().cpu()
    kept = [p for p in network.parameters if p.input not in mixture.heads]
    parts = [head[:, p.offset : p.offset + math.prod(p.shape)] for p in kept]
    # Without a copy of the whole head, which is most of a decoder.
    matching = copy.copy(decoder)
    matching._buffers = {**decoder._buffers, "head": torch.cat([*parts, mixture.shares], dim=1)}
    return matching
