"""What those who ask have to know where one version of a model takes another's place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from model_store.manifest import CategoricalColumn, ClassificationTarget, Manifest, TableInput, TensorInput

_MOST: Final = 5
"""Names in a list."""


def changes(before: Manifest, after: Manifest) -> list[str]:
    """Why requests that were made for one version may be refused, or mean something else, where another answers them.

    Returns:
        A sentence for each; none where the same requests do and their answers read alike.
    """
    return [*_of_targets(before, after), *_of_inputs(before, after)]


def _of_targets(before: Manifest, after: Manifest) -> Iterable[str]:
    old, new = before.target, after.target
    if old.task != new.task:
        yield f"It is a {new.task} and no {old.task}."
        return
    if old.name != new.name:
        yield f"It predicts {new.name!r} and not {old.name!r}."
    if isinstance(old, ClassificationTarget) or isinstance(new, ClassificationTarget):
        known, listed = getattr(old, "classes", []), getattr(new, "classes", [])
        yield from _told("It has new classes", [c for c in listed if c not in known])
        yield from _told("It has no longer the classes", [c for c in known if c not in listed])
    elif old.unit and new.unit and old.unit != new.unit:
        yield f"The target is in {new.unit} and not in {old.unit}."


def _of_inputs(before: Manifest, after: Manifest) -> Iterable[str]:
    old, new = before.inputs, after.inputs
    if isinstance(old, TensorInput) or isinstance(new, TensorInput):
        shapes = [i.shape if isinstance(i, TensorInput) else "a table" for i in (old, new)]
        if shapes[0] != shapes[1]:
            yield f"It takes {shapes[1]} and not {shapes[0]}."
        return
    yield from _of_columns(old, new)


def _of_columns(before: TableInput, after: TableInput) -> Iterable[str]:
    old, new = ({c.name: c for c in table.columns} for table in (before, after))
    yield from _told("It has new columns", [n for n in new if n not in old])
    yield from _told("It has no longer the columns", [n for n in old if n not in new])
    both = [n for n in old if n in new]
    if both != [n for n in new if n in old]:
        yield "Its columns come in another order: rows that are sent as arrays mean something else."
    for name in both:
        was, now = old[name], new[name]
        if was.kind != now.kind:
            yield f"The column {name!r} is {now.kind} and not {was.kind}."
        elif isinstance(was, CategoricalColumn) and isinstance(now, CategoricalColumn):
            gone = [c for c in was.categories if c not in now.categories]
            yield from _told(f"The column {name!r} no longer knows", gone)
        if was.unit and now.unit and was.unit != now.unit:
            yield f"The column {name!r} is in {now.unit} and not in {was.unit}."


def _told(what: str, names: list[str] | list[int | str]) -> Iterable[str]:
    if names:
        shown = ", ".join(repr(n) for n in names[:_MOST])
        yield f"{what}: {shown}" + (f" and {len(names) - _MOST} more." if len(names) > _MOST else ".")
