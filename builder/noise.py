"""How large the noise of a target is, row by row: learned from the squared errors on rows that networks had not seen.

The variance is one level for all rows times `exp(g(x))`, g a small network of the encoded inputs, as in Nix and Weigend
1994 ("Estimating the mean and variance of the target probability distribution"), but trained after the mean and on
errors of rows that this was not fitted to (Hall and Carroll 1989, "Variance function estimation in regression"). It is
used only where it predicts rows that g was not trained on better than one level for all does, beyond chance.

Lengths: n rows, d encoded inputs, H hidden units, K networks side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from model_store.noise import NoiseShape

_HIDDEN: Final = 16
_FEWEST_ROWS, _MOST_ROWS, _MOST_NUMBERS = 100, 2048, 2**17
"""Rows that are learned from, of which so many differ at least, and how many numbers they hold at most."""
_BLOCK: Final = 8192
_FOLDS: Final = 5
_DECAYS: Final = (3.0, 10.0, 30.0, 100.0)
"""Precisions of the prior of g's weights that are tried."""
_STEPS, _RATE = 300, 0.02
_FURTHEST: Final = 3.0
"""Standard deviations from the mean beyond which an input counts as that far."""
_LEAST_GAIN, _ERRORS = 0.005, 2.0
"""Nats a row that g has to gain, and standard errors of that."""
_LARGEST: Final = 6.0
"""Of |g| while it is trained."""
_RARE: Final = 0.01
"""Share of rows with the largest errors, or with g at either end, that count as the row next to them: a few rows do not
tell how far that goes."""


@dataclass(frozen=True)
class Noise:
    """Noise whose size differs from row to row.

    Attributes:
        shape: what is served.
        own: (n,) relative variance at the rows it was learned from, each by a network that was not trained on the row.
    """

    shape: NoiseShape
    own: Tensor


def fit_noise(x: Tensor, squared: Tensor, epistemic: Tensor, level: float) -> Noise | None:
    """The noise's size by row, or None where rows do not tell it from one for all.

    Args:
        x: (n, d) encoded inputs.
        squared: (n,) squared errors of networks that had not seen the rows.
        epistemic: (n,) variance of what these predict.
        level: variance of the noise, were it the same for all rows.
    """
    if not all(bool(torch.isfinite(v).all()) for v in (x, squared, epistemic)):
        return None
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(x), generator=generator)[: min(_MOST_ROWS, _MOST_NUMBERS // x.shape[1])]
    every = x.float().cpu()
    some = every[rows]
    center, scale = some.mean(0), some.std(0)
    scale = torch.where(scale > 1e-6, scale, torch.ones_like(scale))
    z = _near(some, center, scale)
    error, doubt = (v.float().cpu()[rows] / level for v in (squared, epistemic))
    # One row far out would decide alone; so rare errors count as the least of them.
    error = error.clamp(max=float(error.quantile(1 - _RARE)))

    # Copies of a row are in one fold: those that are trained on would tell of the others.
    copy = torch.unique(some, dim=0, return_inverse=True)[1]
    distinct = int(copy.max()) + 1
    if distinct < _FEWEST_ROWS:
        return None
    fold = (torch.randperm(distinct, generator=generator) % _FOLDS)[copy]
    kept = torch.stack([*(fold != k for k in range(_FOLDS)), torch.ones(len(rows), dtype=torch.bool)])
    decay = torch.tensor(_DECAYS).repeat_interleave(len(kept))
    networks = _train(z, error, doubt, kept.repeat(len(_DECAYS), 1), decay, generator)
    g = _outputs(z, networks).reshape(len(_DECAYS), len(kept), -1)
    unseen = g[:, fold, torch.arange(len(rows))]
    gain = _nll(_level(error, doubt, kept)[fold], error, doubt) - _nll(unseen, error, doubt)
    mean = gain.mean(1)
    best = int(mean.argmax())
    # The simplest that is as good as the best, as far as rows tell.
    apart = (gain[best] - gain).std(1) / math.sqrt(distinct)
    chosen = max(i for i in range(len(_DECAYS)) if mean[i] >= mean[best] - apart[i])
    if not bool(mean[chosen] >= max(_LEAST_GAIN, _ERRORS * float(gain[chosen].std()) / math.sqrt(distinct))):
        return None
    network = [p[chosen * len(kept) + _FOLDS][None] for p in networks]
    ends = g[chosen, _FOLDS].quantile(torch.tensor([_RARE, 1 - _RARE]))
    own = torch.cat([_outputs(_near(part, center, scale), network)[0] for part in torch.split(every, _BLOCK)])
    own[rows] = unseen[chosen]
    # Of the inputs as they are encoded, not as z-scores of these.
    center, scale, hidden, output = (v.double() for v in (center, scale, network[0][0], network[1][0, :, 0]))
    own_hidden = torch.cat([hidden[:-1] / scale[:, None], hidden[-1:] - (center / scale) @ hidden[:-1]])
    low, high = center - _FURTHEST * scale, center + _FURTHEST * scale
    shape = NoiseShape(low.numpy(), high.numpy(), own_hidden.numpy(), output.numpy(), ends.double().numpy())
    return Noise(shape, own.clamp(float(ends[0]), float(ends[1])).exp().to(squared))


def _near(x: Tensor, center: Tensor, scale: Tensor) -> Tensor:
    return ((x - center) / scale).clamp(-_FURTHEST, _FURTHEST)


def _level(error: Tensor, doubt: Tensor, kept: Tensor) -> Tensor:
    """(K,) the g of least NLL that is one for all rows, over the rows `kept` (K, n)."""
    tried = torch.linspace(-_LARGEST, _LARGEST / 4, 121)
    loss = torch.stack([_nll(g, error, doubt) for g in tried])
    return tried[(kept.float() @ loss.T).argmin(1)]


def _train(
    z: Tensor, error: Tensor, doubt: Tensor, kept: Tensor, decay: Tensor, generator: torch.Generator
) -> list[Tensor]:
    """Weights (K, d + 1, H) and (K, H + 1, 1) of networks of z (n, d), each of the rows `kept` (K, n) and of `decay`
    (K,)."""
    width = z.shape[1]
    hidden = torch.zeros(width + 1, _HIDDEN)
    hidden[:-1] = torch.randn(width, _HIDDEN, generator=generator) / math.sqrt(width)
    output = torch.zeros(_HIDDEN + 1, 1)
    output[:-1] = 0.1 * torch.randn(_HIDDEN, 1, generator=generator)
    networks = [p.repeat(len(kept), 1, 1).requires_grad_() for p in (hidden, output)]
    optimizer = torch.optim.Adam(networks, _RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_STEPS)
    share = kept / kept.sum(1, keepdim=True)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss = (_nll(_outputs(z, networks), error, doubt) * share).sum(1)
        penalty = torch.stack([p[:, :-1].square().sum((1, 2)) for p in networks]).sum(0)
        (loss + decay / kept.sum(1) * penalty).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return [p.detach() for p in networks]


def _outputs(z: Tensor, networks: list[Tensor]) -> Tensor:
    """(K, n) g of rows z (n, d)."""
    hidden, output = networks
    units = torch.tanh(z @ hidden[:, :-1] + hidden[:, -1:])
    return (units @ output[:, :-1] + output[:, -1:])[..., 0].clamp(-_LARGEST, _LARGEST)


def _nll(g: Tensor, error: Tensor, doubt: Tensor) -> Tensor:
    """NLL (..., n) but for a constant, with the level of the noise as the unit of errors and doubt."""
    variance = g.exp() + doubt
    return 0.5 * error / variance + 0.5 * variance.log()
