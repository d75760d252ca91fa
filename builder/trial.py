"""What a network must bear, tried before any training: a build should not fail hours later for what shows in seconds.

Lengths: P random weights, n rows.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from builder.curvature import linear_response, scaled_jacobian
from builder.data import Dataset
from builder.export import SCALE_ROWS, export_features, export_network
from builder.exported import reason
from builder.features import FeatureNetworks
from builder.likelihood import likelihood_of
from builder.network import MLP, FunctionalNetwork
from builder.own_network import place_of, unknown_layers
from builder.predictive import sample_outputs
from model_store.errors import ConfigError
from model_store.manifest import TensorInput

_KNOWN: Final = (nn.Sequential, MLP, nn.Flatten, nn.Linear, nn.ReLU, nn.Tanh, nn.SiLU, nn.GELU)
_ROWS: Final = 512
"""Of which a note about the outputs is taken."""
_SCALES: Final = (0.1, 1.0, 1.0)
"""Of noise on the weights at which it is looked where gradients reach."""
_ROUNDING: Final = 1e-3
"""Share of the largest output that differences of rounding stay far below."""
_ADVICE: Final = (
    (
        r"random operation",
        "Leave out what is random in evaluation too: F.dropout needs training=self.training, or use nn.Dropout.",
    ),
    (r"weight_norm usage", "Use torch.nn.utils.parametrizations.weight_norm in place of torch.nn.utils.weight_norm."),
    (r"in-?place|mutate", "Write it without changing tensors in place: torch.cat or torch.where, and h = h * 2."),
    (r"deepcopy|storage of", "Keep no tensor of forward in a list or dict of the module; attributes may hold them."),
    (r"pickle", "A build copies the network: keep generators, locks and open files out of its attributes."),
    (
        r"control flow|\.item\(\)",
        "Replace branches on values (`if h.mean() > 0`) by torch.where, which takes both, and F.one_hot(i, n) by "
        "(i[..., None] == torch.arange(n)).float(); leave out item() and assertions on values.",
    ),
    (r"does not require grad", "Leave torch.no_grad() and detach() out of what makes the outputs."),
    (r"data pointer", "Write it with torch's functions instead of numpy's."),
    (r"checkpoint", "Leave out torch.utils.checkpoint."),
    (r"embedding_bag", "Use nn.Embedding and the mean or sum over the codes in place of nn.EmbeddingBag."),
)
_OTHERWISE: Final = "Replace that part by one that torch.vmap takes, or give its weights and train other layers alone."


def try_network(module: nn.Module, posterior: str, trained: bool, dataset: Dataset) -> None:
    """Runs a network, on the CPU, in all ways that a build will: twice, with weight vectors side by side, with their
    gradients and curvature, copied, and exported.

    Args:
        module: with its first or given weights; it has been seen to take two rows.
        posterior: names of the random parameters.
        trained: whether the weights were given.

    Raises:
        ConfigError: it does not bear one of these; the message says which, and what to do.
    """
    if all(type(part) in _KNOWN and not part._forward_hooks for part in module.modules()):
        return
    full, x = FunctionalNetwork(module), torch.from_numpy(dataset.x[:SCALE_ROWS].copy())
    _refuse_changes(full, x[:2])
    network = FunctionalNetwork(module, posterior)
    with _side_by_side(module):
        for each in [network] if trained or network.fixed_weights == 0 else [network, full]:
            thetas = each.current().repeat(2, 1).requires_grad_()
            torch.autograd.grad(each.batched(thetas, x[:2]).sum(), thetas)
        _refuse_unreached(network if trained else full, x)
        if trained:
            sample_outputs(full, full.current()[None], x[:2])
        y = torch.from_numpy(dataset.y[:2])
        likelihood = likelihood_of(torch.ones(1), y, dataset.outputs)
        theta = network.current()
        linear_response(network, theta, x[:2], likelihood, theta.repeat(2, 1))
        scaled_jacobian(network, theta, x[:1], likelihood)
        copy.deepcopy(module)
    exported = export_network(network, x)
    features = FeatureNetworks(full, full.current()[None])
    if isinstance(dataset.inputs, TensorInput) and features.served(x) is not None:
        export_features(features, x, exported)


def _refuse_changes(network: FunctionalNetwork, x: Tensor) -> None:
    """Raises ConfigError where a network changes its inputs, or gives something else for the same rows."""
    rows, theta = x.clone(), network.current()
    with torch.no_grad():
        first, second = network(theta, rows), network(theta, x.clone())
    name = type(network.module).__name__
    if not torch.equal(rows, x):
        raise ConfigError(
            f"{name} changes the rows it is given in place. Let forward start with x = x.clone(), or write it without.",
            field="network",
        )
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise ConfigError(
            f"{name} gives other outputs for the same rows each time, in evaluation mode too. {_ADVICE[0][1]}",
            field="network",
        )


def _refuse_unreached(network: FunctionalNetwork, x: Tensor) -> None:
    """Raises ConfigError where outputs go by random weights that have no gradient: training would only shrink them.

    Args:
        network: all weights that are trained are random or, where none are, those of the posterior.
    """
    generator = torch.Generator().manual_seed(0)
    places = {p.name: slice(p.offset, p.offset + math.prod(p.shape)) for p in network.parameters}
    cut_off = list(places)
    # Not at the first weights: where some are nought, so is the gradient of those before. Nor at one place alone, where
    # all units of a narrow layer may be off.
    for scale in _SCALES:
        theta = network.current() + scale * torch.randn(network.weights, generator=generator)
        outputs = network(theta.requires_grad_(), x)
        (slope,) = torch.autograd.grad(outputs, theta, torch.randn(outputs.shape, generator=generator))
        cut_off = [name for name in cut_off if not slope[places[name]].any()]
        if not cut_off:
            return
    other = theta.detach().clone()
    for name in cut_off:
        other[places[name]] += torch.randn(other[places[name]].shape, generator=generator)
    with torch.no_grad():
        change = (network(other, x) - outputs).abs().max()
    # More than rounding: a bias in front of a normalisation has no gradient and says nothing.
    if change > _ROUNDING * outputs.abs().max():
        raise ConfigError(
            f"No gradient reaches {', '.join(cut_off[:5])}, as by torch.no_grad() or detach() in forward: training "
            "would only shrink these weights. Freeze them by requires_grad_(False), or leave that out.",
            field="network",
            got=", ".join(cut_off[:5]),
        )


@contextmanager
def _side_by_side(module: nn.Module) -> Iterator[None]:
    """Says of whatever torch raises what the network cannot do."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as e:  # the network is the user's own code, and may raise anything
        why = reason(e)
        advice = next((a for pattern, a in _ADVICE if re.search(pattern, str(e))), _OTHERWISE)
        raise ConfigError(
            f"{type(module).__name__} cannot run with several weight vectors side by side, as a build does: "
            f"{why}{place_of(e)}. {advice}",
            field="network",
            expected="a network that torch.func.vmap, jvp and vjp take",
            got=why,
        ) from e


def notes_on(module: nn.Module, given: bool, dataset: Dataset) -> list[str]:
    """What a user should know of a network, and cannot see from figures."""
    notes = []
    if given:
        notes.append(
            "Weights were given: intervals, flags and figures hold only if they were not trained on any of these rows, "
            "which a build cannot tell. If they were, build with others, such as the validation set."
        )
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    if not given and 0 < len(frozen) < len(list(module.parameters())):
        notes.append(
            f"Frozen parameters stay as the network is made: {', '.join(frozen[:5])}{', ...' if frozen[5:] else ''}. "
            "Numbers reach the network as z-scores unless data.standardize=false."
        )
    unknown = unknown_layers(module)
    if unknown:
        notes.append(
            f"Layers in plain lists are not trained and stay as they are made: {', '.join(unknown[:10])}. Hold them in "
            "nn.ModuleList or nn.ModuleDict."
        )
    if dataset.outputs > 1:
        network = FunctionalNetwork(module)
        outputs = sample_outputs(network, network.current()[None], torch.from_numpy(dataset.x[:_ROWS]))[0]
        within = bool(((outputs >= 0) & (outputs <= 1)).all())
        if within and bool(((outputs.sum(1) - 1).abs() < 1e-3).all()):
            notes.append(
                "The network's outputs are probabilities (they lie within 0 and 1 and sum to 1), but are taken as "
                "logits, so that no class can become likely. Leave out the softmax at its end."
            )
    return notes
