"""Tables and the picture of how the cost of an answer grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from builder.canvas import BLUE, GREEN, PURPLE, RED, png

_NAMES: Final = {
    "weights": "weights P",
    "samples": "samples S",
    "rows": "rows B",
    "dimension": "latent dimension k",
    "rank": "rank of the decoder's head",
}
_COLORS: Final = (PURPLE, BLUE, GREEN, RED)
_LEAST_SPAN: Final = 3.0


def table(points: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one for each point."""
    header = ["varied", "network", "at", "det µs", "samples µs", "in det", "decoding µs"]
    rows = []
    for p in points:
        at = p["weights"] if p["curve"] == "weights" else p["at"]
        cells = [_NAMES[p["curve"]], p["network"], f"{at:,}", f"{p['det']:,.1f}", f"{p['network_us']:,.1f}"]
        rows.append([*cells, f"{p['network_us'] / p['det']:.1f}", f"{p['decode']:,.1f}"])
    return header, rows


def picture(points: Sequence[dict[str, Any]], clients: Sequence[dict[str, Any]]) -> bytes:
    """PNG: a panel for each of P, S, B, the latent space, and answers a second over clients where these are measured.

    Args:
        points: of `benchmarks.serving.curves`.
        clients: runs of `benchmarks.serving.http`.
    """

    def draw(figure: Figure) -> None:
        panels = figure.subplots(2, 3).flatten().tolist()
        names = dict.fromkeys([*(p["network"] for p in points), *(r["set"] for r in clients)])
        colors = dict(zip(names, _COLORS, strict=False))
        for at, curve in zip(panels, ("weights", "samples", "rows"), strict=False):
            _lines(at, [p for p in points if p["curve"] == curve], colors, "network_us", "µs of the outputs")
            at.set_xlabel(_NAMES[curve])
        for at, curve in zip(panels[3:], ("dimension", "rank"), strict=False):
            _lines(at, [p for p in points if p["curve"] == curve], colors, "decode", "µs of decoding")
            at.set_xlabel(_NAMES[curve])
        _clients(panels[5], clients, colors)
        drawn = {label: line for at in panels for line, label in zip(*at.get_legend_handles_labels(), strict=True)}
        figure.legend(list(drawn.values()), list(drawn), loc="outside lower center", ncols=4)

    return png(draw, (10.5, 6.0))


def _lines(at: Axes, points: Sequence[dict[str, Any]], colors: Mapping[str, str], figure: str, name: str) -> None:
    for network in dict.fromkeys(p["network"] for p in points):
        own = [p for p in points if p["network"] == network]
        x = [p["weights"] if p["curve"] == "weights" else p["at"] for p in own]
        at.plot(x, [p[figure] for p in own], marker="o", ms=3, color=colors[network], label=network)
    at.set(xscale="log", yscale="log", ylabel=name)
    low, high = at.get_ylim()
    # What hardly varies is to look so.
    if high < _LEAST_SPAN * low:
        at.set_ylim(low / _LEAST_SPAN, high * _LEAST_SPAN)


def _clients(at: Axes, runs: Sequence[dict[str, Any]], colors: Mapping[str, str]) -> None:
    if not runs:
        at.set_visible(False)
        return
    for network in dict.fromkeys(r["set"] for r in runs):
        own = sorted((r for r in runs if r["set"] == network), key=lambda r: int(r["clients"]))
        rates = [r["together"]["rate"] for r in own]
        at.plot([r["clients"] for r in own], rates, marker="o", ms=3, color=colors[network], label=network)
    at.set(xscale="log", xlabel="clients", ylabel="answers a second")
    at.set_ylim(bottom=0)
