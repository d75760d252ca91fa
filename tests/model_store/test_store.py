"""The store: atomic publishing, immutable versions, aliases, and errors that say what there is."""

import fcntl
import multiprocessing
import os
import shutil
import signal
import stat
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store import (
    CHAMPION,
    FiberwalkError,
    IntegrityError,
    InvalidNameError,
    ModelStore,
    StoreError,
    UnknownModelError,
)
from model_store import store as store_module
from tests import bundles

PARTS = bundles.numeric_regression("sine")
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def contents(root: Path) -> set[str]:
    """Every path of the store, but for the lock files."""
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.name != ".lock"}


# ---- publishing


def test_a_store_that_does_not_exist_is_empty_and_stays_untouched(store: ModelStore) -> None:
    assert (store.names(), store.versions("sine"), store.aliases("sine")) == ([], [], {})
    with pytest.raises(UnknownModelError, match="There is no model 'sine'") as raised:
        store.open("sine")
    assert raised.value.expected == "one of: none yet"
    assert not store.root.exists()


def test_versions_count_up_and_stay_as_they_were(store: ModelStore) -> None:
    first = PARTS.publish(store)
    before = {p.name: p.read_bytes() for p in first.path.iterdir()}
    second = bundles.numeric_regression("sine", seed=1).publish(store)
    bundles.classification().publish(store)
    assert (first.version, second.version) == (1, 2)
    assert store.names() == ["flowers", "sine"]
    assert store.versions("sine") == [1, 2]
    assert {p.name: p.read_bytes() for p in first.path.iterdir()} == before
    assert store.open("sine@1").digest == first.digest


def test_a_published_bundle_can_be_read_by_any_user(store: ModelStore) -> None:
    old = os.umask(0o022)
    try:
        bundle = PARTS.publish(store)
        store.set_alias("sine", "champion", 1)
    finally:
        os.umask(old)
    for path in [bundle.path, *bundle.path.iterdir(), bundle.path.parent / "aliases.json"]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444, path
    assert stat.S_IMODE(bundle.path.stat().st_mode) == 0o755


def test_publishing_leaves_nothing_behind_but_the_bundle(store: ModelStore) -> None:
    PARTS.publish(store)
    files = {f"sine/1/{f}" for f in [*PARTS.files, "manifest.json"]}
    assert contents(store.root) == {".staging", "sine", "sine/1", *files}


def test_what_does_not_verify_is_not_published(store: ModelStore) -> None:
    PARTS.publish(store)
    before = contents(store.root)
    broken = bundles.Parts(PARTS.manifest, PARTS.files | {"decoder.onnx": b"\x3a\x05abc"})
    with pytest.raises(IntegrityError, match=r"decoder\.onnx"):
        broken.publish(store)
    incomplete = bundles.Parts(PARTS.manifest, {k: v for k, v in PARTS.files.items() if k != "base.onnx"})
    with pytest.raises(IntegrityError, match=r"lists no file 'base\.onnx'"):
        incomplete.publish(store)
    assert contents(store.root) == before


@pytest.mark.parametrize("file", ["../escaped", "/tmp/escaped", "a/b", ".hidden", "", "manifest.json"])
def test_file_names_are_checked_before_anything_is_written(store: ModelStore, file: str) -> None:
    with pytest.raises(InvalidNameError, match="cannot be a bundle's file"):
        bundles.Parts(PARTS.manifest, PARTS.files | {file: b"x"}).publish(store)
    assert not store.root.exists()


@pytest.mark.parametrize("name", ["", "..", ".staging", "-x", "a/b", "a b", "ä", "a" * 65, "a\n", "a@1", "con\0"])
def test_names_that_may_not_become_a_folder(store: ModelStore, name: str) -> None:
    manifest = PARTS.manifest.model_copy(update={"name": name})
    with pytest.raises(InvalidNameError, match="cannot be a model's name; use letters"):
        store.publish(manifest, PARTS.files)
    assert not store.root.exists()


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written .*; choose a folder"):
        PARTS.publish(tmp_path / "file" / "store")


# ---- publishing and reading at the same time


def read_until_stopped(root: str, started: str, stop: str) -> list[int]:
    """Opens the newest version over and over and verifies every byte; returns the versions seen."""
    store, seen = ModelStore(root), []
    Path(started).touch()
    while not Path(stop).exists():
        for name in store.names():
            bundle = store.open(name)
            bundle.verify()
            seen.append(bundle.version)
    return seen


def test_a_reader_in_another_process_sees_all_or_nothing(store: ModelStore, tmp_path: Path) -> None:
    started, stop = [tmp_path / "started-0", tmp_path / "started-1"], tmp_path / "stop"
    with ProcessPoolExecutor(2, mp_context=SPAWN) as pool:
        readers = [pool.submit(read_until_stopped, str(store.root), str(s), str(stop)) for s in started]
        try:
            while not all(s.exists() for s in started) and not any(r.done() for r in readers):
                time.sleep(0.01)
            for _ in range(40):
                PARTS.publish(store)
        finally:
            stop.touch()
        seen = [r.result(timeout=60) for r in readers]
    for versions in seen:
        assert versions == sorted(versions)
        assert len(set(versions)) > 3  # it did read while versions came in


def publish_some(root: str, count: int) -> list[int]:
    return [PARTS.publish(Path(root)).version for _ in range(count)]


def test_publishers_in_several_processes_get_distinct_versions(store: ModelStore) -> None:
    with ProcessPoolExecutor(3, mp_context=SPAWN) as pool:
        versions = [v for got in pool.map(publish_some, [str(store.root)] * 3, [5] * 3) for v in got]
    assert sorted(versions) == store.versions("sine") == list(range(1, 16))


def test_publishers_in_several_threads_get_distinct_versions(store: ModelStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: PARTS.publish(store).version, range(24)))
    assert sorted(versions) == list(range(1, 25))


def publish_and_die(root: str, at: int) -> None:
    """Kills its own process at the `at`-th write of publishing (files, manifest), or before the last rename."""
    writes, write = iter(range(100)), store_module.write

    def dying(path: Path, data: bytes) -> None:
        if next(writes) == at:
            write(path, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, data)

    store_module.write = dying
    if at == len(PARTS.files) + 1:
        Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,method-assign]
    PARTS.publish(Path(root))


@pytest.mark.parametrize("at", [0, len(PARTS.files) - 1, len(PARTS.files), len(PARTS.files) + 1])
def test_a_publisher_that_dies_leaves_nothing_visible(store: ModelStore, at: int) -> None:
    publisher = SPAWN.Process(target=publish_and_die, args=(str(store.root), at))
    publisher.start()
    publisher.join(60)
    assert publisher.exitcode == -signal.SIGKILL
    assert store.names() == []
    with pytest.raises(UnknownModelError):
        store.open("sine")
    assert PARTS.publish(store).version == 1  # and holds no lock that would stop the next


# ---- resolving


def test_a_reference_names_the_newest_the_champion_a_version_or_an_alias(store: ModelStore) -> None:
    for _ in range(11):
        PARTS.publish(store)
    assert store.resolve("sine") == ("sine", 11)  # as a number: "11" sorts before "2"
    store.set_alias("sine", "stable", 2)
    assert store.resolve("sine") == ("sine", 11)
    store.set_alias("sine", CHAMPION, 3)
    assert store.resolve("sine") == ("sine", 3)
    assert store.resolve("sine@stable") == ("sine", 2)
    assert store.resolve("sine@10") == ("sine", 10)
    assert store.open("sine@stable").version == 2


@pytest.mark.parametrize("wanted", ["9", "0", "-1", "1.0", "nope", "", "1@2", " 1", "9" * 5000, "²", "\0"])
def test_an_unknown_version_or_alias_is_answered_with_those_there_are(store: ModelStore, wanted: str) -> None:
    PARTS.publish(store)
    PARTS.publish(store)
    store.set_alias("sine", "stable", 1)
    with pytest.raises(UnknownModelError, match="has no version or alias") as raised:
        store.resolve(f"sine@{wanted}")
    assert raised.value.expected == "sine@ one of: 1, 2, stable"
    assert raised.value.got == f"sine@{wanted}"[:80]
    assert len(raised.value.message) < 300


def test_an_unknown_model_is_answered_with_those_there_are(store: ModelStore) -> None:
    PARTS.publish(store)
    with pytest.raises(UnknownModelError) as raised:
        store.resolve("cosine@1")
    assert raised.value.as_dict() == {
        "code": "unknown_model",
        "message": "There is no model 'cosine'.",
        "field": "model",
        "expected": "one of: sine",
        "got": "cosine@1",
    }


@given(st.text(max_size=30))
def test_any_text_resolves_or_raises_a_fiberwalk_error(reference: str) -> None:
    with pytest.raises(FiberwalkError):
        ModelStore("nowhere").resolve(reference)


def test_folders_that_are_no_bundles_are_not_listed(store: ModelStore) -> None:
    PARTS.publish(store)
    for folder in ("sine/2", "sine/02", "sine/x", "empty/1", ".hidden/1"):
        (store.root / folder).mkdir(parents=True)
    (store.root / "sine/02/manifest.json").touch()
    (store.root / "file").touch()
    assert store.names() == ["sine"]
    assert store.versions("sine") == [1]


# ---- deleting


def test_a_deleted_versions_number_is_never_given_again(store: ModelStore) -> None:
    for _ in range(3):
        PARTS.publish(store)
    assert store.delete("sine@3") == ("sine", 3)
    assert store.versions("sine") == [1, 2]
    assert PARTS.publish(store).version == 4
    for version in (1, 2, 4):
        store.delete(f"sine@{version}")
    assert store.names() == []
    assert PARTS.publish(store).version == 5


def test_a_damaged_versions_number_is_never_given_again(store: ModelStore) -> None:
    PARTS.publish(store)
    (PARTS.publish(store).path / "manifest.json").unlink()
    assert store.versions("sine") == [1]
    assert PARTS.publish(store).version == 3


def test_deleting_needs_a_version_that_no_alias_means(store: ModelStore) -> None:
    PARTS.publish(store)
    PARTS.publish(store)
    store.set_alias("sine", "stable", 1)
    with pytest.raises(StoreError, match="Say which version") as raised:
        store.delete("sine")
    assert raised.value.expected == "NAME@VERSION"
    for reference in ("sine@1", "sine@stable"):
        with pytest.raises(StoreError, match="is what stable means; move the alias"):
            store.delete(reference)
    with pytest.raises(UnknownModelError):
        store.delete("sine@7")
    assert store.versions("sine") == [1, 2]
    store.remove_alias("sine", "stable")
    store.delete("sine@1")
    assert store.versions("sine") == [2]


def test_one_of_several_deleters_wins_and_the_others_are_told(store: ModelStore) -> None:
    PARTS.publish(store)

    def delete(_: int) -> str:
        try:
            store.delete("sine@1")
        except UnknownModelError:
            return "unknown"
        return "deleted"

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(delete, range(6))) == ["deleted", *["unknown"] * 5]
    assert contents(store.root) == {".staging", "sine", "sine/.retired-1"}


@pytest.mark.parametrize("action", ["delete", "alias"])
def test_a_version_that_goes_while_the_lock_is_awaited_is_unknown(store: ModelStore, action: str) -> None:
    bundle = PARTS.publish(store)
    act = {"delete": lambda: store.delete("sine@1"), "alias": lambda: store.set_alias("sine", "a", 1)}[action]
    with ThreadPoolExecutor(1) as pool:
        with (store.root / "sine" / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            waiting = pool.submit(act)
            time.sleep(0.3)  # long enough to reach the lock
            assert not waiting.done()
            shutil.rmtree(bundle.path)
        with pytest.raises(UnknownModelError):
            waiting.result(timeout=30)
    assert store.aliases("sine") == {}


def test_a_bundle_that_was_open_when_deleted_reports_it(store: ModelStore) -> None:
    bundle = PARTS.publish(store)
    store.delete("sine@1")
    with pytest.raises(IntegrityError, match="cannot be read"):
        bundle.read("card.md")
