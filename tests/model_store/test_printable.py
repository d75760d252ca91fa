"""Texts from outside do nothing to a terminal, and stay readable."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.printable import harmless, harmless_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x1b[2J", r"\u001b]0;title\u0007\u001b[2J"),
        ("\x9b31m\x7f", r"\u009b31m\u007f"),
        ("a\r\nb\tc", r"a\u000d\u000ab\u0009c"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("half \ud800", r"half \ud800"),
    ],
)
def test_what_a_terminal_might_obey_is_written_out(text: str, shown: str) -> None:
    assert harmless(text) == shown


@pytest.mark.parametrize(
    "text", ["", "price (k€)", "Köln, 日本, नमस्ते", "12\u202f000\u00a0m²", "👩\u200d🔬", r"C:\u001b"]
)
def test_ordinary_text_stays(text: str) -> None:
    assert harmless(text) == harmless_lines(text) == text


def test_lines_may_stay_lines() -> None:
    assert harmless_lines("Traceback:\n\tone\x1b[2J\r\n") == "Traceback:\n\tone\\u001b[2J\\u000d\n"


@given(st.text())
def test_any_text_can_be_written_in_one_line(text: str) -> None:
    shown = harmless(text)
    shown.encode()
    assert len(shown.splitlines()) <= 1
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))))
def test_json_means_the_same(content: dict[str, str]) -> None:
    assert json.loads(harmless(json.dumps(content, ensure_ascii=False))) == content
