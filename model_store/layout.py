"""The layouts in which `row.onnx` and `blocked.onnx` take weights.

Lengths: S weight vectors; a layer has n inputs and h outputs.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

WIDE: Final = ".wide"
"""Suffix of an input that takes a layer's matrices of all samples side by side: (S, h, n) as (n, S * h)."""

BLOCKS: Final = ".blocks"
"""Suffix of an input of `blocked.onnx` that takes what `blocks.onnx` makes of a weight."""

_ROWS_AT_ONCE: Final = 256


def laid_out(name: str, shape: Sequence[object], weights: Mapping[str, Float32]) -> Float32:
    """What an input of `row.onnx` takes.

    Args:
        name: of the input, that of a weight with or without `WIDE`.
        shape: of the input, as the graph states it; what is no number is the one free length.
        weights: (S, *shape), contiguous, by input name.

    Returns:
        A view of the weights, or a copy where they are laid out anew.
    """
    if name.endswith(WIDE):
        matrices = weights[name.removesuffix(WIDE)]
        return _turned(matrices.reshape(-1, matrices.shape[-1]))
    return weights[name].reshape([n if isinstance(n, int) else -1 for n in shape])


def _turned(rows: Float32) -> Float32:
    """(n, m) contiguous, of (m, n): in parts that stay in the processor's cache, twice as fast as numpy's copy."""
    found = np.empty(rows.shape[::-1], dtype=rows.dtype)
    for i in range(0, len(rows), _ROWS_AT_ONCE):
        found[:, i : i + _ROWS_AT_ONCE] = rows[i : i + _ROWS_AT_ONCE].T
    return found


def has_blocks() -> bool:
    """Whether ONNX Runtime surely has blocks of channels for this processor: elsewhere some releases have none, and run
    what needs them nonetheless."""
    return platform.machine().lower() in {"x86_64", "amd64"}
