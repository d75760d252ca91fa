"""The report as one HTML file."""

from __future__ import annotations

import base64
import re

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
