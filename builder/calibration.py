"""A first calibration: everything that is chosen on out-of-fold predictions.

Each row is predicted by the anchors whose fold it belongs to, which have not seen it. On these predictions of all
training rows the part of the trajectories that is used (their reach), the noise or temperature, the scores behind the
intervals and the OOD threshold are chosen: a small validation part would decide badly (a handful of points picks a
noise level that the next data punish).

Lengths: A anchors, N trajectories, T steps, n rows, m held-out rows of one anchor, S samples, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.config import CalibrationConfig
from builder.fiber import Fibers
from builder.network import FunctionalNetwork
from builder.predictive import (
    categorical_nll,
    conformal_quantile,
    gaussian_mixture_nll,
    mixture_probabilities,
    sample_outputs,
)
from model_store.manifest import LatentPlan, OodDetector
from model_store.plan import draw_latents

_SEARCH_ROWS = 4096
_NLL_LOSS = 0.001, 0.01
_LEAST_SHARE = 0.2
"""Noise or temperature beside all anchors is never less than this share of that beside one."""
_SAMPLES_PER_ANCHOR = 64


@dataclass(frozen=True)
class Reach:
    """The part of the trajectories in use.

    Attributes:
        node: last node of the predictive plan; 0 means that the anchors alone predict best.
        wide: last node of the OOD plan: the same, but for a reach too short to show any spread.
        out_of_fold: NLL with the trajectories up to each node, in the target's standardised units.
    """

    node: int
    wide: int
    out_of_fold: list[float]


def choose_reach(network: FunctionalNetwork, fibers: Fibers, x: Tensor, y: Tensor, member: Tensor) -> Reach:
    """Chooses how far along the trajectories to draw, jointly with noise or temperature, by out-of-fold NLL."""
    count, anchors, particles = fibers.nodes.shape[:3]
    rows = _rows_to_judge(member)
    unseen = ~member[:, rows]
    outputs = []
    for a in range(anchors):
        weights = fibers.nodes[:, a].flatten(0, 1)
        outputs.append(sample_outputs(network, weights, x[rows[unseen[a]]]))
    found = []
    for last in range(count):
        used = _out_of_fold([f[: (last + 1) * particles] for f in outputs], unseen, y[rows])
        found.append(used.fit(_position_weights(last, particles, x.device))[1])
    node = _furthest_as_good_as_best(torch.stack(found))
    # Without any reach there still must be a spread to tell familiar from unfamiliar.
    return Reach(node=node, wide=max(node, min(3, count - 1)), out_of_fold=[float(r.mean()) for r in found])


def _furthest_as_good_as_best(nll: Tensor) -> int:
    """The last of the nodes whose NLL (T+1, B) the rows cannot tell from the best one's.

    Where familiar rows do not decide, more of the posterior is the honest choice: it is needed where there are none.
    A difference counts as none up to the standard error of the paired differences, which in turn counts as no less
    than a thousandth of a nat (where all nodes predict alike it means nothing) and no more than a hundredth.
    """
    mean = torch.nan_to_num(nll.mean(1), nan=math.inf)
    worse = nll - nll[mean.argmin()]
    error = worse.std(1) / nll.shape[1] ** 0.5
    good = (worse.mean(1) <= torch.nan_to_num(error).clamp(*_NLL_LOSS)).nonzero()
    return int(good.max()) if len(good) else 0


def _position_weights(last: int, particles: int, device: torch.device) -> Tensor:
    """log weights of the nodes 0..last when positions are uniform on [0, last]: the end nodes count half."""
    weight = torch.ones(last + 1, device=device)
    if last:
        weight[0] = weight[-1] = 0.5
    weight = weight.repeat_interleave(particles)
    return (weight / weight.sum()).log()


@dataclass(frozen=True)
class _OutOfFold:
    """Outputs of the samples of anchors on m rows that these anchors did not see.

    Attributes:
        first: (S, m, O), of one anchor a row; second: of another one, or None where rows are unseen by one only.
        y: (m,); anchors: A, how many are served.
    """

    first: Tensor
    second: Tensor | None
    y: Tensor
    anchors: int

    def fit(self, log_weight: Tensor | None = None) -> tuple[float, Tensor]:
        """The noise variance or temperature with the least NLL of the average over all A anchors' samples, and that
        NLL of each row (m,).

        A row is unseen by one or two anchors only. What averaging gains is, to first order, the anchors' variance, and
        that goes with 1 - 1/n in the number of anchors n: from the best for one and for two follows that for A.
        """
        one, rows = self._fit([self.first] if self.second is None else [self.first, self.second], log_weight)
        if self.second is None:
            return one, rows
        both = None if log_weight is None else torch.cat([log_weight, log_weight]) - math.log(2)
        two, rows_of_two = self._fit([torch.cat([self.first, self.second])], both)
        further = 2 * (1 - 1 / self.anchors)
        # Not all of the noise can be the anchors' own.
        return max(one + further * (two - one), _LEAST_SHARE * one), rows + further * (rows_of_two - rows)

    def _fit(self, members: list[Tensor], log_weight: Tensor | None) -> tuple[float, Tensor]:
        """The best spread for mixtures (S, m, O), of which each predicts alone, and their mean NLL of each row."""
        if not all(bool(torch.isfinite(f).all()) for f in members):
            return 1.0, torch.full(self.y.shape, math.inf, device=self.y.device)
        y = self.y
        if not y.is_floating_point():
            grid = np.geomspace(0.4, 4.0, 21)
            return _best_of(
                grid, lambda t: _mean(categorical_nll(mixture_probabilities(f, t, log_weight), y) for f in members)
            )
        base = float(_mean((f[..., 0].mean(0) - y).square() for f in members).mean().clamp(min=1e-10))
        grid = base * np.logspace(-2.0, 0.3, 24)
        return _best_of(grid, lambda v: _mean(gaussian_mixture_nll(f[..., 0], y, v, log_weight) for f in members))


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)


def _rows_to_judge(member: Tensor) -> Tensor:
    """Indices of rows that no fewer anchors than others did not see, evenly chosen where there are too many."""
    unseen = (~member).sum(0)
    rows = (unseen >= min(2, int(unseen.max()))).nonzero().squeeze(1)
    return rows[:: -(-len(rows) // _SEARCH_ROWS)]


def _out_of_fold(outputs: list[Tensor], unseen: Tensor, y: Tensor) -> _OutOfFold:
    """From the outputs (S, m_a, O) of each anchor on the rows, out of m, that it did not see."""
    order = unseen.int().argsort(stable=True, dim=0, descending=True)
    picked: list[Tensor] = []
    for place in range(min(2, int(unseen.sum(0).min()))):
        shape = outputs[0].shape
        whole = torch.empty(shape[0], len(y), shape[2], device=y.device)
        for a, f in enumerate(outputs):
            here = order[place] == a
            whole[:, here] = f[:, here[unseen[a]]]
        picked.append(whole)
    return _OutOfFold(picked[0], picked[1] if len(picked) > 1 else None, y, len(outputs))


def _best_of(grid: NDArray[np.float64], nll: Callable[[float], Tensor]) -> tuple[float, Tensor]:
    """The value with the least mean NLL, and the NLL of each row: of the grid, then between its neighbours there."""

    def best(values: NDArray[np.float64]) -> tuple[float, Tensor]:
        found = [(float(value), nll(float(value))) for value in values]
        return min(found, key=lambda f: float(torch.nan_to_num(f[1].mean(), nan=math.inf)))

    value, _ = best(grid)
    step = grid[1] / grid[0]
    return best(value * np.geomspace(step**-0.8, step**0.8, 9))


@dataclass(frozen=True)
class Calibrated:
    """What calibration puts into the bundle.

    Attributes:
        spread: noise standard deviation (standardised target units), or the temperature.
        map_spread: the same for the anchors without fibers.
        interval_scores: sorted scores behind the intervals (regression), empty for classification.
        detector: the OOD detector.
        points: rows behind all of it.
        nll: out-of-fold NLL of the decoded posterior; map_nll: of the anchors alone, calibrated alike.
        coverage: out-of-fold share of rows in the 90 % interval (regression).
    """

    spread: float
    map_spread: float
    interval_scores: Tensor
    detector: OodDetector
    points: int
    nll: float
    map_nll: float
    coverage: float


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


def calibrate(
    posterior: DecodedPosterior,
    anchors: Tensor,
    plans: dict[str, LatentPlan],
    x: Tensor,
    y: Tensor,
    member: Tensor,
    config: CalibrationConfig,
) -> Calibrated:
    """Calibrates the decoded posterior on the rows that anchors did not see."""
    regression = y.is_floating_point()
    rows = (~member).any(0).nonzero().squeeze(1)
    unseen, target = ~member[:, rows], y[rows]
    outputs = _outputs_of_anchors(posterior, plans["predict"], x[rows])
    wide = _outputs_of_anchors(posterior, plans["ood"], x[rows])

    judged = _rows_to_judge(member[:, rows])
    at = unseen[:, judged]
    own = [f[:, judged[u]] for f, u in zip(outputs, at, strict=True)]
    spread, rows_nll = _out_of_fold(own, at, target[judged]).fit()
    each = [sample_outputs(posterior.network, w[None], x[rows[judged[u]]]) for w, u in zip(anchors, at, strict=True)]
    labels = torch.cat([target[judged[u]] for u in at])
    map_spread, map_rows = _OutOfFold(torch.cat(each, dim=1), None, labels, 1).fit()

    scores, coverage = torch.zeros(0), math.nan
    if regression:
        means, within = outputs[..., 0].mean(1), outputs[..., 0].var(1, unbiased=False)
        scores = _interval_scores(means, within, unseen, target, spread, disagreement(means, unseen))
        coverage = float((scores <= conformal_quantile(scores, 0.9)).float().mean())
        ood = (_mean_of(wide[..., 0].var(1, unbiased=True), unseen) / spread).clamp(min=1e-12).log()
        spread, map_spread = math.sqrt(spread), math.sqrt(map_spread)
    else:
        ood = _mean_of(torch.stack([_mutual_information(f, spread) for f in wide]), unseen)
    nll, map_nll = float(rows_nll.mean()), float(map_rows.mean())
    ordered = ood.sort().values
    index = min(len(ordered), math.ceil((len(ordered) + 1) * (1 - config.false_alarm_rate)))
    detector = OodDetector(
        score="epistemic_to_noise" if regression else "mutual_information",
        plan="ood",
        threshold=float(ordered[index - 1]),
        false_alarm_rate=config.false_alarm_rate,
        points=len(ordered),
    )
    return Calibrated(spread, map_spread, scores, detector, len(target), nll, map_nll, coverage)


def _outputs_of_anchors(posterior: DecodedPosterior, plan: LatentPlan, x: Tensor) -> Tensor:
    """Outputs (A, S_a, m, O) of the samples of every anchor on rows x (m, ...)."""
    count = len(posterior.nodes)
    weights, anchor = posterior.draw(plan, _SAMPLES_PER_ANCHOR * count, seed=1)
    outputs = sample_outputs(posterior.network, weights[anchor.argsort(stable=True)], x)
    return outputs.reshape(count, -1, *outputs.shape[1:])


def _mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """(m,) mean of values (A, m) over the anchors chosen (A, m), at least one a row."""
    return torch.where(chosen, values, torch.zeros_like(values)).sum(0) / chosen.sum(0)


def disagreement(means: Tensor, unseen: Tensor) -> float:
    """Variance between the anchors' predictions of a new row, from means (A, m) on rows that `unseen` (A, m) lack.

    Rows that two or more anchors did not see show it. Where there are none, anchors that did see a row stand in: they
    differ less there, so too little is found rather than too much. The anchor that did not see a row must not be
    compared with those that did, which know its target with its noise.
    """
    who = unseen if bool((unseen.sum(0) > 1).any()) else ~unseen
    count = who.sum(0)
    some = count > 1
    if not bool(some.any()):
        return 0.0
    means, who, count = means[:, some], who[:, some], count[some]
    apart = (means - _mean_of(means, who)).square()
    return float((_mean_of(apart, who) * count / (count - 1)).mean())


def _interval_scores(means: Tensor, within: Tensor, unseen: Tensor, y: Tensor, noise: float, between: float) -> Tensor:
    """Sorted |y - mean| / std, as the server will compute mean and std from all anchors together.

    Args:
        means, within: (A, m) mean and variance of each anchor's samples.
        unseen: (A, m), where they count.
        between: variance between anchors on new rows.

    A row is predicted by the one or two anchors that did not see it, and by the mean of all A in service, whose
    squared error is smaller by `between (1/n - 1/A)` (the ambiguity decomposition, Krogh and Vedelsby 1995); the
    residuals are shrunk by it. How the anchors' disagreement differs from row to row is taken from all of them, its
    size from those that did not see the rows.
    """
    count, anchors = unseen.sum(0), len(means)
    residual = _mean_of(means, unseen) - y
    squared = float(residual.square().mean())
    gain = between * float((1 / count - 1 / anchors).mean())
    shrink = math.sqrt(max(squared - gain, 0.25 * squared) / max(squared, 1e-30))
    apart = means.var(0, unbiased=False)
    apart = apart * (between * (1 - 1 / anchors) / max(float(apart.mean()), 1e-30))
    std = (noise + _mean_of(within, unseen) + apart).sqrt()
    return (shrink * residual.abs() / std).double().sort().values


def _mutual_information(logits: Tensor, temperature: float) -> Tensor:
    p = (logits / temperature).softmax(-1)
    mean = p.mean(0)
    total = -torch.xlogy(mean, mean).sum(-1)
    expected = -torch.xlogy(p, p).sum(-1).mean(0)
    return (total - expected).clamp(min=0)
