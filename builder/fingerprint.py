"""What tells one network from another: its values, its code, and what it computes."""

from __future__ import annotations

import ast
import copy
import hashlib
import inspect
import textwrap

import numpy as np
import torch
from torch import Tensor, nn

_UNIT = 1e-4
"""Of the largest output, to which outputs are rounded: their last bits are the machine's, not the network's."""


def network_digest(module: nn.Module, x: Tensor) -> str:
    """A hash of all that a network starts with, of its classes' source, and of its outputs for rows x (B, ...).

    Outputs alone would not show code that few rows need, and source not what it calls elsewhere.
    """
    found = hashlib.sha256(repr(module).encode())
    found.update(repr([p.requires_grad for p in module.parameters()]).encode())
    for name, value in module.state_dict().items():
        found.update(name.encode())
        if isinstance(value, Tensor):
            found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:  # what a module gives as its extra state
            found.update(repr(value).encode())
    for source in sorted(_sources(module)):
        found.update(source.encode())
    module = copy.deepcopy(module).cpu().eval()
    x, threads = x.detach().cpu(), torch.get_num_threads()
    torch.set_num_threads(1)  # sums are in the same order whatever else the machine does
    try:
        with torch.no_grad():
            found.update(_computed(module, x))
            # The first weights of some layers are nought, and hide what stands before.
            generator = torch.Generator().manual_seed(0)
            for parameter in filter(Tensor.is_floating_point, module.parameters()):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            found.update(_computed(module, x))
    finally:
        torch.set_num_threads(threads)
    return found.hexdigest()


def _sources(module: nn.Module) -> set[str]:
    """The source of all classes of a module that are not torch's, as far as there is one."""
    found = set()
    for kind in {base for part in module.modules() for base in type(part).__mro__}:
        if not kind.__module__.startswith(("torch.", "builtins")):
            try:
                # Not its text: another comment is no other network.
                found.add(ast.dump(ast.parse(textwrap.dedent(inspect.getsource(kind)))))
            except (OSError, TypeError, SyntaxError):
                found.add(kind.__qualname__)
    return found


def _computed(module: nn.Module, x: Tensor) -> bytes:
    """Rounded outputs, in double precision where the network bears that."""
    try:
        out = copy.deepcopy(module).double()(x.double())
    except Exception:  # the network is the user's own code, and may raise anything
        try:
            out = module(x.clone())
        except Exception as e:  # at the second weights
            return type(e).__name__.encode()
    values = out.double().numpy()
    scale = np.abs(values[np.isfinite(values)]).max(initial=0.0) or 1.0
    rounded = np.nan_to_num(np.rint(values / scale / _UNIT), nan=2e6, posinf=3e6, neginf=4e6)
    return bytes(rounded.astype(np.int64).tobytes())
