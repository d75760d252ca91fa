"""A network's own code in plain operators, so that it runs inside torch's transforms and can be exported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from builder.recurrent import in_plain_steps


@contextlib.contextmanager
def in_plain_operators(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Lets all modules of a network run in whatever transform they are called in, or be exported, and leaves nothing of
    it in them."""
    with _plain_attention(), in_plain_steps(parts), _as_they_were(parts):
        yield


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention in plain operators: the fused ones have no batching rule (vmap loops over them) and no ONNX form."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextlib.contextmanager
def _as_they_were(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Lets modules forget what a run puts into their attributes, such as hidden values to look at: of a transform, or
    with a gradient, nothing can copy them later."""
    own = [dict(part.__dict__) for part in parts]
    try:
        yield
    finally:
        for part, attributes in zip(parts, own, strict=True):
            part.__dict__.clear()
            part.__dict__.update(attributes)
