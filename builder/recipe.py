"""Options of a build as text: recipes in TOML, single settings, and all options as a recipe to start from."""

from __future__ import annotations

import json
import re
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from builder.config import BuildConfig
from model_store.errors import ConfigError

_SETTING: Final = re.compile(r"\s*([\w-]+(?:\.[\w-]+)*)\s*=\s*(.*)", re.DOTALL)
_WIDTH: Final = 100


def read_recipe(path: Path) -> dict[str, Any]:
    """The values of a recipe in TOML; file names in it are relative to its folder.

    Raises:
        ConfigError: the file cannot be read or is no TOML.
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as e:
        raise ConfigError(f"The recipe {path} cannot be read: {e.strerror}.", field="recipe") from e
    except ValueError as e:
        raise ConfigError(f"The recipe {path} is no TOML: {e}.", field="recipe") from e
    for table, key in (("data", "file"), ("network", "weights")):
        entry = values.get(table)
        if isinstance(entry, dict) and isinstance(entry.get(key), str):
            entry[key] = str(path.parent / entry[key])
    for key in ("store", "work"):
        if isinstance(values.get(key), str):
            values[key] = str(path.parent / values[key])
    return values


def with_settings(values: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """The values of a recipe, changed by settings `STAGE.OPTION=VALUE`, each a line of TOML; a text needs quotes
    only where it looks like something else, such as a number.

    Raises:
        ConfigError: a setting has no such form.
    """
    changed: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for setting in settings:
        found = _SETTING.fullmatch(setting)
        if not found:
            raise ConfigError(
                f"--set {setting[:80]} sets no option.",
                field="--set",
                expected="STAGE.OPTION=VALUE, such as map.served=5",
                got=setting[:80],
            )
        *tables, option = found[1].split(".")
        place = changed
        for table in tables:
            inner = place.get(table)
            place[table] = dict(inner) if isinstance(inner, dict) else {}
            place = place[table]
        place[option] = _value(found[2].strip())
    return changed


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def template() -> str:
    """Every option with what it means and its default, as a recipe in which those that have one are comments."""
    return "\n".join(_table(BuildConfig, ())) + "\n"


def _table(config: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    if path:
        yield f"# {(config.__doc__ or '').strip()}"
        yield f"[{'.'.join(path)}]"
    tables: dict[str, type[BaseModel]] = {}
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            tables[name] = field.annotation
            continue
        choices = _choices(field)
        said = (field.description or "") + (f" ({choices})" if choices else "")
        yield from textwrap.wrap(said, _WIDTH, initial_indent="# ", subsequent_indent="# ")
        if field.is_required():
            yield f'{name} = ""'
        else:
            default = field.get_default(call_default_factory=True)
            yield f"# {name} =" if default is None else f"# {name} = {_toml(default)}"
        yield ""
    for name, inner in tables.items():
        yield from _table(inner, (*path, name))


def _choices(field: FieldInfo) -> str:
    """The words that an option may be, where it is one of some that its description does not tell."""
    if get_origin(field.annotation) is not Literal:
        return ""
    words = get_args(field.annotation)
    return "" if all(word in (field.description or "") for word in words) else ", ".join(words)


def _toml(value: Any) -> str:
    """Defaults are numbers, texts, paths, and lists and tables of them without an entry or with numbers."""
    return json.dumps(str(value) if isinstance(value, Path) else value)
