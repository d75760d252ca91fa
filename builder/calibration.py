"""A first calibration: everything that is chosen on out-of-fold predictions.

Each row is predicted by the anchor whose fold it belongs to, which has not seen it. On these predictions of all
training rows the part of the trajectories that is used (their reach), the noise or temperature, the scores behind the
intervals and the OOD threshold are chosen: a small validation part would decide badly (a handful of points picks a
noise level that the next data punish).

Lengths: A anchors, N trajectories, T steps, n rows, m held-out rows of one anchor, S samples, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
_LEAST_NOISE_SHARE = 0.2
"""The noise left after the anchors' disagreement is taken off: never less than this share of the out-of-fold one."""
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
    count, anchors = fibers.nodes.shape[0], fibers.nodes.shape[1]
    outputs, targets = [], []
    for a in range(anchors):
        held = (~member[a]).nonzero().squeeze(1)[: max(1, _SEARCH_ROWS // anchors)]
        weights = fibers.nodes[:, a].flatten(0, 1)
        outputs.append(sample_outputs(network, weights, x[held]))
        targets.append(y[held])
    f, target = torch.cat(outputs, 1), torch.cat(targets)
    f = f.reshape(count, -1, *f.shape[1:])
    rows, regression = [], y.is_floating_point()
    for last in range(count):
        used = f[: last + 1].flatten(0, 1)
        weight = _position_weights(last, f.shape[1], used.device)
        fit = _fit_noise(used[..., 0], target, weight) if regression else _fit_temperature(used, target, weight)
        rows.append(fit[1])
    node = _furthest_as_good_as_best(torch.stack(rows))
    # Without any reach there still must be a spread to tell familiar from unfamiliar.
    return Reach(node=node, wide=max(node, min(3, count - 1)), out_of_fold=[float(r.mean()) for r in rows])


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


def _fit_noise(mean: Tensor, y: Tensor, log_weight: Tensor | None = None) -> tuple[float, Tensor]:
    """The noise variance with the least mixture NLL of means (S, B), and that NLL of each row (B,)."""
    base = float((mean.mean(0) - y).square().mean().clamp(min=1e-10))
    if not math.isfinite(base):
        return 1.0, torch.full_like(y, math.inf)
    return _best_of(base * np.logspace(-2.0, 0.3, 24), lambda v: gaussian_mixture_nll(mean, y, v, log_weight))


def _fit_temperature(logits: Tensor, y: Tensor, log_weight: Tensor | None = None) -> tuple[float, Tensor]:
    """The temperature with the least NLL of the averaged probabilities of logits (S, B, C), and that NLL (B,)."""
    if not bool(torch.isfinite(logits).all()):
        return 1.0, torch.full(logits.shape[1:2], math.inf, device=logits.device)
    grid = np.geomspace(0.4, 4.0, 21)
    return _best_of(grid, lambda t: categorical_nll(mixture_probabilities(logits, t, log_weight), y))


def _best_of(grid: NDArray[np.float64], nll: Callable[[float], Tensor]) -> tuple[float, Tensor]:
    found = [(float(value), nll(float(value))) for value in grid]
    return min(found, key=lambda f: float(torch.nan_to_num(f[1].mean(), nan=math.inf)))


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
    """Calibrates the decoded posterior on the rows that each anchor did not see."""
    regression = y.is_floating_point()
    held = [(~seen).nonzero().squeeze(1) for seen in member]
    target = torch.cat([y[rows] for rows in held])
    drawn = _outputs_of_anchors(posterior, plans["predict"], x, held)
    own = torch.cat([f[a] for a, f in enumerate(drawn)], dim=1)
    at_map = torch.cat([sample_outputs(posterior.network, anchors[[a]], x[rows]) for a, rows in enumerate(held)], dim=1)
    wide = _outputs_of_anchors(posterior, plans["ood"], x, held)
    own_wide = torch.cat([f[a] for a, f in enumerate(wide)], dim=1)

    if regression:
        noise, rows_nll = _fit_noise(own[..., 0], target)
        map_noise, map_rows = _fit_noise(at_map[..., 0], target)
        map_spread = math.sqrt(map_noise)
        between = torch.cat([f[..., 0].mean(1).var(0, unbiased=len(f) > 1) for f in drawn])
        disagreement = float(between.mean()) if len(anchors) > 1 else 0.0
        noise = max(noise - disagreement, _LEAST_NOISE_SHARE * noise)
        scores = _interval_scores(own[..., 0], target, noise, between if len(anchors) > 1 else torch.zeros_like(target))
        coverage = float((scores <= conformal_quantile(scores, 0.9)).float().mean())
        spread = math.sqrt(noise)
        ood = (own_wide[..., 0].var(0, unbiased=True) / noise).clamp(min=1e-12).log()
    else:
        spread, rows_nll = _fit_temperature(own, target)
        map_spread, map_rows = _fit_temperature(at_map, target)
        scores, coverage = torch.zeros(0), math.nan
        ood = _mutual_information(own_wide, spread)
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


def _outputs_of_anchors(posterior: DecodedPosterior, plan: LatentPlan, x: Tensor, held: list[Tensor]) -> list[Tensor]:
    """For the held-out rows of each anchor, the outputs (A, S_a, m, O) of every anchor's samples."""
    count = len(held)
    weights, anchor = posterior.draw(plan, _SAMPLES_PER_ANCHOR * count, seed=1)
    weights = weights[anchor.argsort(stable=True)]
    outputs = [sample_outputs(posterior.network, weights, x[rows]) for rows in held]
    return [f.reshape(count, -1, *f.shape[1:]) for f in outputs]


def _interval_scores(own: Tensor, y: Tensor, noise: float, between: Tensor) -> Tensor:
    """Sorted |y - mean| / std, as the server will compute mean and std from all anchors together.

    A row is predicted by one anchor here and by the mean of all in service, whose squared error is smaller by the
    variance between the anchors (the ambiguity decomposition, Krogh and Vedelsby 1995); the residuals are shrunk by it.
    """
    residual = own.mean(0) - y
    squared = float(residual.square().mean())
    shrink = math.sqrt(max(squared - float(between.mean()), 0.25 * squared) / max(squared, 1e-30))
    std = (noise + own.var(0, unbiased=False) + between).sqrt()
    return (shrink * residual.abs() / std).double().sort().values


def _mutual_information(logits: Tensor, temperature: float) -> Tensor:
    p = (logits / temperature).softmax(-1)
    mean = p.mean(0)
    total = -torch.xlogy(mean, mean).sum(-1)
    expected = -torch.xlogy(p, p).sum(-1).mean(0)
    return (total - expected).clamp(min=0)
