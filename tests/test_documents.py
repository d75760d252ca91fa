"""README.md and docs/*.md: links lead somewhere, examples are what the program takes and says, and names are right."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from builder.config import BuildConfig, make_config
from fiberwalk.cli import app
from service.schemas import OodAnswer, RegressionAnswer

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("building", "serving", "operating"))]
WIDTH = 125

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", path.read_text())


def blocks(path: Path, language: str) -> list[str]:
    return [text for kind, text in _FENCE.findall(path.read_text()) if kind == language]


def anchors(path: Path) -> list[str]:
    """What links may name in a page, as GitHub makes it of headings; the second of the same gets a number."""
    found: list[str] = []
    seen: Counter[str] = Counter()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(path), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken(path: Path) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of it."""
    found = []
    for link in _LINK.findall(_CODE.sub("", prose(path))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        known = target.exists() and (not anchor or (target.suffix == ".md" and anchor in anchors(target)))
        found += [] if known else [link]
    return found


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_what_is_there(page: Path) -> None:
    assert broken(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b`, c's\n[x](#a-b-cs) [y](#none) [z](page.md#a-b-cs) [v](none.md) [w](https://none/x)\n")
    assert broken(page) == ["#none", "none.md"]


@pytest.mark.parametrize("page", GUIDES[1:], ids=named)
def test_a_guide_lists_all_its_sections(page: Path) -> None:
    text = page.read_text()
    contents = re.findall(r"\]\(#([^)]+)\)", text[: text.index("\n## ")])
    assert contents == anchors(page)[1:]


def test_the_readme_leads_to_every_page() -> None:
    linked = {link for link in _LINK.findall(GUIDES[0].read_text()) if link.endswith(".md")}
    assert {named(page) for page in PAGES} - {"README.md", "CHANGELOG.md"} <= linked


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_lines_are_not_long(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert [line for line in lines if len(line) > WIDTH and not line.startswith("|")] == []


# ---- examples


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every `fiberwalk` command of the guides' examples, with the words after it."""
    for page in GUIDES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    words.pop(0)
                if words[:1] == ["fiberwalk"]:
                    yield named(page), words[1:]


def test_commands_and_options_of_examples_exist() -> None:
    found = list(commands())
    assert {words[0] for _, words in found} >= {"build", "serve", "models"}
    for page, words in found:
        command: Any = get_command(app)
        while hasattr(command, "commands"):
            assert words[0] in command.commands, (page, words)
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, (page, words)


def options(config: type[Any] = BuildConfig, path: str = "") -> Iterator[str]:
    for name, field in config.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and hasattr(inner, "model_fields"):
            yield from options(inner, f"{path}{name}.")
        else:
            yield path + name


# In docs/serving.md the same words are fields of answers.
@pytest.mark.parametrize(
    "page", [ROOT / "docs" / f"{name}.md" for name in ("building", "method", "operating")], ids=named
)
def test_options_of_a_build_are_called_as_they_are(page: Path) -> None:
    every = set(options())
    stages = "|".join({option.partition(".")[0] for option in every if "." in option})
    found = set(re.findall(rf"(?:`|--set '?)((?:{stages})\.[a-z_]+)", page.read_text()))
    assert found and found - every == set()


def test_the_recipe_is_one() -> None:
    (recipe,) = blocks(ROOT / "docs" / "building.md", "toml")
    config = make_config(tomllib.loads(recipe))
    assert config.data.target == "price" and config.map.served == 5


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_examples_in_python_and_json_can_be_read(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)
    for block in blocks(page, "json"):
        json.loads(block)


def test_the_first_answer_is_one_and_every_field_of_it_is_explained() -> None:
    (block,) = blocks(ROOT / "README.md", "json")
    answer = json.loads(block)
    RegressionAnswer.model_validate(answer)
    explained = [
        name
        for row in re.findall(r"^\| (`.*?`) \|", (ROOT / "README.md").read_text(), re.M)
        for name in re.findall(r"`([a-z_]+)`", row)
    ]
    assert explained == list(answer)


def test_the_example_of_unfamiliar_rows_is_an_answer() -> None:
    scored = next(b for b in blocks(ROOT / "docs" / "serving.md", "json") if "p_value" in b)
    OodAnswer.model_validate_json(scored)
