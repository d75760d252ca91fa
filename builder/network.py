"""The network as a function of a flat weight vector.

Any `nn.Module` becomes a pure function `f(theta, x)` through `torch.func`, so that many weight vectors run as one
batch. Which parameters are random is a choice (`posterior`); the rest stay fixed at their present values. Modules are
seen in evaluation mode: dropout is off, and batch normalisation uses the statistics it holds.

Lengths: P random weights, N weight vectors, B rows, O outputs.
"""

from __future__ import annotations

import copy
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils.flop_counter import FlopCounterMode

from builder.plain import in_plain_operators
from builder.runtime import concurrently, side_by_side
from model_store.errors import ConfigError
from model_store.manifest import ParameterSpec

R = TypeVar("R")
NetworkFactory = Callable[[], nn.Module]

_MOST_STREAMS = 16
"""Of a CUDA device, on which weight vectors run side by side."""
_MOST_IN_A_VECTOR = 16
"""Numbers that a vector of a processor holds."""
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU}


class FunctionalNetwork:
    """A module as a function of the weights that are random.

    Attributes:
        module: the module, in evaluation mode.
        parameters: the random parameters in the order of the flat vector.
        weights: P.
        fixed: the other parameters and the buffers, detached.
    """

    def __init__(self, module: nn.Module, posterior: str = ".*") -> None:
        """Args:
            module: the network; its present values become the fixed part.
            posterior: regular expression; parameters whose whole name, or a part from its beginning, matches
                are random (`re.match`), but for those that hold nothing, and for those without `requires_grad`
                where others have it.

        Raises:
            ConfigError: the expression is invalid or matches no parameter.
        """
        try:
            pattern = re.compile(posterior)
        except re.error as e:
            raise ConfigError(f"--posterior is no regular expression: {e}.", field="posterior", got=posterior) from e
        self.module = module.eval()
        named = dict(module.named_parameters())
        matched = [name for name, parameter in named.items() if pattern.match(name) and parameter.numel()]
        self.parameters: list[ParameterSpec] = []
        offset = 0
        for name in [name for name in matched if named[name].requires_grad] or matched:
            shape = list(named[name].shape)
            spec = ParameterSpec(name=name, input=f"weights.{name}", shape=shape, offset=offset)
            self.parameters.append(spec)
            offset += math.prod(shape)
        if not self.parameters:
            raise ConfigError(
                "--posterior matches no parameter of the network.",
                field="posterior",
                expected="a regular expression over: " + ", ".join(list(named)[:12]),
                got=posterior,
            )
        self.weights = offset
        random = {p.name for p in self.parameters}
        self.fixed: dict[str, Tensor] = {n: p.detach() for n, p in named.items() if n not in random}
        self.fixed_weights = sum(t.numel() for t in self.fixed.values())
        self.fixed |= {n: b.detach() for n, b in module.named_buffers()}
        self._dense = _dense_layers(module) if len(self.parameters) == len(named) else None
        self._parts = list(module.modules())
        self._convolves = self.fixed_weights == 0 and any(len(p.shape) > 2 for p in self.parameters)
        self._channels_last = not any(_writes_beyond_its_room(part) for part in self._parts)

    def to(self, device: torch.device | str) -> FunctionalNetwork:
        """Moves the module and its fixed part to a device; returns itself."""
        self.module.to(device)
        self.fixed = {n: t.to(device) for n, t in self.fixed.items()}
        return self

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Splits weights (..., P) into named parameters (..., *shape)."""
        # Not a slice each: the gradient of a slice is as long as theta, so that taking them would cost their number.
        parts = torch.split(theta, [math.prod(p.shape) for p in self.parameters], dim=-1)
        lead = theta.shape[:-1]
        return {p.name: part.reshape((*lead, *p.shape)) for p, part in zip(self.parameters, parts, strict=True)}

    def flatten(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The flat weight vector (P,) of named parameters; names that are not random are ignored."""
        return torch.cat([parameters[p.name].detach().reshape(-1) for p in self.parameters])

    def current(self) -> Tensor:
        """The flat weight vector (P,) of the module's own values."""
        return self.flatten(dict(self.module.named_parameters()))

    def apply(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs (B, O) for named random parameters and inputs x (B, ...)."""
        with in_plain_operators(self._parts):
            out = functional_call(self.module, {**self.fixed, **parameters}, (x,))
        if not isinstance(out, Tensor) or out.ndim != 2 or out.shape[0] != x.shape[0]:
            raise _other_outputs(out, len(x))
        return out

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Outputs (B, O) for one weight vector theta (P,) and inputs x (B, ...)."""
        return self.apply(self.unflatten(theta), x)

    def batched(self, thetas: Tensor, x: Tensor) -> Tensor:
        """Outputs (N, B, O) for weight vectors (N, P) on the same inputs x (B, ...).

        What does not depend on the random weights is computed once, not N times; where networks run in turn there is
        nothing of the kind, and images have their channels last, which is faster.
        """
        if self._dense is not None and x.ndim == 2:
            return self._layer_by_layer(self._dense, thetas, x)
        if not self.in_turn(x.device):
            return vmap(self, in_dims=(0, None))(thetas, x)
        if x.device.type == "cuda":
            return self._side_by_side(thetas, x)
        if self._channels_last and x.ndim == 4:
            try:
                return self._each(thetas, x.contiguous(memory_format=torch.channels_last))
            except RuntimeError:
                # A module may ask for the plain layout, as `x.view(len(x), -1)` does. Other errors come again.
                self._channels_last = False
        return self._each(thetas, x)

    def in_turn(self, device: torch.device) -> bool:
        """Whether weight vectors run one after the other, and not as one batch: convolutions, a batch of which is a
        slow grouped convolution, where all weights are random."""
        return self._convolves and device.type in {"cpu", "cuda"}

    def _layer_by_layer(self, layers: Sequence[nn.Module], thetas: Tensor, x: Tensor) -> Tensor:
        """The same as by vmap, which small networks spend much of their time on.

        Rows are the last dimension of what is in between, as torch then takes less time: sums over rows, such as the
        gradients of weights, run along memory, as does a softmax over few classes. A linear layer's gradient does not
        need what it put out, which a ReLU may so overwrite.
        """
        parameters = iter(self.unflatten(thetas).values())
        columns = x.mT.contiguous()
        h = columns.expand(len(thetas), *columns.shape)
        for before, layer in zip([None, *layers[:-1]], layers, strict=True):
            if isinstance(layer, nn.Linear):
                weight, bias = next(parameters), next(parameters)
                h = torch.baddbmm(bias.unsqueeze(2), weight, h)
            elif isinstance(layer, nn.ReLU) and isinstance(before, nn.Linear):
                h = h.relu_()
            else:
                h = layer(h)
        return h.mT

    def faster_apart(self, count: int, device: torch.device) -> bool:
        """Whether so many weight vectors in turn take less time each on a thread of its own than all threads on each:
        small convolutions leave threads that share one waiting for each other."""
        return device.type == "cpu" and self.in_turn(device) and count >= torch.get_num_threads()

    def divided(self, count: int, threads: int) -> list[tuple[slice, FunctionalNetwork]]:
        """So many weight vectors as even parts, at most one a thread, each with a network to run it on: a functional
        call puts its weights into the module for as long as it runs, so that threads cannot share one."""
        size = -(-count // threads)
        parts = [slice(at, at + size) for at in range(0, count, size)]
        return [(part, copy.deepcopy(self) if i else self) for i, part in enumerate(parts)]

    def in_parts(self, count: int, device: torch.device, of: Callable[[slice, FunctionalNetwork], R]) -> list[R]:
        """What `of` gives for each part of so many weight vectors and a network to run it on, without gradients; side
        by side where that takes less time, else of all as one part."""

        def without_gradients(part: tuple[slice, FunctionalNetwork]) -> R:
            with torch.no_grad():  # of this thread: it is not handed on to others
                return of(*part)

        with side_by_side(self.faster_apart(count, device)) as threads:
            return concurrently(threads, without_gradients, self.divided(count, threads))

    def _each(self, thetas: Tensor, x: Tensor) -> Tensor:
        return torch.stack([self(theta, x) for theta in thetas])

    def _side_by_side(self, thetas: Tensor, x: Tensor) -> Tensor:
        """As `_each`, each weight vector on a stream of its own; gradients follow on the same streams."""
        here, found = torch.cuda.current_stream(x.device), []
        streams = _streams(x.device)[: len(thetas)]
        for i, theta in enumerate(thetas):
            stream = streams[i % len(streams)]
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                found.append(self(theta, x))
        for stream in streams:
            here.wait_stream(stream)
        return torch.stack(found)

    def operations(self, x: Tensor) -> int:
        """Floating point operations of one forward pass on x (B, ...) with one weight vector."""
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self(self.current(), x)
        return max(1, int(counter.get_total_flops()))

    def activations(self, x: Tensor) -> int:
        """Values that the modules put out in one forward pass on x (B, ...) with one weight vector."""
        count = 0

        def add(_module: nn.Module, _args: object, out: object) -> None:
            nonlocal count
            count += out.numel() if isinstance(out, Tensor) else 0

        hooks = [m.register_forward_hook(add) for m in self.module.modules()]
        try:
            with torch.no_grad():
                self(self.current(), x)
        finally:
            for hook in hooks:
                hook.remove()
        return max(1, count)


def _other_outputs(out: object, rows: int) -> ConfigError:
    """What is said of a network that returns something else than a row of outputs for each of its rows."""
    way_out = ""
    if isinstance(out, Tensor):
        if out.shape == (rows,):
            way_out = " One output is a column: leave out a squeeze(-1) at the end, or add .unsqueeze(1)."
    elif isinstance(out, tuple | list):
        way_out = " Let forward return the outputs alone, such as the first of what it returns now."
    else:
        way_out = " Let forward return the tensor of outputs alone, such as out.logits or out['logits']."
    return ConfigError(
        "The network must return one row of outputs for each input row." + way_out,
        field="network",
        expected=f"a tensor of shape ({rows}, outputs)",
        got=str(tuple(out.shape)) if isinstance(out, Tensor) else type(out).__name__,
    )


def _dense_layers(module: nn.Module) -> list[nn.Module] | None:
    """The layers of a module that is nothing but linear layers with a bias and activations between them, else None."""
    if not isinstance(module, nn.Sequential) or type(module) not in {nn.Sequential, MLP}:
        return None
    layers = list(module)  # not its children, which leave out what comes again
    linear = [layer for layer in layers if type(layer) is nn.Linear and layer.bias is not None]
    others = [layer for layer in layers if type(layer) in _ACTIVATIONS.values()]
    # Fewer where a layer, or a weight of two, comes again.
    apart = sum(1 for _ in module.parameters()) == 2 * len(linear) > 0
    plain = apart and len(linear) + len(others) == len(layers)
    return layers if plain and not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()) else None


def _writes_beyond_its_room(module: nn.Module) -> bool:
    """Whether a convolution overwrites memory that is not its own where channels are last: the gradient of the weights
    of one pixel does, with a stride and fewer input channels than the processor's vectors hold (oneDNN issue 6035)."""
    if not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1):
        return False
    return max(module.stride) > 1 and module.in_channels // module.groups < _MOST_IN_A_VECTOR


@functools.cache
def _streams(device: torch.device) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in range(_MOST_STREAMS)]  # type: ignore[no-untyped-call]


class MLP(nn.Sequential):
    """Fully connected network, (B, inputs) -> (B, outputs)."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, activation: str = "relu") -> None:
        if activation not in _ACTIVATIONS:
            raise ConfigError(
                f"There is no activation {activation!r}.",
                field="network.activation",
                expected="one of: " + ", ".join(_ACTIVATIONS),
                got=activation,
            )
        layers: list[nn.Module] = []
        width = inputs
        for size in hidden:
            layers += [nn.Linear(width, size), _ACTIVATIONS[activation]()]
            width = size
        layers.append(nn.Linear(width, outputs))
        super().__init__(*layers)
