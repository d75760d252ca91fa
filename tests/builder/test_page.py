"""The report as one HTML file."""

from __future__ import annotations

import base64
import re

from builder.page import make_page

CARD = """# houses

| column | unit |
| --- | --- |
| area | m² |

![Calibration](calibration.png)

<script>alert(1)</script> and `x < 1`.

![Gone](other.png)
"""


def test_pictures_are_inside_and_nothing_is_fetched_but_what_is_missing() -> None:
    page = make_page("houses & co", CARD, {"calibration.png": b"\x89PNG..."})
    sources = re.findall(r'src="([^"]*)"', page)
    assert sources == ["data:image/png;base64," + base64.b64encode(b"\x89PNG...").decode(), "other.png"]
    assert "<td>m²</td>" in page and "<h1>houses</h1>" in page and "<title>houses &amp; co</title>" in page


def test_markup_in_the_card_is_shown_and_not_meant() -> None:
    page = make_page("houses", CARD, {})
    assert "<script" not in page and "&lt;script&gt;" in page and "<code>x &lt; 1</code>" in page
