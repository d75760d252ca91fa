"""A network of the user's own as it comes: the callable that makes it, its weights, and what shows of both before
anything is run.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from builder.network import NetworkFactory
from model_store.errors import ConfigError

_LONGEST, _MOST_LINES = 300, 8
"""Of what torch says of weights that do not fit: it names every parameter."""
_STANDARD = Path(sysconfig.get_path("stdlib"))
_FOREIGN = (Path(torch.__file__).parent, Path(__file__).parent)
"""Folders whose code is not the user's own."""


def import_factory(reference: str) -> NetworkFactory:
    """Imports `module:factory`, a callable without arguments that returns an `nn.Module`.

    The current folder is searched first, as `python -m` does.

    Raises:
        ConfigError: it cannot be imported, or what it returns is no module.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise ConfigError(
            "--network needs the form module:factory.", field="network", expected="module:factory", got=reference
        )
    here = Path.cwd()
    # Whatever the user's own code raises, a script's exit included, is told and not thrown at the user.
    try:
        with _searched_first(here):
            factory = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as e:
        raise ConfigError(
            f"--network {reference} cannot be imported: {type(e).__name__}: {e}.", field="network", got=reference
        ) from e
    return checked_factory(factory, f"--network {reference}")


def checked_factory(factory: object, name: str) -> NetworkFactory:
    """A factory that tells what the user's own does not do: it makes an `nn.Module`, and another one each time.

    Raises:
        ConfigError: it cannot be called, or is a network itself.
    """
    if isinstance(factory, nn.Module):
        raise ConfigError(
            f"{name} is a network itself. Give a callable that makes one, such as its class: each anchor starts from "
            "its own.",
            field="network",
            expected="a callable without arguments that returns a torch.nn.Module",
            got=type(factory).__name__,
        )
    if not callable(factory):
        raise ConfigError(f"{name} must be callable.", field="network", got=type(factory).__name__)
    here, last = Path.cwd(), list[object]()

    def checked() -> nn.Module:
        try:
            with _searched_first(here):
                module = factory()
        except ConfigError:
            raise
        except Exception as e:
            raise ConfigError(
                f"{name} makes no network: {type(e).__name__}: {e}.",
                field="network",
                expected="a callable without arguments that returns a torch.nn.Module",
            ) from e
        if not isinstance(module, nn.Module):
            raise ConfigError(f"{name} must return a torch.nn.Module.", field="network", got=type(module).__name__)
        if any(module is made for made in last):
            raise ConfigError(
                f"{name} returns the same network each time, so that all anchors would start alike. Let it make a new "
                "one, such as by copy.deepcopy.",
                field="network",
            )
        last[:] = [module]
        return module

    return checked


@contextlib.contextmanager
def _searched_first(folder: Path) -> Iterator[None]:
    """Imports look into the folder first."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the imported code may have changed the path itself
            sys.path.remove(str(folder))


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads a safetensors state dict into a module, in place.

    Raises:
        ConfigError: the file is unreadable, its names or shapes are not the module's, or a weight is not finite.
    """
    try:
        module.load_state_dict(_with_tied(_in_names_of(module, load_file(path)), module))
    except OSError as e:
        raise ConfigError(f"--weights {path} cannot be read: {e.strerror or e}.", field="weights") from e
    except SafetensorError as e:
        raise ConfigError(
            f"--weights {path} is no safetensors file ({e}); write one with safetensors.torch.save_file(state, FILE), "
            "where state is what network.load_state_dict takes.",
            field="weights",
        ) from e
    except Exception as e:
        lines = [line.strip() for line in str(e).splitlines()]
        why = " ".join(line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..." for line in lines[:_MOST_LINES])
        raise ConfigError(f"--weights {path} does not fit the network: {why}", field="weights") from e
    # Infinity in a buffer may be meant, as that of a mask.
    unsound = {n: ~torch.isfinite(p) for n, p in module.named_parameters()}
    unsound |= {n: torch.isnan(b) for n, b in module.named_buffers()}
    for name, where in unsound.items():
        if bool(where.any()):
            raise ConfigError(
                f"--weights {path} holds NaN or infinity in {name}; train the network again.", field="weights", got=name
            )


def _in_names_of(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state in the module's own names, where it was saved as a part of another module (`module.` of DataParallel,
    `_orig_mod.` of torch.compile, the attribute of whatever trained it), or where the module has the network that was
    saved as its one part. Untouched where that can be taken in several ways."""
    names = [name for name, _ in module.named_parameters()]
    if not names or names[0] in state:
        return state
    before = {n.removesuffix(names[0]) for n in state if n.endswith("." + names[0])}
    extra = [prefix for prefix in before if all(prefix + n in state for n in names)]
    within = {names[0].removesuffix(n) for n in state if names[0].endswith("." + n)}
    lacking = [p for p in within if all(n.startswith(p) and n.removeprefix(p) in state for n in names)]
    if len(extra) == 1:
        return {n.removeprefix(extra[0]): value for n, value in state.items()}
    return {lacking[0] + n: value for n, value in state.items()} if len(lacking) == 1 else state


def _with_tied(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """A state with every name of a tensor that has several, of which `safetensors.torch.save_model` keeps one."""
    names: dict[int, list[str]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(name)
    for tied in names.values():
        kept = next((n for n in tied if n in state), None)
        state |= {n: state[kept] for n in tied if kept is not None and n not in state}
    return state


def refuse_unsuited(module: nn.Module) -> None:
    """Raises ConfigError where a network is wrapped, or its weights are none that a build computes with."""
    if isinstance(module, torch.jit.ScriptModule | nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ConfigError(
            f"The network is a {type(module).__name__}, whose weights cannot be replaced. Return the module itself, "
            "without torch.jit and DataParallel.",
            field="network",
            got=type(module).__name__,
        )
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.device.type != "cpu":
            raise ConfigError(
                f"{name} is on the device {value.device}. Return the network as it is on the CPU; --device says where "
                "it is built.",
                field="network",
                got=str(value.device),
            )
    for name, value in module.named_parameters():
        if value.dtype != torch.float32 and (value.is_floating_point() or value.is_complex()):
            raise ConfigError(
                f"{name} holds {value.dtype}, and a build computes in torch.float32. Return network.float(), and cast "
                "nothing in forward.",
                field="network",
                expected="parameters of torch.float32",
                got=str(value.dtype),
            )


def refuse_unknown_shapes(module: nn.Module) -> None:
    """Raises ConfigError where parameters get their shapes at the first run only."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(value):
            raise ConfigError(
                f"{name} has no shape before the network first runs (nn.LazyLinear and its like). Give the layer its "
                "numbers of inputs and outputs.",
                field="network",
                got=name,
            )


def refuse_untrained_batch_norm(module: nn.Module) -> None:
    """Raises ConfigError where a network that is still to be trained holds batch normalisation that is not frozen."""
    for name, part in module.named_modules():
        if not isinstance(part, nn.modules.batchnorm._BatchNorm):
            continue
        if not part.affine or any(p.requires_grad for p in part.parameters()):
            raise ConfigError(
                f"{name} is batch normalisation, which cannot be trained for many weight vectors at once. "
                "Use nn.GroupNorm, or train the network yourself and pass --weights (its statistics then stay fixed); "
                "in a body that is trained already, freeze it by requires_grad_(False).",
                field="network",
            )


def place_of(error: BaseException) -> str:
    """Where in the user's own code an error arose, as a part of a sentence; empty where it was elsewhere."""
    while error.__cause__ is not None:
        error = error.__cause__
    own = [f for f in traceback.extract_tb(error.__traceback__) if _is_own(Path(f.filename))]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: {(own[-1].line or '')[:100]})" if own else ""


def _is_own(file: Path) -> bool:
    standard = file.is_relative_to(_STANDARD) and "site-packages" not in file.parts
    return file.is_file() and not standard and not any(file.is_relative_to(folder) for folder in _FOREIGN)


def unknown_layers(module: nn.Module) -> list[str]:
    """Attributes that hold layers in a plain list or dict: a module does not know of their weights."""
    known, found = set(module.modules()), []
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            layers = [v for v in held if isinstance(v, nn.Module) and v not in known]
            if any(True for layer in layers for _ in layer.parameters()):
                found.append(f"{name}.{attribute}".lstrip("."))
    return found
