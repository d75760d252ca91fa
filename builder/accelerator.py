"""What a CUDA device needs to be used well: gradients that are recorded once, and half precision for large networks.

Small networks leave a fast device idle while it waits for the next operation to be launched. Recorded operations (CUDA
graphs) are launched all at once, and weight vectors that run in turn do so on streams of their own, side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from builder.network import FunctionalNetwork

_WARM_UPS: Final = 3
_HALF_FROM: Final = 1_000_000
"""Weights from which on gradients are taken in half precision: smaller networks are not bound by arithmetic."""


class Recorded:
    """A function of tensors, recorded for each combination of their shapes and replayed; on a CPU it is just called.

    It must return tensors, launch the same operations whatever the values are, and wait for none of them.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self._function = function
        self._recordings: dict[tuple[torch.Size, ...], _Recording] = {}

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """The function's values, all on the device of the first argument."""
        if arguments[0].device.type != "cuda":
            return self._function(*arguments)
        shapes = tuple(a.shape for a in arguments)
        if shapes not in self._recordings:
            self._recordings[shapes] = _Recording(self._function, arguments)
        return self._recordings[shapes](arguments)


class _Recording:
    def __init__(self, function: Callable[..., tuple[Tensor, ...]], arguments: tuple[Tensor, ...]) -> None:
        self._arguments = [a.detach().clone() for a in arguments]
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            # Libraries choose their ways and take their memory at first calls, which cannot be recorded.
            for _ in range(_WARM_UPS):
                function(*self._arguments)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._found = function(*self._arguments)

    def __call__(self, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for own, given in zip(self._arguments, arguments, strict=True):
            own.copy_(given)
        self._graph.replay()
        return tuple(f.clone() for f in self._found)


def outputs_for_gradients(network: FunctionalNetwork, thetas: Tensor, x: Tensor) -> Tensor:
    """Outputs (N, B, O) as `FunctionalNetwork.batched` gives them, on a CUDA device in bfloat16 where the network is
    large: weights, and so their gradients and sums, stay in single precision. What a user is answered never comes from
    here."""
    if x.device.type != "cuda" or network.weights < _HALF_FROM or network.fixed or not x.is_floating_point():
        return network.batched(thetas, x)
    return network.batched(thetas.bfloat16(), x.bfloat16()).float()
