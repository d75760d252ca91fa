"""Stores that others change with their own tools: what is gone, and what took its place."""

import os
import shutil
from pathlib import Path

import pytest

from model_store import CHAMPION, IntegrityError, ModelStore, StoreError, UnknownModelError
from tests import bundles


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """A store with three versions of one model."""
    for seed in range(3):
        bundles.numeric_regression(seed=seed).publish(tmp_path)
    return ModelStore(tmp_path)


def test_a_name_whose_champion_is_gone_means_nothing(store: ModelStore) -> None:
    store.set_alias("sine", CHAMPION, 2)
    shutil.rmtree(store.root / "sine" / "2")
    with pytest.raises(UnknownModelError) as raised:
        store.resolve("sine")
    assert raised.value.as_dict() == {
        "code": "unknown_model",
        "message": "Model 'sine' means its champion, version 2, which is gone; run `fiberwalk models alias "
        "sine@VERSION champion` with a version that there is, or with --remove.",
        "field": "model",
        "expected": "sine@ one of: 1, 3",
        "got": "sine",
    }
    assert store.resolve("sine@3") == ("sine", 3)
    store.remove_alias("sine", CHAMPION)
    assert store.resolve("sine") == ("sine", 3)


def test_an_alias_whose_version_is_gone_is_told_from_an_unknown_one(store: ModelStore) -> None:
    store.set_alias("sine", "stable", 2)
    shutil.rmtree(store.root / "sine" / "2")
    with pytest.raises(UnknownModelError, match=r"^sine@stable means version 2, which is gone;"):
        store.resolve("sine@stable")
    with pytest.raises(UnknownModelError, match=r"has no version or alias '2'\."):
        store.resolve("sine@2")


def test_a_stamp_is_that_of_one_bundle(store: ModelStore) -> None:
    path = store.root / "sine" / "1"
    stamp = store.stamp("sine", 1)
    assert store.stamp("sine", 1) == stamp != store.stamp("sine", 2)
    times = (path / "manifest.json").stat()
    shutil.rmtree(store.root / "sine")
    bundles.numeric_regression(seed=9).publish(store)
    os.utime(path / "manifest.json", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.stamp("sine", 1) != stamp


def test_what_is_gone_has_no_stamp(store: ModelStore) -> None:
    shutil.rmtree(store.root / "sine")
    with pytest.raises(UnknownModelError, match="no sine@1 any more"):
        store.stamp("sine", 1)
    (store.root / "sine").touch()
    with pytest.raises(UnknownModelError):
        store.stamp("sine", 1)


def test_what_cannot_be_read_is_not_gone(store: ModelStore) -> None:
    folder = store.root / "sine" / "1"
    shutil.rmtree(folder)
    folder.symlink_to(folder)
    with pytest.raises(StoreError, match="sine@1 in the store cannot be read") as raised:
        store.stamp("sine", 1)
    assert not isinstance(raised.value, UnknownModelError)


@pytest.mark.parametrize("name", [".", "sine"])
def test_a_folder_that_goes_while_it_is_read_holds_nothing(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder, listed = store.root / name, Path.iterdir

    def iterdir(path: Path) -> object:
        if path == folder and folder.exists():
            shutil.rmtree(folder)
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert (store.names(), store.versions("sine")) == ([], [])


def test_a_version_that_cannot_be_read_is_there_and_stops_no_other(store: ModelStore) -> None:
    folder = store.root / "sine" / "3"
    shutil.rmtree(folder)
    folder.symlink_to(folder)
    assert (store.names(), store.versions("sine"), store.unfinished("sine")) == (["sine"], [1, 2, 3], [])
    assert store.resolve("sine") == ("sine", 3)
    assert store.open("sine@2").version == 2
    with pytest.raises(IntegrityError, match="cannot be read"):
        store.open("sine@3")


def test_a_folder_without_a_manifest_is_no_version_yet(store: ModelStore) -> None:
    (store.root / "sine" / "3" / "manifest.json").unlink()
    assert (store.versions("sine"), store.unfinished("sine")) == ([1, 2], [3])


def test_a_store_that_cannot_be_read_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(tmp_path / "store")
    for ask in (ModelStore.names, ModelStore.folders, lambda store: store.resolve("sine")):
        with pytest.raises(StoreError, match="cannot be read") as raised:
            ask(ModelStore(tmp_path / "store"))
        assert not isinstance(raised.value, UnknownModelError)


def test_a_version_needs_no_aliases(store: ModelStore) -> None:
    (store.root / "sine" / "aliases.json").write_text("no json")
    assert store.resolve("sine@2") == ("sine", 2)
    for reference in ("sine", "sine@champion"):
        with pytest.raises(StoreError, match="is damaged; set the aliases again"):
            store.resolve(reference)


def test_a_bundle_whose_folder_cannot_be_read_any_more(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = store.open("sine@1")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    monkeypatch.setattr(Path, "lstat", denied)
    with pytest.raises(IntegrityError, match=r"cannot be read \(Permission denied\)"):
        bundle.read("card.md")
