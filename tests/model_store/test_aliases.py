"""Aliases: they move, are never seen half written, and what is no file of theirs holds nobody up."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from model_store import InvalidNameError, ModelStore, StoreError, UnknownModelError
from tests import bundles

PARTS = bundles.numeric_regression("sine")
T = TypeVar("T")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def soon(call: Callable[[], T]) -> T:
    """What a call gives that must not wait for what never comes."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(20)
    assert found, "it waits, or failed"
    return found[0]


def test_an_alias_moves_and_goes(store: ModelStore) -> None:
    PARTS.publish(store)
    PARTS.publish(store)
    store.set_alias("sine", "champion", 1)
    store.set_alias("sine", "stable", 1)
    store.set_alias("sine", "champion", 2)
    assert store.aliases("sine") == {"champion": 2, "stable": 1}
    store.remove_alias("sine", "champion")
    assert store.aliases("sine") == {"stable": 1}
    with pytest.raises(UnknownModelError, match="has no alias 'champion'"):
        store.remove_alias("sine", "champion")


@pytest.mark.parametrize("alias", ["", "1", "1a", "-a", "a b", "a/b", "a.b", "a" * 65, "a\n", "ä"])
def test_an_alias_cannot_be_taken_for_a_version(store: ModelStore, alias: str) -> None:
    PARTS.publish(store)
    with pytest.raises(InvalidNameError, match="cannot be an alias; use a letter"):
        store.set_alias("sine", alias, 1)


def test_an_alias_means_a_version_there_is(store: ModelStore) -> None:
    PARTS.publish(store)
    for version in (0, 2, -1):
        with pytest.raises(UnknownModelError):
            store.set_alias("sine", "champion", version)
    with pytest.raises(UnknownModelError):
        store.set_alias("cosine", "champion", 1)
    assert not (store.root / "sine" / "aliases.json").exists()
    assert not (store.root / "cosine").exists()


def test_aliases_are_never_seen_half_written_nor_lost(store: ModelStore) -> None:
    PARTS.publish(store)
    done = threading.Event()
    seen: list[dict[str, int]] = []

    def watch() -> None:
        while not done.is_set():
            seen.append(store.aliases("sine"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    names = [f"alias-{i}" for i in range(24)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: store.set_alias("sine", n, 1), names))
    done.set()
    watcher.join()
    assert store.aliases("sine") == dict.fromkeys(names, 1)
    assert [len(s) for s in seen] == sorted(len(s) for s in seen)


@pytest.mark.parametrize("raw", ["", "{", "[1]", '{"champion": "x"}', '{"champion": null}', "3", '{"\\ud800": 1}'])
def test_damaged_aliases_are_named(store: ModelStore, raw: str) -> None:
    PARTS.publish(store)
    (store.root / "sine" / "aliases.json").write_text(raw)
    with pytest.raises(StoreError, match=r"sine/aliases\.json is damaged; set the aliases again"):
        store.resolve("sine")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (os.mkfifo, "is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a link, which is refused"),
        (lambda path: path.write_bytes(b" " * (2**20 + 1)), "has 1048577 bytes, more than any aliases take"),
    ],
    ids=["pipe", "link", "huge"],
)
def test_what_is_no_file_of_aliases_is_neither_waited_for_nor_read(
    store: ModelStore, make: Callable[[Path], object], told: str
) -> None:
    PARTS.publish(store)
    make(store.root / "sine" / "aliases.json")
    damage = soon(lambda: store.shelf("sine").damage)
    assert damage is not None
    assert damage.message == f"sine/aliases.json {told}; set the aliases again after removing it."
    assert store.shelf("sine").stamps.keys() == {1}


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_lock_in_whose_place_is_something_else_harms_nothing(store: ModelStore, tmp_path: Path, kind: str) -> None:
    PARTS.publish(store)
    lock, other = store.root / "sine" / ".lock", tmp_path / "other"
    lock.unlink()
    other.write_text("kept")
    if kind == "link":
        lock.symlink_to(other)
        with pytest.raises(StoreError, match="cannot be written"):
            store.set_alias("sine", "stable", 1)
    else:
        os.mkfifo(lock)
        soon(lambda: store.set_alias("sine", "stable", 1))
    assert other.read_text() == "kept"
