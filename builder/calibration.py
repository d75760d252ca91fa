"""A first calibration: everything that is chosen on out-of-fold predictions.

Each row is predicted by the anchors whose fold it belongs to, which have not seen it. On these predictions of all
training rows the part of the trajectories that is used (their reach), the noise or temperature and the scores behind
the intervals are chosen: a small validation part would decide badly (a handful of points picks a noise level that the
next data punish).

Lengths: A anchors, N trajectories, T steps, n rows, m held-out rows of one anchor, S samples, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from builder.decoder import growth_of, scale_at
from builder.fiber import Fibers
from builder.moments import disagreement, mean_of, moments, moments_of, moments_within, who_disagree
from builder.network import FunctionalNetwork
from builder.noise import Noise, fit_noise
from builder.out_of_fold import (
    FITTED_ROWS,
    SEARCH_ROWS,
    OutOfFold,
    UnseenRows,
    gather,
    outputs_on_unseen,
    rows_to_judge,
)
from builder.predictive import conformal_quantile, mixture_probabilities, sample_outputs
from builder.runtime import values_at_once
from model_store.manifest import LatentPlan
from model_store.plan import draw_latents

_NLL_LOSS = 0.001, 0.012
_LEAST_NEAR = 0.5
"""Share of the particles of a node."""
_SAMPLES_PER_ANCHOR = 64
_FEWEST_SAMPLES, _MOST_WEIGHTS = 8, 2**28
"""Of an anchor, and of all anchors' samples together (1 GB)."""
_FEWEST_ROWS, _MOST_VALUES = 512, 2**26
"""That choose the reach, and of their outputs (256 MB)."""
_SPREAD_FROM = 3
"""The node from which on samples show where anchors differ."""


@dataclass(frozen=True)
class Reach:
    """The part of the trajectories in use.

    Attributes:
        node: last node whose predictions are as good as the best; 0 means that the anchors alone predict best.
        used: last node that samples are drawn up to: the same, but at least the first. It lies so near the anchors that
            predictions hardly change, and how samples differ there still tells familiar rows from others.
        shown: last node up to which samples show where anchors differ, whether they are drawn or not.
        out_of_fold: NLL with the trajectories up to each node, in the target's standardised units.
    """

    node: int
    used: int
    shown: int
    out_of_fold: list[float]


def choose_reach(
    network: FunctionalNetwork, fibers: Fibers, x: Tensor, y: Tensor, member: Tensor, served: int | None = None
) -> Reach:
    """Chooses how far along the trajectories to draw, jointly with noise or temperature, by out-of-fold NLL of so many
    anchors as are `served`, by default all."""
    count, _, particles = fibers.nodes.shape[:3]
    rows = rows_to_judge(member, _rows_at_most(count * particles, y, member))
    unseen = ~member[:, rows]
    # One anchor's at a time: flattened, nodes are copied.
    each = (nodes.flatten(0, 1) for nodes in fibers.nodes.unbind(1))
    outputs = outputs_on_unseen(network, each, x[rows], unseen)

    def up_to(last: int) -> tuple[list[Tensor], Tensor]:
        return [f[: (last + 1) * particles] for f in outputs], _position_weights(last, particles, x.device)

    def wide(last: int) -> int:
        return max(last, min(_SPREAD_FROM, count - 1))

    found = []
    for last in range(count):
        used, log_weight = up_to(last)
        if y.is_floating_point():
            # Where anchors differ does not depend on the reach: a short one must not look worse for not showing it.
            wider = None
            if wide(last) > last:
                shown, weight = up_to(wide(last))
                wider = moments_within(shown, unseen, weight.exp())[1]
            found.append(moments_of(used, unseen, y[rows], log_weight.exp(), served, wider).fit()[1])
        else:
            found.append(gather(used, unseen, y[rows], served).fit(log_weight)[1])
    near = (fibers.loss <= fibers.unseen[:, None]).double().mean((1, 2)) >= _LEAST_NEAR
    node = _furthest_as_good_as_best(torch.stack(found), near)
    return Reach(node=node, used=max(node, 1), shown=wide(node), out_of_fold=[float(r.mean()) for r in found])


def _rows_at_most(samples: int, y: Tensor, member: Tensor) -> int:
    """How many rows may be judged, so that outputs of so many samples of the anchors that did not see them fit."""
    outputs = 1 if y.is_floating_point() else int(y.max()) + 1
    together = samples * outputs * int((~member).sum(0).max())
    return min(SEARCH_ROWS, max(_FEWEST_ROWS, _MOST_VALUES // together))


def _furthest_as_good_as_best(nll: Tensor, near: Tensor) -> int:
    """The last of the nodes whose NLL (T+1, B) the rows cannot tell from the best one's; beyond the best, of those that
    are `near` (T+1,).

    Where familiar rows do not decide, more of the posterior is the honest choice: it is needed where there are none.
    A difference counts as none up to two standard errors of the paired differences, which in turn count as no less
    than a thousandth of a nat (where all nodes predict alike they mean nothing) and no more than twelve thousandths.
    Nor is it the posterior any more where half of the particles have left the low-loss set, and explain rows that they
    were trained on worse than the anchor explains rows that it was not: their average may still do.
    """
    mean = torch.nan_to_num(nll.mean(1), nan=math.inf)
    worse = nll - nll[mean.argmin()]
    tolerated = 2 * worse.std(1) / nll.shape[1] ** 0.5
    near = near | (torch.arange(len(near), device=near.device) <= mean.argmin())
    good = (near & (worse.mean(1) <= torch.nan_to_num(tolerated).clamp(*_NLL_LOSS))).nonzero()
    return int(good.max()) if len(good) else 0


def _position_weights(last: int, particles: int, device: torch.device) -> Tensor:
    """log weights of the nodes 0..last when positions are uniform on [0, last]: the end nodes count half."""
    weight = torch.ones(last + 1, device=device)
    if last:
        weight[0] = weight[-1] = 0.5
    weight = weight.repeat_interleave(particles)
    return (weight / weight.sum()).log()


@dataclass(frozen=True)
class Calibrated:
    """What calibration puts into the bundle.

    Attributes:
        spread: noise standard deviation (standardised target units), or the temperature.
        dispersion: of a classifier's logits, see `builder.predictive.contracted`; 1 for regression.
        map_spread: noise standard deviation or temperature of the anchors without fibers.
        conformity_scores: (n,) sorted scores behind the intervals or prediction sets.
        points: rows behind all of it.
        nll: out-of-fold NLL of the posterior; map_nll: of the anchors alone, with one level of noise.
        noise: how the noise differs from row to row, if it does; `spread` then is its level.
        noise_gain: by how much the NLL is less than with one level for all rows.
        unseen: the answers behind the scores, row by row.
    """

    spread: float
    dispersion: float
    map_spread: float
    conformity_scores: Tensor
    points: int
    nll: float
    map_nll: float
    noise: Noise | None = field(default=None, compare=False)
    noise_gain: float = 0.0
    unseen: UnseenRows | None = field(default=None, compare=False)

    def noise_std(self, x: Tensor) -> Tensor:
        """Standard deviation of the noise at encoded rows x (B, ...), in standardised target units: (B,), or one number
        where it is the same for all. The temperature of a classifier."""
        if self.noise is None:
            return torch.tensor(self.spread, dtype=torch.float64, device=x.device)
        relative: Tensor = torch.from_numpy(self.noise.shape.relative_variance(x.double().cpu().numpy()))
        return (self.spread * relative.sqrt()).to(x)


@dataclass(frozen=True)
class DecodedPosterior:
    """What a server would draw: the decoder with the nodes and the plans."""

    network: FunctionalNetwork
    decoder: torch.nn.Module
    nodes: np.ndarray[tuple[int, ...], np.dtype[np.float32]]

    def draw(self, plan: LatentPlan, samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Weights (S, P) and the anchor of each (S,)."""
        latents, anchors = draw_latents(plan, self.nodes, samples, seed)
        device = next(iter(self.decoder.buffers())).device
        anchor = torch.from_numpy(anchors).to(device)
        with torch.no_grad():
            weights: Tensor = self.decoder(torch.from_numpy(latents).to(device), anchor)[1]
        return weights, anchor


@dataclass(frozen=True)
class SampledPosterior:
    """What a server would draw if its decoder gave the trajectories back without an error.

    Attributes:
        nodes: (A, N, T+1, P) weights of the trajectories, the anchor first.
        scales: (T+1,) their drift scales.
    """

    network: FunctionalNetwork
    nodes: Tensor
    scales: Tensor

    @classmethod
    def of(cls, network: FunctionalNetwork, fibers: Fibers, last: int) -> SampledPosterior:
        """That of fibers up to a node."""
        return cls(network, fibers.nodes[: last + 1].permute(1, 2, 0, 3), fibers.scales[: last + 1])

    def draw(self, plan: LatentPlan, samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Weights (S, P) and the anchor of each (S,)."""
        unit = (self.scales / self.scales[-1]).to(self.nodes)
        # As the decoder does: in units of the drift scale, what lies between nodes is between theirs.
        scaled = (self.nodes[:, :, 1:] - self.nodes[:, :, :1]) / unit[1:, None]
        scaled = torch.cat([scaled[:, :, :1], scaled], dim=2)
        place = torch.linspace(0, 1, len(unit)).to(scaled)[:, None].expand(*scaled.shape[:3], 1)
        found, anchors = draw_latents(plan, torch.cat([scaled, place], dim=3).cpu().numpy(), samples, seed)
        drawn, anchor = torch.from_numpy(found).to(scaled), torch.from_numpy(anchors).to(scaled.device)
        return self.nodes[anchor, 0, 0] + scale_at(drawn[:, -1:], growth_of(unit)) * drawn[:, :-1], anchor


Posterior = DecodedPosterior | SampledPosterior


def calibrate(
    posterior: Posterior,
    anchors: Tensor,
    plan: LatentPlan,
    x: Tensor,
    y: Tensor,
    member: Tensor,
    wider: Posterior | None = None,
    served: int | None = None,
    samples: int | None = None,
    uneven: bool = False,
) -> Calibrated:
    """Calibrates the posterior around cross-fitted anchors on the rows that these did not see.

    Args:
        wider: samples that go far enough to show where anchors differ, if those of the posterior do not.
        served: how many anchors answer in service, by default all.
        samples: of each of these anchors in service, where they are so few that they answer otherwise than many: an
            average of few is surer of itself, and wants a higher temperature.
        uneven: whether a regression's noise may differ from row to row, by encoded inputs x (n, d).
    """
    regression, noise, gain = y.is_floating_point(), None, 0.0
    rows = (~member).any(0).nonzero().squeeze(1)
    unseen, target = ~member[:, rows], y[rows]
    drawn = weights_of_anchors(posterior, plan, _SAMPLES_PER_ANCHOR)

    judged = rows_to_judge(member[:, rows], FITTED_ROWS)
    at, inputs = unseen[:, judged], x[rows[judged]]
    each = outputs_on_unseen(posterior.network, anchors[:, None], inputs, at)
    labels = torch.cat([target[judged[u]] for u in at])
    map_spread, map_rows = OutOfFold([torch.cat(each, dim=1)], labels, 1).fit()

    dispersion = 1.0
    if regression:
        asked = unseen | who_disagree(unseen)
        within, means = of_anchors(
            posterior.network,
            drawn,
            x[rows],
            asked,
            lambda f: torch.stack(torch.var_mean(f[..., 0], 0, unbiased=False)),
        ).unbind(1)
        apart = None
        if wider is not None:
            further = weights_of_anchors(wider, plan, _SAMPLES_PER_ANCHOR)
            apart = of_anchors(wider.network, further, x[rows], unseen, lambda f: f[..., 0].var(0, unbiased=True))
        found = moments(means, within, unseen, target, disagreement(means, unseen), served, apart)
        spread, rows_nll = found.fit()
        if uneven:
            noise = fit_noise(x[rows], found.squared, found.within + found.between, spread)
        if noise is not None:
            found, even = replace(found, relative=noise.own), rows_nll
            spread, rows_nll = found.fit()
            gain = float((even - rows_nll).mean())
        scores = found.scores(spread)
        std = (spread * found.relative + found.within + found.between).sqrt()
        answered = UnseenRows(target, mean_of(means, unseen), std)
        spread, map_spread = math.sqrt(spread), math.sqrt(map_spread)
    else:
        few = own = outputs_on_unseen(posterior.network, drawn, inputs, at)
        if samples is not None:
            fewer = weights_of_anchors(posterior, plan, samples)
            few = outputs_on_unseen(posterior.network, fewer, inputs, at)
        spread, dispersion, rows_nll = gather(few, at, target[judged], served).fit_dispersed()
        p = torch.empty(len(rows), own[0].shape[2], device=x.device)
        p[judged] = averaged_over_unseen(own, at, spread, dispersion)
        others = torch.ones(len(rows), dtype=torch.bool, device=x.device)
        others[judged] = False
        size = max(1, values_at_once() // sum(f.shape[0] * f.shape[2] for f in own))
        for part in torch.split(others.nonzero().squeeze(1), size):
            outputs = outputs_on_unseen(posterior.network, drawn, x[rows[part]], unseen[:, part])
            p[part] = averaged_over_unseen(outputs, unseen[:, part], spread, dispersion)
        true = p.gather(1, target[:, None]).squeeze(1)
        each_score = (1 - true).double().clamp(0, 1)
        scores = each_score.sort().values
        held = (each_score <= conformal_quantile(scores, 0.9)) | (p.argmax(1) == target)
        answered = UnseenRows(target, covered=held)
    nll, map_nll = float(rows_nll.mean()), float(map_rows.mean())
    return Calibrated(spread, dispersion, map_spread, scores, len(target), nll, map_nll, noise, gain, answered)


def averaged_over_unseen(outputs: list[Tensor], unseen: Tensor, temperature: float, dispersion: float) -> Tensor:
    """Probabilities (m, C) averaged over the samples of the anchors that did not see a row, from the logits (S, m_a, C)
    of each anchor on those rows of `unseen` (A, m)."""

    def over_anchors(figures: list[Tensor]) -> Tensor:
        total = figures[0].new_zeros(unseen.shape[1], figures[0].shape[-1])
        for of_anchor, lacks in zip(figures, unseen, strict=True):
            total[lacks] += of_anchor
        return total / unseen.sum(0)[:, None]

    if dispersion < 1:
        middle = over_anchors([f.mean(0) for f in outputs])
        outputs = [torch.lerp(middle[lacks], f, dispersion) for f, lacks in zip(outputs, unseen, strict=True)]
    return over_anchors([mixture_probabilities(f, temperature) for f in outputs])


def drawn_of_each(plan: LatentPlan, anchors: int) -> int:
    """How many samples of each of so many anchors a server draws by default, about."""
    return max(1, round(plan.samples / anchors))


def weights_of_anchors(posterior: Posterior, plan: LatentPlan, samples: int, seed: int = 1) -> list[Tensor]:
    """So many samples (S_a, P) of every anchor, fewer of networks so large that they would not fit."""
    count = len(posterior.nodes)
    samples = min(samples, max(_FEWEST_SAMPLES, _MOST_WEIGHTS // (count * posterior.network.weights)))
    weights, anchor = posterior.draw(plan, samples * count, seed)
    return [weights[anchor == a] for a in range(count)]


def of_anchors(
    network: FunctionalNetwork, weights: list[Tensor], x: Tensor, asked: Tensor, figure: Callable[[Tensor], Tensor]
) -> Tensor:
    """A figure (..., m) of the outputs (S_a, m, O) of each anchor's samples on the rows x where `asked` (A, m); zero on
    the others: (A, ..., m).

    Outputs of all samples on all rows would be the largest thing of a build, so the rows are taken in parts.
    """
    with torch.no_grad():
        outputs = network(weights[0][0], x[:1]).shape[-1]
    # Less would do what is done once for every call of `sample_outputs`, which takes parts of its own, again and again.
    size = max(1, values_at_once() // (max(len(w) for w in weights) * outputs))
    found = []
    for w, here in zip(weights, asked, strict=True):
        values = torch.cat([figure(sample_outputs(network, w, part)) for part in torch.split(x[here], size)], -1)
        whole = values.new_zeros(*values.shape[:-1], len(x))
        whole[..., here] = values
        found.append(whole)
    return torch.stack(found)
