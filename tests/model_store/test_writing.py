"""What a store bears from those who write to it: full disks, other users, processes that die; and copies of others."""

import errno
import json
import os
import time
from pathlib import Path

import pytest

from model_store import CHAMPION, IntegrityError, ModelStore, StoreError
from model_store import writing as writing_module
from tests import bundles


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """A store with two versions of one model."""
    store = ModelStore(tmp_path / "store")
    for seed in range(2):
        bundles.numeric_regression(seed=seed).publish(store)
    return store


@pytest.fixture
def other(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "other")


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_version_is_deleted_where_there_is_no_room_for_a_new_folder(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "mkdir", full)
    store.delete("sine@1")
    assert store.versions("sine") == [2]
    assert list((store.root / ".staging").iterdir()) == []


def test_an_alias_that_finds_no_room_leaves_the_others_and_nothing_else(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.set_alias("sine", "stable", 1)
    before = {p.name for p in (store.root / "sine").iterdir()}
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"No space left on device.*make room, such as with `fiberwalk models delete`"):
        store.set_alias("sine", "stable", 2)
    assert {p.name for p in (store.root / "sine").iterdir()} == before
    assert store.aliases("sine") == {"stable": 1}


def test_what_was_left_behind_by_the_dead_goes_after_a_day(store: ModelStore) -> None:
    old, new = store.root / ".staging" / "old", store.root / ".staging" / "new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "decoder.onnx").write_text("half")
    day = time.time() - writing_module._FORGOTTEN_SECONDS - 60
    os.utime(old, (day, day))
    bundles.numeric_regression().publish(store)
    assert [p.name for p in (store.root / ".staging").iterdir()] == ["new"]


def test_who_may_write_to_a_model_may_delete_what_others_published(store: ModelStore) -> None:
    (store.root / "sine").chmod(0o2775)
    bundle = bundles.numeric_regression().publish(store)
    assert bundle.path.stat().st_mode & 0o777 == 0o775
    (store.root / "sine").chmod(0o755)
    assert bundles.numeric_regression().publish(store).path.stat().st_mode & 0o777 == 0o755


def test_a_store_that_cannot_be_written_is_told_before_a_build(
    store: ModelStore, other: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fine in (store, other):
        fine.refuse_unwritable("sine")
        fine.refuse_unwritable("new")
    assert not other.root.exists()
    with pytest.raises(StoreError, match=r"file is no folder\); choose a folder"):
        (store.root.parent / "file").touch()
        ModelStore(store.root.parent / "file" / "store").refuse_unwritable("sine")
    for locked in ("sine", ".staging", "sine/.lock"):
        refused = store.root / locked
        monkeypatch.setattr(os, "access", lambda path, _, refused=refused: path != refused)
        with pytest.raises(StoreError, match=f"no right to write to {refused}"):
            store.refuse_unwritable("sine")


# ---- copies


def test_a_copy_is_the_same_under_its_own_number(store: ModelStore, other: ModelStore) -> None:
    bundle = store.open("sine@2")
    copy = other.adopt(bundle)
    assert (copy.path, copy.digest) == (other.root / "sine" / "2", bundle.digest)
    assert {p.name: p.read_bytes() for p in copy.path.iterdir()} == {
        p.name: p.read_bytes() for p in bundle.path.iterdir()
    }
    assert other.adopt(bundle).path == copy.path  # once more does nothing
    assert bundles.numeric_regression(seed=9).publish(other).version == 3
    assert other.adopt(store.open("sine@1")).version == 1
    assert other.versions("sine") == [1, 2, 3]
    assert list((other.root / ".staging").iterdir()) == []


def test_a_number_that_is_or_was_anothers_is_given_only_anew(store: ModelStore, other: ModelStore) -> None:
    for seed in (7, 8):
        bundles.numeric_regression(seed=seed).publish(other)
    other.set_alias("sine", CHAMPION, 2)
    other.delete("sine@1")
    for reference in ("sine@1", "sine@2"):
        with pytest.raises(StoreError, match=f"^{reference} is or was something else .*--renumber, as sine@3"):
            other.adopt(store.open(reference))
    copy = other.adopt(store.open("sine@1"), renumber=True)
    copy.verify()
    assert copy.version == 3
    assert other.adopt(store.open("sine@1"), renumber=True).version == 3  # it is there already
    assert copy.manifest.model_copy(update={"version": 1}) == store.open("sine@1").manifest
    assert (other.versions("sine"), other.aliases("sine")) == ([2, 3], {CHAMPION: 2})


def test_what_does_not_verify_is_not_copied(store: ModelStore, other: ModelStore) -> None:
    bundle = store.open("sine@1")
    file = bundle.path / "base.onnx"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(IntegrityError, match=r"base\.onnx has another size"):
        other.adopt(bundle)
    assert not other.root.exists()
    file.write_bytes(content)
    manifest = bundle.path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text())))
    with pytest.raises(IntegrityError, match="changed while it was read"):
        other.adopt(bundle)
    assert other.names() == []


def test_a_damaged_copy_is_not_taken_for_the_same(store: ModelStore, other: ModelStore) -> None:
    copy = other.adopt(store.open("sine@1"))
    (copy.path / "base.onnx").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"base\.onnx has another size"):
        other.adopt(store.open("sine@1"))
