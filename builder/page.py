"""The report of a build as one HTML file that refers to nothing else: the model card with its pictures inside, and the
rows predicted worst."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping
from typing import Final

from markdown_it import MarkdownIt

_STYLE: Final = """
body{font:16px/1.55 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
img{max-width:100%;height:auto}pre{overflow-x:auto;padding:.8rem;background:#f4f4f4}code{font-size:.9em}
table{border-collapse:collapse;display:block;overflow-x:auto}th,td{text-align:left;padding:.3rem .7rem;
border-bottom:1px solid #ddd;vertical-align:top}
"""


def make_page(title: str, text: str, pictures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        title: name of the model.
        text: in Markdown; HTML in it is shown and not meant.
        pictures: PNG files by the names that the text refers to them by.
    """
    body: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)

    def inside(match: re.Match[str]) -> str:
        name = html.unescape(match[1])
        if name not in pictures:
            return match[0]
        return f'src="data:image/png;base64,{base64.b64encode(pictures[name]).decode()}"'

    body = re.sub(r'src="([^"]*)"', inside, body)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n{body}</body></html>\n"
    )
