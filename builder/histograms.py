"""Pictures of how figures are spread over rows: unfamiliarity and sharpness. Lengths: n, m and B rows, C classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from builder.canvas import BLUE, GREY, INK, ORANGE, RED, SKY, clean, percent, png

Array = NDArray[Any]
_BINS: Final = 40
_COLORS: Final = (ORANGE, RED)


def unfamiliar(scores: Array, threshold: float | None, rate: float, others: Mapping[str, Array]) -> bytes | None:
    """OOD scores of rows that were not seen beside those of stand-ins, and the ROC of telling one from the other.

    Args:
        scores: (n,) of unseen rows.
        threshold: above which a row is flagged by default, at the false alarm rate `rate`; None where no row is.
        others: (m,) scores of stand-ins for unfamiliar rows, by kind.

    Returns:
        None where there is no finite score to show.
    """
    own = scores[np.isfinite(scores)]
    if not len(own):
        return None
    kinds = {kind: values[np.isfinite(values)] for kind, values in others.items() if np.isfinite(values).any()}
    everything = np.concatenate([own, *kinds.values()])
    edges = np.histogram_bin_edges(everything, _BINS).tolist()

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        shares = np.full(len(own), 1 / len(own))
        # One shape, which takes a fraction of the time of a bar each.
        label = f"unseen rows ({len(own):,})"
        left.hist(own, edges, weights=shares, histtype="stepfilled", color=BLUE, alpha=0.6, label=label)
        for (kind, values), color in zip(kinds.items(), _COLORS, strict=False):
            weights = np.full(len(values), 1 / len(values))
            label = f"{kind} ({len(values):,})"
            left.hist(values, edges, weights=weights, histtype="step", lw=1.6, color=color, label=label)
        if threshold is None:
            left.plot([], [], ls="", label=f"nothing is flagged: too few rows for {rate:.3g} false alarms")
        else:
            label = f"default threshold ({rate:.3g} false alarms)"
            left.axvline(threshold, color=INK, lw=1.4, ls="--", label=label, zorder=1)
        left.set(xlabel="OOD score", ylabel="share of rows")
        left.set_title("How unfamiliar rows look")
        left.margins(y=0.3)  # for the legend
        left.legend(loc="upper left")
        percent(left.yaxis)
        right.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="chance")
        for (kind, values), color in zip(kinds.items(), _COLORS, strict=False):
            false, true = roc(own, values)
            right.plot(false, true, color=color, lw=1.8, label=f"{kind}: AUROC {auroc(own, values):.3f}")
        right.axvline(rate, color=INK, lw=1.2, ls="--", label="default false alarm rate")
        right.set(
            xlim=(0, 1), ylim=(0, 1.02), xlabel="share of unseen rows flagged", ylabel="share of stand-ins flagged"
        )
        right.set_title("Telling stand-ins from unseen rows")
        right.legend(loc="lower right")
        percent(right.xaxis, right.yaxis)

    return png(draw)


def roc(familiar: Array, strange: Array) -> tuple[Array, Array]:
    """Shares of familiar and of strange rows whose score is at least a threshold, for every threshold there is."""
    thresholds = np.concatenate([[np.inf], np.unique(np.concatenate([familiar, strange]))[::-1]])
    return tuple(1 - np.searchsorted(np.sort(v), thresholds) / len(v) for v in (familiar, strange))  # type: ignore[return-value]


def auroc(familiar: Array, strange: Array) -> float:
    """Probability that a strange row scores higher than a familiar one; ties count half."""
    return float(np.trapezoid(*roc(familiar, strange)[::-1]))


def sharpness_of_numbers(std: Array, epistemic: Array, target: str) -> bytes | None:
    """How large the predictive standard deviation of test rows is, and the epistemic part of it.

    Args:
        std, epistemic: (B,) in the unit of the target.
        target: name with unit.

    Returns:
        None where there is no row to show.
    """
    sound = np.isfinite(std) & np.isfinite(epistemic)
    parts = {"total": (std[sound], SKY), "epistemic part": (epistemic[sound], BLUE)}
    return _sharpness(parts, f"predictive standard deviation of {clean(target)}")


def sharpness_of_classes(entropy: Array, right: Array, classes: int) -> bytes | None:
    """How large the predictive entropy of test rows is, of those whose likeliest class is right and of the others.

    Args:
        entropy: (B,) nats.
        right: (B,) bool.
        classes: C.

    Returns:
        None where there is no row to show.
    """
    sound = np.isfinite(entropy)
    parts = {"right": (entropy[sound & right], BLUE), "wrong": (entropy[sound & ~right], RED)}
    return _sharpness(parts, f"predictive entropy (nats; a blind guess has {np.log(classes):.2g})")


def _sharpness(parts: Mapping[str, tuple[Array, str]], label: str) -> bytes | None:
    everything = np.concatenate([values for values, _ in parts.values()])
    if not len(everything):
        return None
    edges = np.histogram_bin_edges(everything, _BINS).tolist()

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, (values, color) in parts.items():
            if len(values):
                said = f"{name} ({len(values):,} test rows, median {np.median(values):.3g})"
                axes.hist(values, edges, histtype="stepfilled", color=color, alpha=0.6, label=said)
        axes.set(xlabel=label, ylabel="rows")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title("Sharpness")
        axes.legend(loc="best")

    return png(draw)
