"""The pictures of a bundle.

Lengths: A anchors, N trajectories an anchor, T drift steps, k latent dimensions, S samples, G grid points, B rows,
C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from builder.canvas import BLUE, GREEN, GREY, INK, RED, SIZE, SKY, anchor_colors, clean, percent, png

Array = NDArray[Any]
BINS: Final = 15
"""Confidence bins of the reliability diagram."""

_MOST_POINTS = 2000
_MOST_SAMPLES = 24
_MOST_BARS = 80
_MOST_LOSSES = 160
_MOST_TRAJECTORIES = 40
_MOST_NAMED_ANCHORS = 8
_BAND = 0.9
"""Probability mass of the bands that show how far chance alone moves a share of few rows."""
_LEAST_RISE = 0.01
"""Nats a row: the loss axis is linear below, where a rise is of no account, and logarithmic above."""
_LEAST_SPAN = 0.02
"""Nats a row that an axis of NLL spans at least, so that what hardly differs looks so."""


def posterior(curve: Mapping[str, Array], column: str, target: str, level: float) -> bytes:
    """The posterior over the one input column, and the size of its parts below.

    Args:
        curve: `grid` (G,), `map` (A, G), `samples` (S, G), `mean`, `std`, `epistemic_std`, `lower`, `upper` (G,),
            `x_train`, `y_train` (n,), all in own units.
        column, target: names with units, for the axes.
        level: probability mass between `lower` and `upper`.
    """
    grid, mean, std, epistemic = (curve[k] for k in ("grid", "mean", "std", "epistemic_std"))
    # The same factor as the interval's, so that the bands are parts of one whole.
    half = np.divide((curve["upper"] - curve["lower"]) / 2, std, out=np.zeros_like(std), where=std > 0) * epistemic

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        top.fill_between(
            grid, curve["lower"], curve["upper"], color=SKY, alpha=0.25, lw=0, label=f"{level:.0%} interval"
        )
        top.fill_between(grid, mean - half, mean + half, color=BLUE, alpha=0.25, lw=0, label="epistemic part of it")
        for i, line in enumerate(_some(curve["samples"], _MOST_SAMPLES)):
            top.plot(grid, line, color=BLUE, alpha=0.35, lw=0.6, label="posterior samples" if i == 0 else None)
        for i, line in enumerate(curve["map"]):
            label = "MAP" if len(curve["map"]) == 1 else "MAP (each anchor)"
            top.plot(grid, line, color=RED, lw=1.1, ls=(0, (4, 2)), label=label if i == 0 else None)
        top.plot(grid, mean, color=INK, lw=1.8, label="posterior mean")
        x, y = (_some(curve[k], _MOST_POINTS) for k in ("x_train", "y_train"))
        top.plot(x, y, ls="", marker="o", ms=3.2, mew=0, color=INK, alpha=0.55, label="training data")
        top.set(xlim=(grid[0], grid[-1]), ylim=_limits(curve), ylabel=clean(target, 36))
        top.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        bottom.plot(grid, epistemic, color=BLUE, lw=1.6, label="epistemic std")
        noise = np.sqrt(np.maximum(std**2 - epistemic**2, 0))
        bottom.plot(grid, noise, color=GREEN, lw=1.6, ls="-.", label="noise std")
        bottom.set(xlabel=clean(column), ylabel="std")
        bottom.set_ylim(bottom=0)
        bottom.legend(loc="lower right", bbox_to_anchor=(1.0, 0.95), ncols=2)

    return png(draw, (SIZE[0], 5.4))


def coverage(
    y: Array, mean: Array, std: Array, factor: Callable[[float], float], target: str, level: float
) -> bytes | None:
    """How often intervals cover the test part, at every level, and predictions beside what was measured.

    Args:
        y, mean, std: (B,) test targets, predictive mean and standard deviation.
        factor: how many standard deviations an interval of a level reaches to either side.
        target: name with unit.
        level: that of the intervals drawn beside each row.

    Returns:
        None where there is no row to show.
    """
    sound = np.isfinite(y) & np.isfinite(mean) & np.isfinite(std) & (std > 0)
    y, mean, std = y[sound], mean[sound], std[sound]
    rows = len(y)
    if not rows:
        return None
    z = np.abs(y - mean) / std
    levels = np.linspace(0.02, 0.98, 49)
    covered = np.array([np.mean(z <= factor(v)) for v in levels])
    half = factor(level) * std
    inside = z <= factor(level)

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        low, high = binomial_band(rows, levels)
        left.fill_between(levels, low, high, color=GREY, alpha=0.22, lw=0, label=f"chance alone ({_BAND:.0%})")
        left.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="ideal")
        left.step(levels, covered, where="mid", color=BLUE, lw=2, label="test part")
        left.plot(level, inside.mean(), marker="o", color=RED, ms=7, ls="", label=f"{inside.mean():.1%} at {level:.0%}")
        left.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="level of the interval", ylabel="share of rows covered")
        left.set_title(f"Coverage, {_rows(rows)}")
        left.legend(loc="upper left")
        percent(left.xaxis, left.yaxis)
        some = _some(np.argsort(mean, kind="stable"), _MOST_BARS)
        for hit, color, label in ((True, BLUE, "covered"), (False, RED, "missed")):
            at = some[np.equal(inside[some], hit)]
            if len(at):
                right.errorbar(
                    mean[at], y[at], xerr=half[at], fmt="o", ms=3.5, mew=0, lw=0.9, alpha=0.75, color=color, label=label
                )
        right.axline((mean.mean(), mean.mean()), slope=1, color=GREY, lw=1, ls="--", zorder=0)
        right.set(xlabel=clean(f"predicted {target}", 40), ylabel=clean(f"measured {target}", 40))
        right.xaxis.get_major_locator().set_params(nbins=5)
        right.set_title(f"Predictions with {level:.0%} intervals" + _of(len(some), rows))
        right.legend(loc="upper left")

    return png(draw)


def reliability(y: Array, probabilities: Array) -> bytes | None:
    """Accuracy against confidence of the likeliest class, and how many rows have which confidence.

    Args:
        y: (B,) class indices.
        probabilities: (B, C).

    Returns:
        None where there is no row to show.
    """
    sound = np.isfinite(probabilities).all(axis=1)
    y, probabilities = y[sound], probabilities[sound]
    rows = len(y)
    if not rows:
        return None
    confidence, right_label = probabilities.max(axis=1).astype(np.float64), probabilities.argmax(axis=1) == y
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    used = np.flatnonzero(count)
    accuracy = np.bincount(place, right_label, BINS)[used] / count[used]
    certain = np.bincount(place, confidence, BINS)[used] / count[used]
    ece = float(count[used] @ np.abs(accuracy - certain)) / rows
    edges = np.linspace(0, 1, BINS + 1)

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        band = np.array([binomial_band(int(n), np.array([p])) for n, p in zip(count[used], certain, strict=True)])
        low, high = band[:, 0, 0], band[:, 1, 0]
        left.bar(
            (edges[used] + edges[used + 1]) / 2,
            high - low,
            bottom=low,
            width=0.9 / BINS,
            color=GREY,
            alpha=0.25,
            label=f"chance alone ({_BAND:.0%})",
        )
        left.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="ideal")
        left.plot(certain, accuracy, color=BLUE, marker="o", ms=6, lw=0.7, label="test part")
        left.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence in the likeliest class", ylabel="share that is right")
        left.set_title(f"Reliability, {_rows(rows)}: ECE {ece:.1%}")
        left.legend(loc="best")
        percent(left.xaxis, left.yaxis)
        wrong = np.histogram(confidence[~right_label], edges)[0]
        width = np.diff(edges) * 0.9
        right.bar(edges[:-1], count - wrong, width, align="edge", color=BLUE, label="right")
        right.bar(edges[:-1], wrong, width, bottom=count - wrong, align="edge", color=RED, label="wrong")
        right.set(xlim=(0, 1), xlabel="confidence in the likeliest class", ylabel="rows")
        right.set_ylim(0, 1.08 * count.max())
        right.yaxis.get_major_locator().set_params(integer=True)
        right.set_title(f"{right_label.mean():.1%} of the rows are right")
        right.legend(loc="best")
        percent(right.xaxis)

    return png(draw)


def fibers(loss: Array, scales: Array, reach: int, out_of_fold: Array, standardized: bool) -> bytes:
    """Loss along the fibers, and what using them up to each node does to out-of-fold predictions.

    Args:
        loss: (T+1, A, N), nats a training row; values that are not finite are left out and counted.
        scales: (T+1,) drift scale of each node.
        reach: last node that predictions use.
        out_of_fold: (at most T+1,) NLL with the trajectories up to each node.
        standardized: whether that NLL is of a standardised target, and so another than the metrics' by a constant.
    """
    nodes = np.arange(len(loss))
    finite = np.where(np.isfinite(loss), loss, np.nan).astype(np.float64).reshape(len(loss), -1)
    rise = finite - finite[:1]
    of = ", target standardised" if standardized else ""
    lost = int(np.isnan(rise).any(axis=0).sum())

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharex=True)
        lines = [np.column_stack([nodes, line]) for line in _some(rise.T, _MOST_LOSSES)]
        left.add_collection(LineCollection(lines, colors=BLUE, alpha=0.18, lw=0.7, label="each trajectory"))
        sound = np.isfinite(rise).any(axis=1)
        left.plot(nodes[sound], np.nanmedian(rise[sound], axis=1), color=INK, lw=1.8, label="median")
        left.set_yscale("symlog", linthresh=_LEAST_RISE)
        # On a symlog axis of nothing but zeros there would be no tick.
        largest = max(_LEAST_RISE, float(np.nanmax(np.abs(rise[sound]), initial=0.0)))
        lowest = min(0.0, float(np.nanmin(rise[sound], initial=0.0)))
        left.set_ylim(lowest * 1.5 - 0.1 * _LEAST_RISE, largest * 1.5)
        left.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
        left.set_ylabel("rise of the loss over the anchor's (nats a row)")
        left.set_title(f"Loss along {rise.shape[1]} fibers" + (f" ({lost} diverged)" if lost else ""))
        values = np.asarray(out_of_fold, dtype=np.float64)
        shown, beyond, (low, high) = _within_sight(values)
        right.plot(nodes[: len(values)], shown, color=BLUE, marker="o", ms=5, lw=1.6)
        if beyond.any():
            at = nodes[: len(values)][beyond]
            right.plot(at, shown[beyond], color=RED, marker="^", ms=8, ls="", label="beyond the axis", clip_on=False)
        right.set(ylim=(low, high), ylabel=f"out-of-fold NLL (nats a row{of})")
        right.set_title("NLL by reach: lower is better")
        for axes in (left, right):
            axes.axvspan(-0.3, reach, color=GREEN, alpha=0.1, lw=0)
            said = f"reach: drift scale {scales[reach]:.2g}" if reach else "reach 0: the anchors alone"
            axes.axvline(reach, color=GREEN, lw=1.6, label=said)
            ticks = _some(nodes, 11)
            axes.set_xticks(ticks, [f"{scales[t]:.2g}" for t in ticks], rotation=45)
            axes.set(xlim=(-0.3, len(nodes) - 0.7), xlabel="drift scale")
            axes.legend(loc="upper left")

    return png(draw)


def latent(nodes: Array, used: float) -> bytes | None:
    """The latents of the nodes on their two main axes, one colour an anchor, a curve each trajectory.

    Args:
        nodes: (A, N, T+1, k).
        used: part of each trajectory, in [0, 1], that predictions draw from.

    Returns:
        None where no latent is finite.
    """
    anchors, trajectories, points, _ = nodes.shape
    shown = max(1, min(trajectories, _MOST_TRAJECTORIES // anchors))
    finite = np.isfinite(nodes).all(axis=(2, 3))
    if not finite.any():
        return None
    plane, share = main_axes(nodes[finite].reshape(-1, nodes.shape[-1]))
    paths = np.full((anchors, trajectories, points, 2), np.nan)
    paths[finite] = plane.reshape(-1, points, 2)
    at = used * (points - 1)
    low = min(int(at), points - 2)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        colors = anchor_colors(anchors)
        for a in range(anchors):
            path = _some(paths[a], shown)
            ends = path[:, low] + (at - low) * (path[:, low + 1] - path[:, low])
            near = np.concatenate([path[:, : low + 1], ends[:, None]], axis=1)
            name = f"anchor {a + 1}" if 1 < anchors <= _MOST_NAMED_ANCHORS else None
            axes.add_collection(LineCollection(list(path), colors=[colors[a]], alpha=0.35, lw=1))
            axes.add_collection(LineCollection(list(near), colors=[colors[a]], lw=1.8, label=name))
            inner = path[:, 1:].reshape(-1, 2)
            axes.plot(*inner.T, color=colors[a], ls="", marker="o", ms=2.2, mew=0, alpha=0.6)
            axes.plot(*ends.T, color=colors[a], ls="", marker="o", ms=5, mec="white", mew=0.7)
        axes.plot(*paths[finite][0, 0], color=INK, marker="*", ms=13, mec="white", ls="", label="anchor (MAP)")
        axes.plot([], [], color=GREY, lw=1.8, marker="o", ms=5, mec="white", label="part that predictions draw from")
        if used < 1:
            axes.plot([], [], color=GREY, lw=1, alpha=0.5, label="beyond it")
        if anchors > _MOST_NAMED_ANCHORS:
            axes.plot([], [], ls="", label=f"({anchors} anchors, one colour each)")
        axes.set(xlabel=f"main axis 1 ({share[0]:.0%} of the variance)", ylabel=f"main axis 2 ({share[1]:.0%})")
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_title("Latent space" + _of(shown * anchors, trajectories * anchors, "trajectories"))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))

    return png(draw)


# ---- figures behind the pictures


def binomial_band(rows: int, shares: Array) -> tuple[Array, Array]:
    """The central 90 % of the share of `rows` rows that are hit when each is with probability `shares` (exact)."""
    k = np.arange(rows + 1)
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, rows + 1)))])
    p = np.clip(np.asarray(shares, dtype=np.float64), 1e-12, 1 - 1e-12)[:, None]
    ways = factorial[rows] - factorial[k] - factorial[rows - k]
    below = np.cumsum(np.exp(ways + k * np.log(p) + (rows - k) * np.log1p(-p)), axis=1)
    tail = (1 - _BAND) / 2
    return (below < tail).sum(axis=1) / rows, np.minimum((below < 1 - tail).sum(axis=1), rows) / rows


def main_axes(points: Array) -> tuple[Array, tuple[float, float]]:
    """Points (m, k) on their two main axes (m, 2), and the share of the variance on each (PCA)."""
    centred = np.asarray(points, dtype=np.float64) - points.mean(axis=0)
    if centred.shape[1] < 2:
        centred = np.pad(centred, ((0, 0), (0, 1)))
    values, vectors = np.linalg.eigh(centred.T @ centred)
    largest, axes = np.maximum(values[:-3:-1], 0.0), vectors[:, :-3:-1]
    # The sign of an axis is free; this one makes it the same on every machine.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    first, second = largest / max(float(values.sum()), 1e-300)
    return centred @ axes, (float(first), float(second))


def _limits(curve: Mapping[str, Array]) -> tuple[float, float]:
    """Limits that show the band, but not so much of it that the data become a line."""
    bands = np.concatenate([curve["lower"], curve["upper"], curve["y_train"]])
    bands = bands[np.isfinite(bands)]
    low, high = (float(bands.min()), float(bands.max())) if len(bands) else (0.0, 1.0)
    if len(curve["y_train"]):
        least, most = float(curve["y_train"].min()), float(curve["y_train"].max())
        room = 1.5 * (most - least) or max(high - low, 1.0)
        low, high = max(low, least - room), min(high, most + room)
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin


def _within_sight(values: Array) -> tuple[Array, Array, tuple[float, float]]:
    """Values with the far ones moved to the top of the axis, which ones these are, and the axis."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.zeros_like(values), np.ones(len(values), dtype=bool), (-1.0, 0.0)
    best = float(finite.min())
    first = float(values[0]) if np.isfinite(values[0]) else float(finite.max())
    top = min(float(finite.max()), best + max(3 * (first - best), 1.0))
    margin = max(0.08 * (top - best), (_LEAST_SPAN - (top - best)) / 2)
    beyond = ~(values <= top)
    return np.where(beyond, top + margin, values), beyond, (best - margin, top + margin)


def _some(values: Array, most: int) -> Array:
    """At most `most` entries, evenly spread over all, the first and the last among them."""
    if len(values) <= most:
        return values
    spread: Array = values[np.linspace(0, len(values) - 1, most).round().astype(int)]
    return spread


def _rows(count: int) -> str:
    return f"{count:,} test row" + ("" if count == 1 else "s")


def _of(shown: int, count: int, what: str = "rows") -> str:
    return "" if shown == count else f" ({shown} of {count:,} {what})"
