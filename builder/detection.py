"""Out-of-distribution detectors, fitted and scored on training rows that they had not seen.

A network alone is a poor judge of what it does not know: far out some samples agree for no reason, and the classes of a
classifier say nothing of inputs between or beyond them. So two looks stand beside the epistemic score: at a table's
inputs, or at the features that a network has of others. Each turns into a surprise, its rank among unseen rows, and the
mean surprise is ranked among unseen rows again (`model_store.detection`).

Lengths: A anchors, n training rows, m unseen rows, d encoded columns or features, D detectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.calibration import Posterior, drawn_of_each, of_anchors, weights_of_anchors
from builder.config import CalibrationConfig
from builder.features import FeatureNetworks, features_of
from builder.likelihood import probabilities
from builder.moments import disagreement, mean_of
from model_store.detection import (
    LEAST_INFORMATION,
    LEAST_RATIO,
    ClassMahalanobis,
    Mahalanobis,
    NearestRows,
    Scaler,
    combined,
    familiar_surprise,
)
from model_store.encoding import TableEncoder
from model_store.errors import ConfigError
from model_store.manifest import DetectorName, InputSpec, LatentPlan, OodDetection, TableInput

Float64 = NDArray[np.float64]

_MOST_COLUMNS: Final = 512
"""Encoded columns beyond which how they vary together is neither known well nor cheap to ask."""
_SEEN_ROWS: Final = 2048
"""Of those that show how the scores of two posteriors compare."""
_MOST_VALUES: Final = 2**21
"""Of all reference rows together (8 MB)."""


@dataclass(frozen=True)
class Detection:
    """What a bundle holds of its detectors: their description, and the arrays `ood_*` by name (see `ARRAYS_FILE`)."""

    described: OodDetection
    arrays: dict[str, NDArray[Any]]


def fit_detectors(
    posterior: Posterior,
    plan: LatentPlan,
    spread: float,
    x: Tensor,
    y: Tensor,
    member: Tensor,
    inputs: InputSpec,
    config: CalibrationConfig,
    networks: FeatureNetworks | None = None,
    served: Posterior | None = None,
) -> Detection:
    """Fits all detectors that the data and the plan allow, and scores the rows that some anchor has not seen.

    Args:
        posterior: around the anchors that `member` is of.
        plan: what a server draws by default.
        spread: noise standard deviation in standardised target units, or temperature.
        x, y: (n, ...) encoded training rows and their targets.
        member: (A, n) bool, which anchor was trained on which rows.
        networks: whose features are looked at where inputs are no table; they are not where there are none.
        served: the posterior that a server draws from, where that is another one.

    Raises:
        ConfigError: no detector is left.
    """
    rows = (~member).any(0).nonzero().squeeze(1)
    scores: dict[DetectorName, Float64] = {}
    arrays: dict[str, NDArray[Any]] = {}
    served = served or posterior
    anchors, regression = len(served.nodes), y.is_floating_point()
    # With no more samples than anchors, an anchor's own samples say nothing of how they differ.
    if plan.samples > anchors:
        name: DetectorName = "epistemic_to_noise" if regression else "mutual_information"
        scores[name] = _as_unseen(posterior, served, plan, spread, x, member, rows, regression)
    if isinstance(inputs, TableInput):
        found, arrays = _of_inputs(x.cpu().numpy(), member.cpu().numpy(), rows.cpu().numpy(), inputs, config)
        scores |= found
    elif networks is not None:
        found, arrays = _of_features(networks, x, y, member, rows, config)
        scores |= found
    if not scores:
        raise ConfigError(
            f"No OOD detector is left: {plan.samples} samples of {anchors} anchors do not show how the samples of "
            "one anchor differ; raise calibration.samples.",
            field="calibration.samples",
            expected=f"more than {anchors}",
            got=str(plan.samples),
        )
    together = combined([familiar_surprise(s) for s in scores.values()])
    arrays |= {"ood_scores": np.sort(np.stack(list(scores.values())), axis=1), "ood_combined": np.sort(together)}
    described = OodDetection(detectors=list(scores), false_alarm_rate=config.false_alarm_rate, points=len(together))
    return Detection(described, arrays)


def _as_unseen(
    judged: Posterior,
    served: Posterior,
    plan: LatentPlan,
    spread: float,
    x: Tensor,
    member: Tensor,
    rows: Tensor,
    regression: bool,
) -> Float64:
    """(m,) scores that the samples which a server draws by default would give to the `rows` of x, had no anchor been
    trained on them: what those say of them, raised by what it adds that a row is new. That shows around the `judged`
    anchors, each of which lacks some of these rows."""
    who, drawn = samples_served(served, plan)
    unseen = ~member[:, rows]
    alike = bool(unseen.all())
    if alike and served is judged:
        return epistemic_score(served, drawn, spread, x[rows], regression)
    # As many of an anchor's samples as a server draws of it.
    weights = weights_of_anchors(judged, plan, max(2, drawn_of_each(plan, len(served.nodes))))
    values = _epistemic(judged, weights, spread, x[rows], regression)
    if alike:
        # All lack the same rows, and their scores are those of new ones; what is served has levels of its own, which
        # shows on rows that both were trained on.
        seen = member.all(0).nonzero().squeeze(1)
        seen = seen[:: -(-len(seen) // _SEEN_ROWS)]
        was, now = (epistemic_score(p, w, spread, x[seen], regression) for p, w in ((judged, weights), (served, drawn)))
        return transported(_score(values, regression), was, now)
    own = _epistemic(served, drawn, spread, x[rows], regression)
    # Anchors other than those that were judged were trained on all rows.
    new = unseen[who] if served is judged else torch.zeros_like(own, dtype=torch.bool)
    return _score(torch.where(new, own, own * added_by_novelty(_log(values, regression), unseen).exp()), regression)


def added_by_novelty(values: Tensor, unseen: Tensor) -> Tensor:
    """(m,) by how much values (A, m) are higher where an anchor has not seen a row, for each row.

    Anchors are compared above their own levels, and in the mean over rows nothing is taken off. As only one or two lack
    a row, much of how rows differ in this is by which anchors these are: of it as much is kept as is more than anchors
    differ among their like (Efron and Morris 1975), and nothing where that cannot be told.
    """
    seen = ~unseen
    level = torch.where(seen.any(1), mean_of(values.T, seen.T), values.mean(1))
    centred = values - level[:, None]
    both = seen.any(0) & unseen.any(0)
    if not bool(both.any()):
        return values.new_zeros(values.shape[1])
    centred, lack, has = centred[:, both], unseen[:, both], seen[:, both]
    above = mean_of(centred, lack) - mean_of(centred, has)
    chance = disagreement(centred, has) * float((1 / lack.sum(0) + 1 / has.sum(0)).mean())
    varied = float(above.var(unbiased=False))
    kept = 1 - chance / varied if 0 < chance < varied else 0.0
    found = above.mean().clamp(min=0).expand(values.shape[1]).clone()
    found[both] += kept * (above - above.mean())
    return found


def samples_served(posterior: Posterior, plan: LatentPlan) -> tuple[Tensor, list[Tensor]]:
    """The anchors of which a server draws several samples by default, and the samples (S_a, P) of each."""
    weights, anchor = posterior.draw(plan, plan.samples)
    who, count = torch.unique(anchor, return_counts=True)
    who = who[count > 1]
    return who, [weights[anchor == a] for a in who]


def transported(values: Float64, was: Float64, now: Float64) -> Float64:
    """(m,) values at which `now` (r,) has the ranks that they have in `was` (r,); beyond its ends as far beyond."""
    was, now = np.sort(was), np.sort(now)
    inside = np.clip(values, was[0], was[-1])
    found: Float64 = np.interp(np.interp(inside, was, _ranks(was)), _ranks(now), now) + (values - inside)
    return found


def _ranks(values: Float64) -> Float64:
    """(n,) ranks of sorted values among themselves, as shares."""
    return (np.arange(len(values)) + 0.5) / len(values)


def epistemic_score(posterior: Posterior, weights: list[Tensor], spread: float, x: Tensor, regression: bool) -> Float64:
    """The network's OOD score (m,) of rows: log of epistemic over aleatoric variance, or of the mutual information,
    within each anchor's samples and averaged over the anchors.

    Args:
        weights: the samples (S_a, P) of each anchor, at least two.
        spread: noise standard deviation in standardised target units, or temperature.
    """
    return _score(_epistemic(posterior, weights, spread, x, regression), regression)


def _epistemic(posterior: Posterior, weights: list[Tensor], spread: float, x: Tensor, regression: bool) -> Tensor:
    """(A, m) epistemic over aleatoric variance, or mutual information, within each anchor's samples."""

    def figure(outputs: Tensor) -> Tensor:
        if regression:
            return outputs[..., 0].double().var(0, unbiased=True) / spread**2
        return mutual_information(outputs.double(), spread)

    every = torch.ones(len(weights), len(x), dtype=torch.bool, device=x.device)
    return of_anchors(posterior.network, weights, x, every, figure)


def _score(values: Tensor, regression: bool) -> Float64:
    score: Float64 = _log(values.mean(0), regression).cpu().numpy()
    return score


def _log(values: Tensor, regression: bool) -> Tensor:
    return values.clamp(min=LEAST_RATIO if regression else LEAST_INFORMATION).log()


def mutual_information(logits: Tensor, temperature: float) -> Tensor:
    """Mutual information (B,) of label and weights, from the logits (S, B, C) of at least two samples.

    As for a variance, which it is to first order, the mean over S samples takes one degree of freedom.
    """
    p = probabilities(logits / temperature)
    mean = p.mean(0)
    total = -torch.xlogy(mean, mean).sum(-1)
    expected = -torch.xlogy(p, p).sum(-1).mean(0)
    return (total - expected).clamp(min=0) * (len(p) / (len(p) - 1))


def _of_inputs(
    x: NDArray[np.float32],
    member: NDArray[np.bool_],
    rows: NDArray[np.int64],
    inputs: TableInput,
    config: CalibrationConfig,
) -> tuple[dict[DetectorName, Float64], dict[str, NDArray[Any]]]:
    """Scores (m,) of rows (m,) by the detectors of the inputs, and what the server needs for them."""
    encoder = TableEncoder(inputs)
    scaler = Scaler.fit(x, encoder.numeric)
    u = scaler(x)
    scores: dict[DetectorName, Float64] = {}
    arrays: dict[str, NDArray[Any]] = {}
    chosen = _kept(u, config)
    if len(chosen) > 1:
        nearest = NearestRows(u[chosen].astype(np.float32))
        own = np.full(len(u), -1)
        own[chosen] = np.arange(len(chosen))
        scores["nearest_rows"] = nearest.scores(u[rows], own[rows])
        arrays["ood_rows"] = nearest.rows
    if u.shape[1] <= _MOST_COLUMNS:
        scores["mahalanobis"] = _out_of_fold(u, member, encoder.groups)[rows]
        arrays["ood_precision"] = Mahalanobis.precision_of(u)
    if scores:
        arrays |= {"ood_center": scaler.center, "ood_scale": scaler.scale}
    return scores, arrays


def _kept(u: Float64, config: CalibrationConfig) -> NDArray[np.int64]:
    """Which of the rows u (n, d) are kept as references."""
    most = min(config.reference_rows, len(u), _MOST_VALUES // u.shape[1])
    return np.linspace(0, len(u) - 1, most).round().astype(np.int64)


def _of_features(
    networks: FeatureNetworks, x: Tensor, y: Tensor, member: Tensor, rows: Tensor, config: CalibrationConfig
) -> tuple[dict[DetectorName, Float64], dict[str, NDArray[Any]]]:
    """Scores (m,) of rows (m,) by the detectors of the features, and what the server needs for them.

    A row is scored by one network that has not seen it, by what that network makes of the rows that it has: a server
    asks one network too, the first, and several together would scatter less.
    """
    labels = None if y.is_floating_point() else y
    scores: dict[DetectorName, Float64] = {}
    served: _FeatureLook | None = None
    pending = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    pending[rows] = True
    for theta, seen in zip(networks.anchors, member, strict=True):
        new = pending & ~seen
        if not bool(new.any()):
            continue
        features = features_of(networks.network, theta, x)
        if features is None:
            return {}, {}
        look = _FeatureLook.fit(features[seen], None if labels is None else labels[seen], config)
        served = served or look
        at = new.cpu().numpy()
        for name, found in look.scores(features[new]).items():
            scores.setdefault(name, np.zeros(len(x)))[at] = found
        pending &= seen
    asked = rows.cpu().numpy()
    return {n: s[asked] for n, s in scores.items()}, served.arrays if served is not None else {}


@dataclass(frozen=True)
class _FeatureLook:
    """The detectors of one network's features, as far as there are few enough of these."""

    scaler: Scaler
    nearest: NearestRows | None
    classes: ClassMahalanobis | None

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor | None, config: CalibrationConfig) -> _FeatureLook:
        """From the features (n, d) of training rows and their classes (n,), where they have any."""
        f = features.float().cpu().numpy()
        scaler = Scaler.fit(f, np.ones(f.shape[1], dtype=bool))
        u = scaler(f)
        kept = _kept(u, config)
        return cls(
            scaler,
            NearestRows(u[kept].astype(np.float32)) if len(kept) > 1 else None,
            ClassMahalanobis.fit(u, None if labels is None else labels.cpu().numpy())
            if u.shape[1] <= _MOST_COLUMNS
            else None,
        )

    def scores(self, features: Tensor) -> dict[DetectorName, Float64]:
        """(B,) of rows that the network has not seen, from their features (B, d)."""
        u = self.scaler(features.float().cpu().numpy())
        found: dict[DetectorName, Float64] = {}
        if self.nearest is not None:
            found["nearest_features"] = self.nearest.scores(u)
        if self.classes is not None:
            found["mahalanobis_features"] = self.classes.scores(u)
        return found

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a bundle holds of them."""
        found: dict[str, NDArray[Any]] = {"ood_center": self.scaler.center, "ood_scale": self.scaler.scale}
        if self.nearest is not None:
            found["ood_rows"] = self.nearest.rows
        if self.classes is not None:
            found |= {"ood_means": self.classes.means, "ood_precision": self.classes.precision}
        return found


def _out_of_fold(u: Float64, member: NDArray[np.bool_], groups: list[slice]) -> Float64:
    """(n,) Mahalanobis scores of rows u (n, d), each from the rows of the anchors that had not seen it, and their mean
    where several had not; of rows that all have seen they mean nothing."""
    total, count = np.zeros(len(u)), np.zeros(len(u))
    for seen in member:
        if seen.all():
            continue
        distance = Mahalanobis(Mahalanobis.precision_of(u[seen]), groups)
        total[~seen] += distance(u[~seen] - u[seen].mean(axis=0))[0]
        count[~seen] += 1
    found: Float64 = total / np.maximum(count, 1)
    return found
