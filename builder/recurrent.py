"""Recurrent layers in plain operators, where torch's own cannot run: inside `vmap`, `vjp` and `jvp`, which have no rule
for `nn.GRU`, `nn.LSTM` and `nn.RNN` nor for the cell of an LSTM, and for gradients on a GPU, which cuDNN gives in
training mode alone. Elsewhere these run as they are, which is faster.

Lengths: T steps of a sequence, B rows, D inputs, H outputs of a layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

State = tuple[Tensor, ...]
"""What a layer remembers: its output (B, H) and, in an LSTM, the cell."""
Step = Callable[[Tensor, State, Tensor, Tensor | None], State]
"""From what the inputs give (B, gates), the state and the recurrent weights and bias to the next state."""


def in_plain_steps(parts: Sequence[nn.Module]) -> contextlib.AbstractContextManager[object]:
    """Lets recurrent layers among modules run in whatever transform they are called in. Each keeps the weights it last
    ran with, and references by which it sees whether it is given others: see `builder.plain`."""
    recurrent = any(isinstance(part, nn.RNNBase | nn.RNNCellBase) for part in parts)
    return _PlainSteps() if recurrent else contextlib.nullcontext()


class _PlainSteps(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        cell = _STEPS.get(name.removesuffix("_cell")) if name.endswith("_cell") else None
        if cell is not None and _cannot_run(args[:4]):  # biases may be none
            return _run_cell(cell, *args)
        step = _STEPS.get(name)
        # Packed sequences, whose fourth argument is the weights, are left to torch.
        if step is not None and len(args) == 9 and isinstance(args[3], bool) and _cannot_run(args[:3]):
            return _run(step, *args)
        return func(*args, **(kwargs or {}))


def _cannot_run(values: Any) -> bool:
    """Whether one of the tensors is a transform's, or wants a gradient on a GPU, where cuDNN has none in evaluation
    mode."""
    if isinstance(values, Tensor):
        wants = values.is_cuda and values.requires_grad and torch.is_grad_enabled()
        return wants or is_functorch_wrapped_tensor(values)
    return any(_cannot_run(v) for v in values)


def _run_cell(
    step: Step,
    x: Tensor,
    start: Tensor | Sequence[Tensor],
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    own_bias: Tensor | None = None,
) -> Tensor | State:
    """As `torch.gru_cell` and its like: the next state."""
    given = functional.linear(x, weight, bias)
    state = step(given, (start,) if isinstance(start, Tensor) else tuple(start), recurrent, own_bias)
    return state[0] if len(state) == 1 else state


def _run(
    step: Step,
    x: Tensor,
    start: Tensor | Sequence[Tensor],
    weights: Sequence[Tensor],
    biased: bool,
    layers: int,
    _dropout: float,  # of training alone, and modules are seen in evaluation mode
    _train: bool,
    both_ways: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """As `torch.gru` and its like: outputs for each step, and the state at the end."""
    states = (start,) if isinstance(start, Tensor) else tuple(start)
    ways = 2 if both_ways else 1
    each = len(weights) // (layers * ways)
    h, ends = x.transpose(0, 1) if batch_first else x, []
    for layer in range(layers):
        found = []
        for at in range(layer * ways, (layer + 1) * ways):
            own = weights[at * each : (at + 1) * each]
            outputs, end = _one_way(step, h, tuple(s[at] for s in states), own, biased, bool(at % ways))
            found.append(outputs)
            ends.append(end)
        h = torch.cat(found, -1)
    return h.transpose(0, 1) if batch_first else h, *(torch.stack(parts) for parts in zip(*ends, strict=True))


def _one_way(
    step: Step, x: Tensor, state: State, weights: Sequence[Tensor], biased: bool, backwards: bool
) -> tuple[Tensor, State]:
    """Outputs (T, B, H) of one layer for x (T, B, D), and its last state."""
    bias = weights[2:4] if biased else (None, None)
    projection = weights[4 if biased else 2 :]
    given = functional.linear(x, weights[0], bias[0])
    outputs = []
    for part in given.unbind(0)[::-1] if backwards else given.unbind(0):
        state = step(part, state, weights[1], bias[1])
        if projection:
            state = (functional.linear(state[0], projection[0]), *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _gru(given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    (h,) = state
    reset, update, new = given.chunk(3, -1)
    own_reset, own_update, own_new = functional.linear(h, weight, bias).chunk(3, -1)
    new = (new + own_new * (reset + own_reset).sigmoid()).tanh()
    return ((h - new) * (update + own_update).sigmoid() + new,)


def _lstm(given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    enter, forget, new, leave = (given + functional.linear(state[0], weight, bias)).chunk(4, -1)
    cell = forget.sigmoid() * state[1] + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def _tanh(given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    return ((given + functional.linear(state[0], weight, bias)).tanh(),)


def _relu(given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    return ((given + functional.linear(state[0], weight, bias)).relu(),)


_STEPS: Final[dict[str, Step]] = {"gru": _gru, "lstm": _lstm, "rnn_tanh": _tanh, "rnn_relu": _relu}
