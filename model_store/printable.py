"""Texts from outside as a terminal, or a line of a log, may show them."""

from __future__ import annotations

import re
from typing import Final

_LINES: Final = "\t\n"
# Control characters, line and paragraph separators, what turns the direction of writing, and halves of characters.
_COMMANDS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str, keep: str = "") -> str:
    r"""The text, with what a terminal might obey written out as in JSON, such as `\u001b`; other letters stay.

    Args:
        text: may come from anyone.
        keep: characters that stay in any case.
    """
    if text.isprintable():
        return text  # as nearly all are, which is quickly said
    return _COMMANDS.sub(lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", text)


def harmless_lines(text: str) -> str:
    """The same of a text that may have several lines."""
    return harmless(text, _LINES)
