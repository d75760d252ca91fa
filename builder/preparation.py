"""What a build starts from: the device, the network and who is trained on what."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from builder.config import BuildConfig
from builder.data import Dataset, assign_folds, part_of
from builder.network import MLP, FunctionalNetwork, NetworkFactory
from builder.own_network import (
    import_factory,
    load_weights,
    place_of,
    refuse_unknown_shapes,
    refuse_unsuited,
    refuse_untrained_batch_norm,
)
from builder.predictive import sample_outputs
from model_store.errors import ConfigError
from model_store.manifest import ClassificationTarget

_MEMORY = 0.5
_SMALL_NETWORK = 10_000
"""Weights up to which there are two rounds of ten folds, so that anchors see more of the rows; beyond it, of five."""
_MANY_ROWS = 40_000
"""From which on a tenth of them shows what is to be chosen within a few hundredths."""
_HOLDOUT, _HOLDOUT_OF_MANY = 0.2, 0.1


def choose_device(config: BuildConfig) -> torch.device:
    """The device asked for. Raises ConfigError where CUDA is asked for and missing."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("There is no CUDA device here; use --device cpu.", field="--device", got="cuda")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def standardized(config: BuildConfig) -> bool:
    """Whether numbers are encoded as z-scores: by default unless trained weights, made for the numbers as they are."""
    return config.network.weights is None if config.data.standardize is None else config.data.standardize


def make_factory(config: BuildConfig, dataset: Dataset) -> NetworkFactory:
    """Makes the network named in the config, or the default MLP for the data."""
    if config.network.factory is not None:
        return import_factory(config.network.factory)
    shape = dataset.x.shape[1:]

    def make() -> nn.Module:
        mlp = MLP(int(np.prod(shape)), config.network.hidden, dataset.outputs, config.network.activation)
        return mlp if len(shape) == 1 else nn.Sequential(nn.Flatten(), *mlp)

    return make


def make_module(config: BuildConfig, dataset: Dataset, factory: NetworkFactory) -> nn.Module:
    """The module with its first or given weights.

    Raises:
        ConfigError: it does not fit the data, or cannot be trained.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = factory()
    refuse_unsuited(module)
    if config.network.weights is not None:
        load_weights(module, config.network.weights)
    else:
        refuse_untrained_batch_norm(module)
    refuse_unknown_shapes(module)
    network = FunctionalNetwork(module)
    looks_up = any(isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in module.modules())
    try:
        outputs = network(network.current(), torch.from_numpy(dataset.x[:2].copy())).shape[1]
        if looks_up:  # any row may hold a code that is not there
            sample_outputs(network, network.current()[None], torch.from_numpy(dataset.x))
    except ConfigError:
        raise
    except Exception as e:  # the network is the user's own code, and may raise anything
        codes = ""
        if looks_up and standardized(config):
            codes = ". Numbers reach it as z-scores; where they are codes, say --set data.standardize=false"
        elif looks_up and "Long, Int" in str(e):
            codes = ". Inputs are of torch.float32; look codes up with x.long()"
        raise ConfigError(
            f"The network does not take the data: {type(e).__name__}: {e}{place_of(e)}{codes}",
            field="network",
            expected=f"a network for inputs of shape (rows, {', '.join(map(str, dataset.x.shape[1:]))})",
        ) from e
    if outputs != dataset.outputs:
        raise _other_number_of_outputs(outputs, dataset)
    return module


def _other_number_of_outputs(outputs: int, dataset: Dataset) -> ConfigError:
    way_out = ""
    if dataset.outputs == 1:
        way_out = " Return the mean of one target alone: its noise is learned here, and each target has its own model."
    elif isinstance(dataset.target, ClassificationTarget) and dataset.outputs == 2 and outputs == 1:
        way_out = (
            f" With one logit z for {dataset.target.classes[1]!r}, before any sigmoid, return "
            "torch.cat([torch.zeros_like(z), z], 1)."
        )
    return ConfigError(
        "The network has the wrong number of outputs." + way_out,
        field="network",
        expected=f"{dataset.outputs} output(s): " + ("one a class" if dataset.outputs > 1 else "the mean"),
        got=str(outputs),
    )


def default_memory(device: torch.device) -> float:
    """Gigabytes that one batch may take, where the config names none."""
    if device.type != "cuda":
        return _MEMORY
    return max(_MEMORY, torch.cuda.get_device_properties(device).total_memory / 4e9)


def assign_members(config: BuildConfig, module: nn.Module, y: Tensor) -> Tensor:
    """(A, n) bool: which of the training rows (targets y) each anchor is trained on.

    Anchors are cross-fitted, each leaving out a fold; when all folds are taken the next round shuffles the rows anew,
    so that with two rounds every row is unseen by two anchors. Where weights are given, or some are trained and then
    stay fixed and so are the same for all anchors, there is one anchor and one held-out part instead. A classification
    of very many rows has one held-out part for all its anchors: it shows the temperature of all together, which a few
    unseen ones suggest to first order only, and it is enough rows. A regression's moments need no such part.
    """
    network = FunctionalNetwork(module, config.network.posterior)
    cross_fit = config.network.weights is None and network.parameters == FunctionalNetwork(module).parameters
    many = len(y) >= _MANY_ROWS
    usual = 10 if network.weights <= _SMALL_NETWORK else 5
    most = config.map.folds or (1 if many and not y.is_floating_point() else usual)
    # With one part all anchors are judged together: no more of them are needed than are served.
    several = (config.map.served or 2 * usual) if most == 1 else 2 * most
    anchors = config.map.anchors or (several if cross_fit else 1)
    if anchors > 1 and not cross_fit:
        raise ConfigError(
            "With given or partly fixed weights all anchors would share what they have seen; use one.",
            field="map.anchors",
            expected="1",
            got=str(anchors),
        )
    strata = np.zeros(len(y), dtype=np.int64) if y.is_floating_point() else y.cpu().numpy()
    if most == 1 or anchors == 1:
        share = config.map.holdout or (_HOLDOUT_OF_MANY if many else _HOLDOUT)
        held = part_of(strata, max(share, 1 / len(y)), np.random.Generator(np.random.PCG64(config.seed)))
        return torch.from_numpy(~held).repeat(anchors, 1)
    folds = min(anchors, most)
    rounds = [assign_folds(strata, folds, config.seed + 7907 * r) for r in range(-(-anchors // folds))]
    return torch.stack([torch.from_numpy(rounds[a // folds] != a % folds) for a in range(anchors)])
