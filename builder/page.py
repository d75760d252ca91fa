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
:root{color-scheme:light dark;--ink:#222;--paper:#fff;--pale:#f4f4f4;--line:#ddd;--link:#0058a3}
body{font:16px/1.55 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:var(--ink);
background:var(--paper);overflow-wrap:break-word}
a{color:var(--link)}a:focus-visible,[tabindex]:focus-visible{outline:3px solid var(--link);outline-offset:2px}
nav ul{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem}
figure{margin:1.5rem 0}figcaption{font-size:.93em;margin-top:.4rem}
.wide{overflow-x:auto}img{max-width:100%;height:auto;background:#fff}
pre{white-space:pre-wrap;overflow-wrap:anywhere;padding:.8rem;background:var(--pale)}code{font-size:.9em;
overflow-wrap:anywhere}
table{border-collapse:collapse}th,td{text-align:left;padding:.3rem .7rem;border-bottom:1px solid var(--line);
vertical-align:top}td{max-width:36rem}
@media(max-width:40rem){figure img{max-width:none;width:40rem}ul{padding-left:1.2rem}th,td{padding:.3rem}
td:first-child{min-width:6rem;overflow-wrap:anywhere}}
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--paper:#181818;--pale:#262626;--line:#444;--link:#8bf}}
@media print{:root{--ink:#000;--paper:#fff;--pale:#fff;--line:#999;--link:#000}body{max-width:none;margin:0}
nav{display:none}figure,tr,pre{break-inside:avoid}h2{break-after:avoid}figure img{max-width:100%;width:auto}}
"""


def make_page(title: str, text: str, pictures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        title: name of the model.
        text: in Markdown; HTML in it is shown and not meant. What stands in emphasis right below a picture is its
            caption.
        pictures: PNG files by the names that the text refers to them by.
    """
    body: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)

    def inside(match: re.Match[str]) -> str:
        name = html.unescape(match[1])
        if name not in pictures:
            return match[0]
        return f'src="data:image/png;base64,{base64.b64encode(pictures[name]).decode()}"'

    # What may be wider than a telephone scrolls by itself, with the keyboard too.
    body = body.replace("<table>", f"{_scrolling('Table')}<table>").replace("</table>", "</table></div>")
    body = body.replace("<th>", '<th scope="col">').replace("<th style", '<th scope="col" style')
    shown = rf"<figure>{_scrolling('Picture')}\1</div><figcaption>\2</figcaption></figure>"
    body = re.sub(r"<p>(<img [^>]*>)\n<em>(.*?)</em></p>", shown, body)
    body = re.sub(r'src="([^"]*)"', inside, body)
    body = _with_contents(body)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}: report of its build</title><style>{_STYLE}</style></head>"
        f"<body><main>\n{body}</main></body></html>\n"
    )


def _scrolling(what: str) -> str:
    return f'<div class="wide" role="group" aria-label="{what}" tabindex="0">'


def _with_contents(body: str) -> str:
    """The body with an address for each section, and links to these below its title."""
    links: list[str] = []

    def addressed(match: re.Match[str]) -> str:
        links.append(f'<li><a href="#s{len(links)}">{match[1]}</a></li>')
        return f'<h2 id="s{len(links) - 1}">{match[1]}</h2>'

    body = re.sub(r"<h2>(.*?)</h2>", addressed, body)
    contents = f'</h1>\n<nav aria-label="Sections"><ul>{"".join(links)}</ul></nav>'
    return body.replace("</h1>", contents, 1) if links else body
