"""Out-of-distribution detection on both sides: the detectors of the inputs, and how all detectors combine.

The builder scores unseen training rows with it, the server every row that it is asked about, so that both are scored
alike. The network's own score, the epistemic one, is computed by each side from the outputs it has at hand, and so are
the features of inputs that are no table.
Lengths: B rows, d encoded columns or features, m reference rows, C classes, D detectors, n unseen training rows.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.encoding import TableEncoder
from model_store.manifest import OF_FEATURES, DetectorName, InputSpec, OodDetection, TableInput

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

LEAST_RATIO: Final = 1e-12
"""Least ratio of epistemic to aleatoric variance that counts, so that its logarithm is finite."""
LEAST_INFORMATION: Final = 1e-6
"""Least mutual information that counts, in nats: less is rounding."""
_NEIGHBOURS: Final = 5
_LEAST_SQUARE: Final = 1e-6
"""Least squared distance that counts: copies of training rows are no nearer than this."""
_FARTHEST: Final = 1e6
"""Standard deviations beyond which values are all the same, so that no square overflows."""
_RIDGE: Final = 0.01
"""Variance that is added to every column, so that columns that follow from others, or never vary, do no harm."""
_LEAST_TAIL: Final = 0.1
_TAIL_SHARE: Final = 0.1
_BEYOND: Final = 1e-9
_SHOWN_COLUMNS: Final = 3
_MANY_COLUMNS: Final = 12
"""Beyond which sorting all takes longer than finding those that are shown."""
_WIDE: Final = 512
_GROUP: Final = 8
_BLOCK_VALUES: Final = 2**21
"""Distances worked on at once."""


class Scaler:
    """Brings encoded rows of a table, or features, to a common scale: `(x - center) / scale`."""

    def __init__(self, center: Float64, scale: Float64) -> None:
        self.center, self.scale = center, scale

    @classmethod
    def fit(cls, x: Float32, numeric: Bool) -> Scaler:
        """From encoded training rows x (n, d); the 0/1 columns of categories, which are not `numeric` (d,), stay."""
        scale = x.std(axis=0, dtype=np.float64)
        return cls(x.mean(axis=0, dtype=np.float64), np.where(numeric & (scale > 0), scale, 1.0))

    def __call__(self, x: Float32) -> Float64:
        """(B, d), cut off where a square would overflow."""
        # Not np.clip: for one row its overhead is most of the work.
        scaled: Float64 = np.minimum(np.maximum((x - self.center) / self.scale, -_FARTHEST), _FARTHEST)
        return scaled


class NearestRows:
    """The distance from the nearest of some training rows."""

    def __init__(self, rows: Float32) -> None:
        """Args:
        rows: (m, d) scaled, at least two.
        """
        self.rows = rows
        self._products = np.ascontiguousarray(-2 * rows.T)
        self._norms = np.square(rows).sum(axis=1)
        self._count = min(_NEIGHBOURS, len(rows) - 1)
        self._block = max(1, _BLOCK_VALUES // len(rows))

    def scores(self, u: Float64, own: NDArray[np.int64] | None = None) -> Float64:
        """log of the mean squared distance (B,) of scaled rows u (B, d) from the nearest few rows.

        Args:
            own: (B,) which of the reference rows each row itself is, which then does not count; -1 is none.
        """
        if len(u) > self._block:
            parts = [slice(i, i + self._block) for i in range(0, len(u), self._block)]
            return np.concatenate([self.scores(u[p], None if own is None else own[p]) for p in parts])
        v = u.astype(np.float32)
        squares = v @ self._products
        squares += self._norms
        if own is not None:
            at = np.flatnonzero(own >= 0)
            squares[at, own[at]] = np.inf
        nearest = _least(squares, self._count).sum(axis=1, dtype=np.float64) / self._count
        found: Float64 = np.log(np.maximum(nearest + np.square(v).sum(axis=1), _LEAST_SQUARE))
        return found


def _least(values: Float32, count: int) -> Float32:
    """(B, count) the least of each row of values (B, m), in any order; may reorder them."""
    rows, width = values.shape
    if rows > 1 and width >= _WIDE:
        # They are among the groups whose least are the least: several times less work than to part whole rows.
        size = width // _GROUP
        groups = values[:, : size * _GROUP].reshape(rows, _GROUP, size)
        kept = groups[np.arange(rows)[:, None], :, _places(groups.min(axis=1), count)].reshape(rows, -1)
        values = np.concatenate([kept, values[:, size * _GROUP :]], axis=1)
    values.partition(count - 1, axis=1)
    return values[:, :count]


def _places(values: Float32, count: int) -> NDArray[np.intp]:
    """(B, count) where the least of each row of values (B, m) stand, in any order."""
    # Sorting, of which processors do several at once, takes half the time of numpy's argpartition.
    near = values <= np.sort(values, axis=1)[:, count - 1 : count]
    # Of all rows as one, which takes a quarter of the time that places by row and column do.
    at = np.flatnonzero(near)
    if len(at) != len(values) * count:
        equal = np.flatnonzero(np.count_nonzero(near, axis=1) != count)
        near[equal] = False
        near[equal[:, None], values[equal].argpartition(count - 1, axis=1)[:, :count]] = True
        at = np.flatnonzero(near)
    found: NDArray[np.intp] = at.reshape(len(values), count) % values.shape[1]
    return found


class Mahalanobis:
    """The distance from the middle of the training rows, in units of how they vary together."""

    def __init__(self, precision: Float64, groups: list[slice]) -> None:
        """Args:
        precision: (d, d) inverse covariance of scaled training rows.
        groups: the encoded columns of every column of the table, in their order.
        """
        self.precision = precision
        self._starts = np.array([g.start for g in groups])
        own = np.zeros_like(precision)
        for g in groups:
            own[g, g] = np.linalg.inv(precision[g, g])
        # Columns that are encoded as one number, as most are, need no product.
        self._own = np.sqrt(np.diag(own)) if len(groups) == len(precision) else own

    @staticmethod
    def precision_of(u: Float64) -> Float64:
        """(d, d) for scaled training rows u (n, d)."""
        return _precision(u - u.mean(axis=0))

    def __call__(self, u: Float64) -> tuple[Float64, Float64]:
        """Scores and deviations of scaled rows u (B, d).

        Returns:
            log of the squared distance (B,), and for every column of the table (B, columns) by how many standard
            deviations it differs from what the other columns of the row suggest: the root of what the squared distance
            would lose, were it as they suggest. A number that is lower than that has a negative sign.
        """
        gradient = u @ self.precision
        squared = (u * gradient).sum(axis=1)
        scores = np.log(np.maximum(squared, _LEAST_SQUARE))
        if self._own.ndim == 1:
            return scores, gradient * self._own
        lost = np.add.reduceat(gradient * (gradient @ self._own), self._starts, axis=1)
        sign = np.where(np.diff(np.append(self._starts, u.shape[1])) == 1, np.sign(gradient[:, self._starts]), 1.0)
        return scores, sign * np.sqrt(np.maximum(lost, 0.0))


class ClassMahalanobis:
    """The distance from the nearest class of the training rows, in units of how rows vary within their classes (Lee et
    al. 2018, "A simple unified framework for detecting out-of-distribution samples and adversarial attacks", section
    2.1)."""

    def __init__(self, means: Float64, precision: Float64) -> None:
        """Args:
        means: (C, d) the middle of each class of scaled training rows, or of all of them.
        precision: (d, d) inverse covariance within classes.
        """
        self.means, self.precision = means, precision
        self._turned = 2 * (means @ precision).T
        self._norms = np.einsum("cd,dc->c", means, self._turned) / 2

    @classmethod
    def fit(cls, u: Float64, labels: NDArray[np.int64] | None) -> ClassMahalanobis:
        """From scaled training rows u (n, d) and their classes (n,), where they have any."""
        known = np.zeros(len(u), dtype=np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
        middles: list[Float64] = [u[known == c].mean(axis=0) for c in range(known.max() + 1)]
        means = np.stack(middles)
        return cls(means, _precision(u - means[known]))

    def scores(self, u: Float64) -> Float64:
        """log of the squared distance (B,) of scaled rows u (B, d) from the nearest class."""
        own = (u * (u @ self.precision)).sum(axis=1)
        squared = own + (self._norms - u @ self._turned).min(axis=1)
        found: Float64 = np.log(np.maximum(squared, _LEAST_SQUARE))
        return found


def _precision(centred: Float64) -> Float64:
    covariance = centred.T @ centred / len(centred)
    return np.asarray(np.linalg.inv(covariance + _RIDGE * np.eye(len(covariance))), dtype=np.float64)


class Surprise:
    """How surprising a detector's score is: -log of the share of familiar rows that score as high.

    Between familiar scores it is interpolated; beyond the highest it goes on as an exponential tail does, so that
    what is farther out is always more surprising.
    """

    def __init__(self, familiar: Float64) -> None:
        """Args:
        familiar: (n,) sorted scores of rows that the detector had not seen.
        """
        n = len(familiar)
        at, first = np.unique(familiar, return_index=True)
        self._last = float(at[-1])
        top = familiar[-max(1, round(_TAIL_SHARE * n)) :]
        self._tail = max(float(top.mean() - top[0]), _LEAST_TAIL)
        # Just beyond the last of them no familiar row scores as high.
        self._at = np.append(at, self._last + _BEYOND * max(1.0, abs(self._last)))
        as_high = n + 1 - np.append(first, n)
        self._surprise = np.log((n + 1) / as_high)
        self._p = np.append(as_high, 1) / (n + 1)
        # Of views single numbers are read as fast as of lists, which would be four times as large.
        self._one = self._at.data, self._surprise.data, self._p.data

    def __call__(self, scores: Float64) -> Float64:
        """(B,) in nats, for scores (B,)."""
        found: Float64 = np.interp(scores, self._at, self._surprise)
        found += np.maximum(scores - self._last, 0.0) / self._tail
        return found

    def p_values(self, scores: Float64) -> Float64:
        """(B,) conformal, see `p_values`."""
        found: Float64 = self._p[self._at[:-1].searchsorted(scores)]
        return found

    def of_one(self, score: float) -> tuple[float, float]:
        """Surprise and p-value of a single score, the same to the bit: arrays of one number take several times as
        long."""
        at, surprise, p = self._one
        i = bisect_left(at, score)
        if 0 < i < len(at) and at[i] != score:
            slope = (surprise[i] - surprise[i - 1]) / (at[i] - at[i - 1])
            found = slope * (score - at[i - 1]) + surprise[i - 1]
        else:
            found = surprise[min(i, len(at) - 1)]
        return found + max(score - self._last, 0.0) / self._tail, p[i]


def combined(surprises: list[Float64]) -> Float64:
    """The score (B,) of several detectors together: their mean surprise, which orders rows as Fisher's method does
    (Fisher 1932, "Statistical methods for research workers", section 21.1)."""
    found: Float64 = sum(surprises[1:], surprises[0]) / len(surprises)
    return found


def familiar_surprise(scores: Float64) -> Float64:
    """(n,) surprise of every one of n familiar rows (in any order) among the others."""
    n = len(scores)
    first = np.searchsorted(np.sort(scores), scores, side="left")
    found: Float64 = np.log(n / (n - first))
    return found


def p_values(scores: Float64, familiar: Float64) -> Float64:
    """Conformal p-values (B,): how likely a familiar row is to score as high (Bates et al. 2023, "Testing for outliers
    with conformal p-values").

    Args:
        scores: (B,).
        familiar: (n,) sorted scores of familiar rows that the detectors had not seen.
    """
    n = len(familiar)
    found: Float64 = (n + 1 - familiar.searchsorted(scores)) / (n + 1)
    return found


def lowest_rate(points: int) -> float:
    """The lowest false alarm rate that so many familiar rows can vouch for: the least p-value there is."""
    return 1 / (points + 1)


@dataclass(frozen=True)
class Unfamiliarity:
    """How unfamiliar B rows are.

    Attributes:
        score, p_value: (B,) of all detectors together.
        detectors: by name, scores and p-values (B,).
        columns: (B, K) indices of the table's columns that are furthest from what the others suggest, the furthest
            first; deviations: (B, K) by how many standard deviations. None where inputs have no columns or too many.
        unseen: (B, all columns) which values are categories that the model was not built with; None where none is.
    """

    score: Float64
    p_value: Float64
    detectors: dict[DetectorName, tuple[Float64, Float64]]
    columns: NDArray[np.intp] | None
    deviations: Float64 | None
    unseen: Bool | None


class Detectors:
    """The detectors of one bundle, ready to score."""

    def __init__(self, inputs: InputSpec, described: OodDetection, arrays: dict[str, NDArray[Any]]) -> None:
        """Args:
        inputs, described: as the manifest has them.
        arrays: the arrays `ood_*` of the bundle, as `Bundle.arrays` checks them.
        """
        self._familiar: Float64 = arrays["ood_combined"]
        self._familiar_view = np.ascontiguousarray(self._familiar).data
        self._names = described.detectors
        self._surprises = [Surprise(scores) for scores in arrays["ood_scores"]]
        # No row that the detectors know has a category that was not there: its score is beyond them all.
        self._beyond = float(np.nextafter(self._familiar[-1], np.inf))
        encoder = TableEncoder(inputs) if isinstance(inputs, TableInput) else None
        self._categories = encoder if encoder and not encoder.all_numeric else None
        self._scaler: Scaler | None = None
        self._nearest: NearestRows | None = None
        self._mahalanobis: Mahalanobis | None = None
        self._classes: ClassMahalanobis | None = None
        if "ood_scale" in arrays:
            self._scaler = Scaler(arrays["ood_center"], arrays["ood_scale"])
        if {"nearest_rows", "nearest_features"} & set(self._names):
            self._nearest = NearestRows(arrays["ood_rows"])
        if "mahalanobis" in self._names and encoder:
            self._mahalanobis = Mahalanobis(arrays["ood_precision"], encoder.groups)
        if "mahalanobis_features" in self._names:
            self._classes = ClassMahalanobis(arrays["ood_means"], arrays["ood_precision"])

    @property
    def ask_the_network(self) -> bool:
        """Whether some detector needs the network's outputs."""
        return bool({"epistemic_to_noise", "mutual_information"} & set(self._names))

    @property
    def features(self) -> int:
        """How many features of a row the detectors need; 0 where they need none."""
        return len(self._scaler.center) if self._scaler is not None and OF_FEATURES & set(self._names) else 0

    @property
    def points(self) -> int:
        """Familiar rows that stand behind p-values."""
        return len(self._familiar)

    def judge(self, x: Float32, epistemic: Float64 | None, features: Float32 | None = None) -> Unfamiliarity:
        """How unfamiliar encoded rows x (B, ...) are.

        Args:
            epistemic: (B,) the network's score of them, where it is asked.
            features: (B, d) of them, where they are needed.
        """
        found: dict[DetectorName, Float64] = {}
        if epistemic is not None:
            found["epistemic_to_noise"] = found["mutual_information"] = epistemic
        columns = deviations = None
        if self._scaler is not None:
            u = self._scaler(x if features is None else features)
            if self._nearest is not None:
                found["nearest_rows"] = found["nearest_features"] = self._nearest.scores(u)
            if self._classes is not None:
                found["mahalanobis_features"] = self._classes.scores(u)
            if self._mahalanobis is not None:
                found["mahalanobis"], every = self._mahalanobis(u)
                columns, deviations = _furthest(every)
        own = [found[name] for name in self._names]
        if len(x) == 1:
            pairs = [s.of_one(float(score[0])) for s, score in zip(self._surprises, own, strict=True)]
            together = sum(surprise for surprise, _ in pairs) / len(pairs)
            rank = bisect_left(self._familiar_view, together)
            p = np.array([(self.points + 1 - rank) / (self.points + 1)])
            score, each = np.array([together]), [np.array([one]) for _, one in pairs]
        else:
            score = combined([s(values) for s, values in zip(self._surprises, own, strict=True)])
            p = p_values(score, self._familiar)
            each = [s.p_values(values) for s, values in zip(self._surprises, own, strict=True)]
        detectors = dict(zip(self._names, zip(own, each, strict=True), strict=True))
        unseen = None if self._categories is None else self._categories.unseen(x)
        if unseen is None or not unseen.any():
            return Unfamiliarity(score, p, detectors, columns, deviations, None)
        rows = unseen.any(axis=1)
        score = np.where(rows, np.maximum(score, self._beyond), score)
        p = np.where(rows, lowest_rate(self.points), p)
        return Unfamiliarity(score, p, detectors, columns, deviations, unseen)


def _furthest(deviations: Float64) -> tuple[NDArray[np.intp], Float64]:
    """Indices (B, K) and deviations of the columns that deviate most, the most first, of (B, columns)."""
    rows = np.arange(len(deviations))[:, None]
    least = -np.abs(deviations)
    columns: NDArray[np.intp]
    if deviations.shape[1] > _MANY_COLUMNS:
        columns = least.argpartition(_SHOWN_COLUMNS - 1, axis=1)[:, :_SHOWN_COLUMNS]
        columns = columns[rows, least[rows, columns].argsort(axis=1, kind="stable")]
    else:
        columns = least.argsort(axis=1, kind="stable")[:, :_SHOWN_COLUMNS]
    return columns, deviations[rows, columns]
