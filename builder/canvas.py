"""Paper and ink of the pictures: one style, and PNG bytes that are a function of what is drawn alone.

Colours are those of Okabe and Ito (2008), which colour-blind readers tell apart.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from textwrap import wrap
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, INK, GREY = "#56B4E9", "#CC79A7", "#222222", "#8A8A8A"
SIZE: Final = (8.0, 4.5)
_LONGEST = 60
"""Characters of a name that are shown."""
_COLORS = 256
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
    # Text over what is drawn stays readable.
    "legend.framealpha": 0.8,
    "legend.edgecolor": "none",
    "legend.fontsize": 8.5,
    "figure.dpi": 150,
}


def png(draw: Callable[[Figure], None], size: tuple[float, float] = SIZE) -> bytes:
    """The PNG of a figure of `size` inches that `draw` fills."""
    # Settings of the user's own matplotlib must not change a bundle.
    with style.context(_STYLE, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure = Figure(figsize=size, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        draw(figure)
        canvas.draw()
    return _packed(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))


def _packed(drawn: Image.Image) -> bytes:
    """The PNG of a picture in so few colours that one byte holds each: a third as large as with all, made sooner."""
    few = drawn.quantize(_COLORS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = few.getpalette()
    assert palette is not None
    # The nearest to white that is found is a shade darker than the page around it.
    few.putpalette([255 if value == 254 else value for value in palette])
    buffer = io.BytesIO()
    few.save(buffer, "png")
    return buffer.getvalue()


def anchor_colors(anchors: int) -> list[Any]:
    """A colour for each anchor; of many anchors, neighbours get colours alike."""
    own = [BLUE, RED, GREEN, PURPLE, ORANGE, SKY, INK, GREY]
    if anchors <= len(own):
        return own[:anchors]
    # The lightest are too pale for white paper.
    return list(matplotlib.colormaps["cividis"](np.linspace(0, 0.85, anchors)))


def clean(text: str, width: int = 80) -> str:
    """A label as matplotlib shows it letter for letter: in lines of at most `width` characters, and no formula. What is
    too long lacks its middle, so that a unit at its end stays."""
    short = " ".join(text.split())
    if len(short) > _LONGEST:
        short = f"{short[: _LONGEST // 2].rstrip()}…{short[1 - _LONGEST // 2 :].lstrip()}"
    return "\n".join(wrap(short, width)).replace("$", r"\$")


def percent(*axes: Any) -> None:
    """Labels shares in percent."""
    for axis in axes:
        axis.set_major_formatter(lambda v, _: f"{v:.0%}")
