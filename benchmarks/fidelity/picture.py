"""The picture: bands of function values over the one column of input, HMC's behind each other method's."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.fidelity.summary import METHODS
from builder.canvas import BLUE, GREY, INK, png


def draw(curve: dict[str, Any]) -> bytes:
    """A PNG of a run's `curve`: `grid` (G,), `x`, `y` (n,) training rows, and `bands`, for each method the low end,
    the median and the high end (3, G), all in standardised units."""
    bands = {m: np.array(b) for m, b in curve["bands"].items()}
    low, _, high = bands["hmc"]
    reach = float(high.max() - low.min())

    def on(figure: Figure) -> None:
        others = [m for m in bands if m != "hmc"]
        panels = figure.subplots(1, len(others), sharex=True, sharey=True)
        for panel, method in zip(panels, others, strict=True):
            panel.fill_between(curve["grid"], low, high, color=GREY, alpha=0.35, lw=0, label="HMC")
            panel.plot(curve["grid"], bands["hmc"][1], color=INK, lw=0.8, label="its median")
            for end in (0, 2):
                panel.plot(
                    curve["grid"], bands[method][end], color=BLUE, lw=1.3, label=METHODS[method] if end else None
                )
            panel.plot(curve["grid"], bands[method][1], color=BLUE, lw=0.8, ls="--", label="its median")
            panel.plot(curve["x"], curve["y"], ls="", marker="o", ms=2.2, mew=0, color=INK, alpha=0.5)
            panel.set(ylim=(low.min() - 0.1 * reach, high.max() + 0.1 * reach), xlabel="x, standardised")
            panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=7)
        panels[0].set_ylabel("function value, standardised")

    return png(on, (10.5, 3.4))
