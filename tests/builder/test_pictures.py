"""The figures behind the pictures, and names in them."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from builder import pictures
from builder.canvas import anchor_colors, clean, png


def test_a_dollar_is_no_formula() -> None:
    text = Figure().text(0, 0, clean("$a$ and $b$"))
    drawn, math = text._preprocess_math(text.get_text())
    assert (drawn, math) == ("$a$ and $b$", False)


def test_a_long_name_is_broken_into_lines_and_keeps_its_unit() -> None:
    name = "price of the house with all taxes and fees " * 3 + "(k€)"
    lines = clean(name, 40).split("\n")
    assert len(lines) == 2 and max(map(len, lines)) <= 40
    assert lines[0].startswith("price of the house") and lines[1].endswith("fees (k€)")
    assert clean("price  (k€)", 40) == "price (k€)"


def drawn(draw: Callable[[Figure], None]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png(draw))).convert("RGB"))


def test_few_colours_are_enough_and_paper_is_white() -> None:
    def draw(figure: Figure) -> None:
        figure.subplots().fill([0, 1, 1], [0, 0, 1], color=pictures.BLUE)

    pixels = drawn(draw)
    assert pixels[2, 2].tolist() == [255, 255, 255]
    blue = np.array([0, 0x72, 0xB2])
    assert np.abs(pixels.astype(int) - blue).max(axis=2).min() <= 3


@pytest.mark.parametrize(("best", "worst", "flat"), [(0.4560, 0.4574, True), (0.45, 1.2, False)])
def test_what_hardly_differs_looks_so(best: float, worst: float, flat: bool) -> None:
    low, high = pictures._within_sight(np.array([best, worst]))[2]
    assert low < best < worst < high
    assert ((worst - best) < 0.1 * (high - low)) is flat


@pytest.mark.parametrize(("rows", "share"), [(1, 0.5), (7, 0.9), (40, 0.02), (500, 0.98), (5000, 0.5)])
def test_the_band_of_chance_is_the_binomials(rows: int, share: float) -> None:
    low, high = pictures.binomial_band(rows, np.array([share]))
    hits = np.random.default_rng(0).binomial(rows, share, size=200_000) / rows
    assert np.mean(hits < low[0]) <= 0.05 + 0.003
    assert np.mean(hits > high[0]) <= 0.05 + 0.003
    assert np.mean((hits >= low[0]) & (hits <= high[0])) >= 0.9 - 0.003
    # And no wider than it must be.
    assert np.mean(hits <= low[0]) >= 0.05 - 0.003
    assert np.mean(hits >= high[0]) >= 0.05 - 0.003


def test_main_axes_hold_the_most_variance_whatever_the_sign() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 5)) * np.array([0.1, 3.0, 0.2, 1.0, 0.1]) + 7
    plane, share = pictures.main_axes(points)
    values = np.sort(np.linalg.eigvalsh(np.cov(points.T, ddof=0)))[::-1]
    np.testing.assert_allclose(plane.var(axis=0), values[:2])
    np.testing.assert_allclose(share, values[:2] / values.sum())
    np.testing.assert_allclose(np.abs(np.corrcoef(plane[:, 0], points[:, 1])[0, 1]), 1, atol=0.01)
    mirrored, _ = pictures.main_axes(points[::-1])
    np.testing.assert_allclose(mirrored[::-1], plane, atol=1e-9)


def test_colours_tell_anchors_apart() -> None:
    for anchors in (1, 5, 8, 9, 50):
        assert len({tuple(np.atleast_1d(color)) for color in anchor_colors(anchors)}) == anchors
