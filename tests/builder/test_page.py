"""The report as one HTML file."""

from __future__ import annotations

import base64
import re

import pytest

from builder.page import make_page

CARD = """# houses

| column | unit |
| --- | --- |
| area | m² |

## How good it is

![Calibration](calibration.png)
*The line should stay in the band, `x < 2`.*

## How to ask & more

<script>alert(1)</script> and `x < 1`.

![Gone](other.png)
"""


def test_pictures_are_inside_and_nothing_is_fetched_but_what_is_missing() -> None:
    page = make_page("houses & co", CARD, {"calibration.png": b"\x89PNG..."})
    sources = re.findall(r'src="([^"]*)"', page)
    assert sources == ["data:image/png;base64," + base64.b64encode(b"\x89PNG...").decode(), "other.png"]
    assert "<td>m²</td>" in page and "<h1>houses</h1>" in page
    assert "<title>houses &amp; co: report of its build</title>" in page


def test_markup_in_the_card_is_shown_and_not_meant() -> None:
    page = make_page("houses", CARD, {})
    assert "<script" not in page and "&lt;script&gt;" in page and "<code>x &lt; 1</code>" in page


def test_what_is_told_below_a_picture_is_its_caption() -> None:
    page = make_page("houses", CARD, {"calibration.png": b"\x89PNG..."})
    ((alt, caption),) = re.findall(r'<figure>.*?<img [^>]*alt="(.*?)".*?<figcaption>(.*?)</figcaption></figure>', page)
    assert (alt, caption) == ("Calibration", "The line should stay in the band, <code>x &lt; 2</code>.")


def test_every_section_is_led_to_from_below_the_title() -> None:
    page = make_page("houses", CARD, {})
    links = re.findall(r'<a href="#(\w+)">(.*?)</a>', page)
    assert links == re.findall(r'<h2 id="(\w+)">(.*?)</h2>', page)
    assert [text for _, text in links] == ["How good it is", "How to ask &amp; more"]
    assert page.index("<h1>") < page.index("<nav ") < page.index("<h2 ")
    assert "<nav" not in make_page("houses", "# houses", {})


def test_tables_and_pictures_scroll_by_themselves_with_the_keyboard_too() -> None:
    page = make_page("houses", CARD, {"calibration.png": b"\x89PNG..."})
    boxes = re.findall(r'<div class="wide" role="group" aria-label="(\w+)" tabindex="0"><(\w+)', page)
    assert boxes == [("Table", "table"), ("Picture", "img")]
    assert page.count("<div") == page.count("</div>") == 2
    assert page.count('<th scope="col">') == 2 and "<th>" not in page


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 has it."""
    parts = re.findall("..", colour) if len(colour) == 6 else [2 * digit for digit in colour]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (int(p, 16) / 255 for p in parts)]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_and_links_stand_out_from_the_paper_in_every_scheme(scheme: int) -> None:
    rules = re.findall(r":root\{(.*?)\}", make_page("houses", CARD, {}))
    assert len(rules) == 3
    colours = {name: luminance(value) for name, value in re.findall(r"--(\w+):#(\w+)", rules[scheme])}
    for above, below in (("ink", "paper"), ("ink", "pale"), ("link", "paper")):
        low, high = sorted((colours[above], colours[below]))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (above, below)
