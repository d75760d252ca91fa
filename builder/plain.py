"""A network's own code in plain operators, so that it runs inside torch's transforms and can be exported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm
from torch.overrides import TorchFunctionMode

from builder.recurrent import in_plain_steps


@contextlib.contextmanager
def in_plain_operators(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Lets all modules of a network run in whatever transform they are called in, or be exported, and leaves nothing of
    it in them."""
    with _plain_attention(), in_plain_steps(parts), _plain_weight_norm(parts), _as_they_were(parts):
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


def _plain_weight_norm(parts: Sequence[nn.Module]) -> contextlib.AbstractContextManager[object]:
    has = any(isinstance(part, _WeightNorm) for part in parts)
    return _PlainWeightNorm() if has else contextlib.nullcontext()


class _PlainWeightNorm(TorchFunctionMode):
    """Weight normalisation in plain operators: the fused one has no derivative in forward mode."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _scaled(*args) if func is torch._weight_norm else func(*args, **(kwargs or {}))


def _scaled(direction: Tensor, length: Tensor, dim: int) -> Tensor:
    """Weights of these lengths along one dimension, or with -1 of one length."""
    others = [d for d in range(direction.ndim) if d != dim]
    weight: Tensor = direction * (length / torch.linalg.vector_norm(direction, dim=others, keepdim=dim >= 0))
    return weight


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
