"""Paper and ink of the pictures: one style, and PNG bytes that are a function of what is drawn alone.

Colours are those of Okabe and Ito (2008), which colour-blind readers tell apart.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, INK, GREY = "#56B4E9", "#CC79A7", "#222222", "#8A8A8A"
SIZE: Final = (8.0, 4.5)
_STYLE: Final[dict[str, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.dpi": 150,
}


def png(draw: Callable[[Figure], None], size: tuple[float, float] = SIZE) -> bytes:
    """The PNG of a figure of `size` inches that `draw` fills."""
    buffer = io.BytesIO()
    # Settings of the user's own matplotlib must not change a bundle.
    with style.context(_STYLE, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure = Figure(figsize=size, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        draw(figure)
        # Without the default metadata, the bytes do not depend on the library's name for itself.
        canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def anchor_colors(anchors: int) -> list[Any]:
    """A colour for each anchor; of many anchors, neighbours get colours alike."""
    own = [BLUE, RED, GREEN, PURPLE, ORANGE, SKY, INK, GREY]
    if anchors <= len(own):
        return own[:anchors]
    return list(matplotlib.colormaps["cividis"](np.linspace(0, 1, anchors)))


def clean(text: str) -> str:
    """A name as matplotlib shows it letter for letter: on one line, not too long, and no formula."""
    short = " ".join(text.split())
    short = short if len(short) <= 48 else short[:47] + "…"
    return short.replace("$", r"\$")


def percent(*axes: Any) -> None:
    """Labels shares in percent."""
    for axis in axes:
        axis.set_major_formatter(lambda v, _: f"{v:.0%}")
