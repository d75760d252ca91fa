"""Stores that cannot be read, wholly or in part: what is loaded goes on, and the trouble is told as what it is."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_store.bundle import MANIFEST_FILE
from model_store.errors import StoreError, UnknownModelError
from model_store.shelf import CHAMPION
from model_store.store import ModelStore
from service import models as models_module
from tests import bundles
from tests.servers import Server, counter, serving, wait_until
from tests.service import test_replaced
from tests.service.test_models import BODY, models_of, version
from tests.service.test_replaced import Served

# A store of one version of `sine`, and a server of it.
store, running = test_replaced.store, test_replaced.running


def refused(client: httpx.Client, model: str) -> tuple[int, str]:
    response = client.post("/predict", json=BODY | {"model": model})
    return response.status_code, response.json()["error"]["code"]


def problems(client: httpx.Client) -> dict[str | None, str]:
    """What /readyz tells, by model."""
    return {p["model"]: p["message"] for p in client.get("/readyz").json()["problems"]}


def loop(path: Path) -> None:
    """What no user can read, root neither."""
    path.symlink_to(path)


def half_copied(store: ModelStore, tmp_path: Path) -> Path:
    """A copy of another model as `sine@2` that has come as far as the manifest; returns what is copied."""
    other = ModelStore(tmp_path / "other")
    for seed in (0, 7):
        bundle = bundles.numeric_regression(seed=seed).publish(other)
    (store.root / "sine" / "2").mkdir()
    shutil.copy(bundle.path / MANIFEST_FILE, store.root / "sine" / "2")
    return bundle.path


# ---- the whole store


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (lambda root: None, "There is no model store"),
        (Path.mkdir, "The store held models and is empty"),
        (loop, "The store's folder cannot be read"),
    ],
    ids=["gone", "empty", "unreadable"],
)
def test_what_is_loaded_outlives_its_store(
    store: ModelStore, running: tuple[Server, httpx.Client], trouble: Callable[[Path], object], told: str
) -> None:
    server, client = running
    bundles.numeric_regression("second").publish(store)
    wait_until(lambda: client.get("/readyz").json()["models"] == ["second@1", "sine@1"])
    away = store.root.rename(store.root.parent / "away")
    trouble(store.root)
    assert refused(client, "sine@2") == refused(client, "nothing") == (503, "store_error")
    wait_until(lambda: client.get("/readyz").status_code == 503)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        assert [version(client, model) for model in ("sine", "sine@1", "second")] == [1, 1, 1]
        time.sleep(0.02)
    assert client.get("/readyz").json()["models"] == ["second@1", "sine@1"]
    assert list(problems(client)) == [None]
    assert told in problems(client)[None]
    assert str(store.root) not in client.get("/readyz").text
    assert refused(client, "sine@2") == refused(client, "nothing") == (503, "store_error")
    assert client.post("/predict", json=BODY).status_code == 422
    for path in ("/models", "/", "/models/sine", "/models/sine/report"):
        listed = client.get(path)
        assert (listed.status_code, listed.json()["error"]["code"]) == (503, "store_error")
    assert client.get("/metrics").status_code == 200
    assert server.counter("fiberwalk_models_loaded") == 2

    if not store.root.exists():
        store.root.unlink(missing_ok=True)
    else:
        store.root.rmdir()
    away.rename(store.root)
    wait_until(lambda: client.get("/readyz").status_code == 200)
    assert problems(client) == {}
    assert refused(client, "nothing") == (404, "unknown_model")
    assert "model_unloaded" not in server.log
    assert server.log.count("store_not_readable") == 1


# Reads wait while there is a file of that name, as they do of a file system whose server is away.
_HANGING = """
import os, time
from model_store import store
from service import models
models._STALE_SECONDS = 8.0
read = store.read_regular
def waiting(*asked):
    while os.path.exists({mark!r}):
        time.sleep(0.05)
    return read(*asked)
store.read_regular = waiting
"""


def test_a_store_that_hangs(store: ModelStore, tmp_path: Path) -> None:
    mark = tmp_path / "hangs"
    with serving(store.root, before=_HANGING.format(mark=str(mark))) as server, server.client() as client:
        mark.touch()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert version(client) == version(client, "sine@1") == 1
            assert client.get("/models").status_code == client.get("/metrics").status_code == 200
            time.sleep(0.02)
        wait_until(lambda: client.get("/readyz").status_code == 503, seconds=40, what="the store to be missed")
        assert "has not answered for" in problems(client)[None]
        assert client.get("/readyz").json()["models"] == ["sine@1"]
        assert version(client) == version(client, "sine@1") == version(client, "sine") == 1
        assert refused(client, "sine@champion") == (503, "store_error")
        assert client.get("/models").status_code == 503
        assert client.get("/metrics").status_code == 200

        mark.unlink()
        wait_until(lambda: client.get("/readyz").status_code == 200, what="the store to be followed again")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "endless"])
def test_what_is_no_file_of_aliases_holds_up_nothing(
    store: ModelStore, running: tuple[Server, httpx.Client], make: Callable[[Path], object]
) -> None:
    _, client = running
    make(store.root / "sine" / "aliases.json")
    wait_until(lambda: "set the aliases again after removing it" in problems(client).get("sine", ""))
    bundles.numeric_regression("second").publish(store)
    wait_until(lambda: client.get("/readyz").json()["models"] == ["second@1", "sine@1"])
    assert version(client, "sine") == version(client, "second") == 1


def test_a_store_that_hangs_is_asked_nothing(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles.numeric_regression(seed=1).publish(store)
    store.set_alias("sine", CHAMPION, 1)
    models = models_of(store)
    monkeypatch.setattr(models_module, "_STALE_SECONDS", -1.0)
    monkeypatch.setattr(Path, "iterdir", lambda _: pytest.fail("the disk was asked"))
    monkeypatch.setattr(Path, "stat", lambda *_, **__: pytest.fail("the disk was asked"))
    assert models.state == "failed"
    assert [models.get(r).reference for r in (None, "sine", "sine@1")] == ["sine@1"] * 3
    assert [model.reference for model in models.current()] == ["sine@1"]
    for unknown in ("sine@2", "nothing"):
        with pytest.raises(StoreError, match="has not answered") as raised:
            models.get(unknown)
        assert not isinstance(raised.value, UnknownModelError)


def test_of_a_store_that_has_just_gone_old_versions_are_not_unknown(store: ModelStore) -> None:
    bundles.numeric_regression(seed=1).publish(store)
    models = models_of(store)
    assert models.bundle("sine@1").version == 1
    store.root.rename(store.root.parent / "away")
    with pytest.raises(StoreError, match="There is no model store") as raised:
        models.bundle("sine@1")
    assert not isinstance(raised.value, UnknownModelError)


def test_a_store_without_models_yet_is_in_no_trouble(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    models = models_of(store)
    models.load_all()
    assert (models.state, models.problems()) == ("ready", [])
    with pytest.raises(UnknownModelError):
        models.get("sine")


# ---- one model


def test_a_model_whose_folder_cannot_be_read_stays_what_it_was(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles.numeric_regression(seed=1).publish(store)
    store.set_alias("sine", CHAMPION, 1)
    bundles.classification().publish(store)
    models, listed = models_of(store), Path.iterdir

    def iterdir(path: Path) -> Any:
        if path.name == "sine":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    for _ in range(2):
        models.load_all()
        assert [models.get(r).reference for r in ("sine", "sine@1", "flowers")] == ["sine@1", "sine@1", "flowers@1"]
        (problem,) = models.problems()
        assert (models.state, problem["model"], problem["code"]) == ("ready", "sine", "store_error")
    with pytest.raises(StoreError, match="Permission denied"):
        models.get("sine@nothing")


def test_aliases_that_break_stay_what_they_were(store: ModelStore) -> None:
    bundles.numeric_regression(seed=1).publish(store)
    store.set_alias("sine", CHAMPION, 1)
    models = models_of(store)
    (store.root / "sine" / "aliases.json").write_text("no json")
    for _ in range(2):
        models.load_all()
        assert [models.get(r).reference for r in ("sine", "sine@champion", "sine@2")] == ["sine@1", "sine@1", "sine@2"]
        assert [p["model"] for p in models.problems()] == ["sine"]
    # A server that starts now does not know who was the champion.
    with pytest.raises(StoreError, match="damaged"):
        models_of(store).get("sine")
    assert models_of(store).get("sine@1").reference == "sine@1"


# ---- one version


def test_a_version_that_cannot_be_read_concerns_itself_only(
    store: ModelStore, running: tuple[Server, httpx.Client]
) -> None:
    server, client = running
    loop(store.root / "sine" / "2")
    wait_until(lambda: problems(client) != {})
    assert "sine@2 in the store cannot be read" in problems(client)["sine@2"]
    assert (client.get("/readyz").status_code, client.get("/readyz").json()["models"]) == (200, ["sine@1"])
    assert version(client) == version(client, "sine@1") == 1
    assert refused(client, "sine@2") == (503, "store_error")
    (listed,) = client.get("/models").json()["models"]
    assert (listed["version"], listed["versions"], listed["problem"]) == (1, [1, 2], None)
    assert server.counter("fiberwalk_models_failed") == 1


def test_a_loaded_version_that_cannot_be_read_any_more_goes_on(store: ModelStore) -> None:
    bundles.classification().publish(store)
    models = models_of(store)
    shutil.rmtree(store.root / "sine" / "1")
    loop(store.root / "sine" / "1")
    models.load_all()
    assert models.get("sine@1").reference == models.get("sine").reference == "sine@1"
    assert [(p["model"], p["code"]) for p in models.problems()] == [("sine@1", "store_error")]


def test_a_name_keeps_its_last_good_version_while_another_is_copied(
    store: ModelStore, running: tuple[Server, httpx.Client], tmp_path: Path
) -> None:
    server, client = running
    source = half_copied(store, tmp_path)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        assert version(client) == version(client, "sine") == 1
        time.sleep(0.02)
    assert refused(client, "sine@2") == (503, "damaged_bundle")
    assert "does not verify" in problems(client)["sine@2"]
    assert client.get("/readyz").json()["status"] == "ready"
    assert server.log.count("model_not_served") == 1
    shutil.copytree(source, store.root / "sine" / "2", dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST_FILE))
    wait_until(lambda: version(client) == 2, what="the whole copy")
    wait_until(lambda: problems(client) == {})


def test_a_server_that_starts_beside_a_half_copied_version(store: ModelStore, tmp_path: Path) -> None:
    half_copied(store, tmp_path)
    served = Served(store)
    assert served.models.get("sine").reference == served.models.get(None).reference == "sine@1"
    assert served.models.loaded() == ["sine@1"]
    assert counter(served.metrics.text().decode(), "fiberwalk_models_failed") == 1
    # Who set a champion did not want another.
    store.set_alias("sine", CHAMPION, 2)
    served.models.load_all()
    with pytest.raises(StoreError, match="does not verify"):
        served.models.get("sine")
