"""Pictures of how figures are spread over rows: unfamiliarity and sharpness. Lengths: n, m and B rows, C classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from builder.canvas import BLUE, GREEN, GREY, INK, RED, SKY, clean, percent, png
from builder.words import count, number

Array = NDArray[Any]
_BINS: Final = 40
_FEWEST_BINS: Final = 8
_LINES: Final = ((GREEN, "-"), (RED, (0, (5, 1.5))))
"""Colour and kind of each line of stand-ins, so that colour is not all that tells them apart."""
_LEGEND: Final = 0.3
"""Room for a legend above what is drawn, as a part of its height."""


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
        label = f"familiar rows ({len(own):,})"
        left.hist(own, edges, weights=shares, histtype="stepfilled", color=BLUE, alpha=0.6, label=label)
        for (kind, values), (color, ls) in zip(kinds.items(), _LINES, strict=False):
            weights = np.full(len(values), 1 / len(values))
            label = f"{kind} ({len(values):,})"
            left.hist(values, edges, weights=weights, histtype="step", lw=1.6, ls=ls, color=color, label=label)
        if threshold is None:
            left.plot([], [], ls="", label=f"none is flagged: too few rows for {100 * rate:.3g}%")
        else:
            label = f"flagged from here on ({100 * rate:.3g}% by mistake)"
            # Below the legend.
            left.axvline(threshold, ymax=1 / (1 + _LEGEND), color=INK, lw=1.4, ls="--", label=label, zorder=1)
        left.set(xlabel="OOD score", ylabel="share of rows")
        left.set_title("How unfamiliar rows look")
        left.margins(y=_LEGEND)
        left.legend(loc="upper left")
        percent(left.yaxis)
        right.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="chance")
        for (kind, values), (color, ls) in zip(kinds.items(), _LINES, strict=False):
            false, true = roc(own, values)
            right.plot(false, true, color=color, lw=1.8, ls=ls, label=f"{kind}: AUROC {auroc(own, values):.3f}")
        right.axvline(rate, color=INK, lw=1.2, ls="--", label="default false alarm rate")
        right.set(
            xlim=(0, 1), ylim=(0, 1.02), xlabel="share of familiar rows flagged", ylabel="share of stand-ins flagged"
        )
        right.set_title("Telling stand-ins from familiar rows")
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
    total, part = std[sound], epistemic[sound]

    def draw(axes: Axes) -> None:
        edges = _edges(np.concatenate([total, part]), len(total))
        axes.hist(total, edges, histtype="stepfilled", color=SKY, label=f"whole ({_told(total)})")
        axes.hist(part, edges, histtype="step", lw=1.8, color=BLUE, label=f"epistemic part of it ({_told(part)})")
        axes.set_title("How wide error bars are")

    return _sharpness(draw, f"predictive standard deviation of {target}", len(total))


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
    shown = {f"{name} ({_told(values)})": (values, color) for name, (values, color) in parts.items() if len(values)}

    def draw(axes: Axes) -> None:
        values, colors = zip(*shown.values(), strict=True)
        edges = _edges(np.concatenate(values), int(sound.sum()))
        axes.hist(values, edges, stacked=True, color=colors, rwidth=0.9, label=list(shown))
        axes.set_title("How unsure predictions are")

    return _sharpness(draw, f"predictive entropy (nats; a blind guess has {np.log(classes):.2g})", int(sound.sum()))


def _sharpness(draw: Callable[[Axes], None], label: str, rows: int) -> bytes | None:
    if not rows:
        return None

    def draw_all(figure: Figure) -> None:
        axes = figure.subplots()
        draw(axes)
        axes.set(xlabel=clean(label), ylabel="test rows")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(y=_LEGEND)
        axes.legend(loc="upper left")

    return png(draw_all)


def _edges(values: Array, rows: int) -> list[float]:
    """Edges of bins, the fewer the fewer rows there are to fill them."""
    bins = int(np.clip(2 * rows**0.5, _FEWEST_BINS, _BINS))
    edges: list[float] = np.histogram_bin_edges(values, bins).tolist()
    return edges


def _told(values: Array) -> str:
    return f"{count(len(values), 'row')}, median {number(float(np.median(values)))}"
