"""Models that are removed or replaced behind the server's back: a store that is wiped, rebuilt or restored."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from model_store.bundle import MANIFEST_FILE
from model_store.errors import UnknownModelError
from model_store.manifest import BASE_FILE
from model_store.shelf import CHAMPION
from model_store.store import ModelStore
from service.metrics import ServiceMetrics
from service.models import Models
from service.settings import Settings
from service.weights import PLAN, WeightSource
from tests import bundles
from tests.servers import Server, counter, serving, wait_until
from tests.service.test_models import BODY, damage, version

REQUEST = {"X-Request-ID": "before"}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    bundles.numeric_regression().publish(tmp_path / "store")
    return ModelStore(tmp_path / "store")


@pytest.fixture
def running(store: ModelStore) -> Iterator[tuple[Server, httpx.Client]]:
    with serving(store.root) as server, server.client() as client:
        yield server, client


def replace(store: ModelStore, seed: int = 7) -> str:
    """Publishes another model under the name and version that there were; returns its digest."""
    shutil.rmtree(store.root / "sine")
    bundle = bundles.numeric_regression(seed=seed).publish(store)
    assert bundle.version == 1
    return bundle.digest


class Served:
    """Models without a server, and what they keep decoded."""

    def __init__(self, store: ModelStore) -> None:
        settings, self.metrics = Settings(store=store.root), ServiceMetrics()
        self.weights = WeightSource(settings, self.metrics)
        self.models = Models(settings, self.weights, self.metrics, structlog.get_logger())
        self.models.load_all()

    @property
    def cached(self) -> float:
        return sum(s.value for s in self.metrics.cache_bytes.collect()[0].samples)


def test_what_takes_the_place_of_a_version_is_taken_up(store: ModelStore, running: tuple[Server, httpx.Client]) -> None:
    _, client = running
    before = client.post("/predict", json=BODY, headers=REQUEST).json()
    digest = replace(store)
    wait_until(lambda: client.get("/models/sine").json().get("digest") == digest, what="the other bundle")
    assert client.post("/predict", json=BODY).json()["mean"] != before["mean"]
    assert client.get("/readyz").json() == {"status": "ready", "models": ["sine@1"], "problems": []}
    told = client.post("/feedback", json={"request_id": "before", "targets": [1.0]})
    assert (told.status_code, told.json()["error"]["code"]) == (404, "unknown_request")
    assert client.get("/models/sine/health").json()["rows"] == 0


def test_a_store_whose_models_are_all_removed(store: ModelStore, running: tuple[Server, httpx.Client]) -> None:
    server, client = running
    assert version(client) == 1
    store.delete("sine@1")
    wait_until(lambda: client.get("/readyz").json()["models"] == [], what="the model to be let go")
    assert server.counter("fiberwalk_models_loaded") == server.counter("fiberwalk_cache_bytes") == 0
    refused = client.post("/predict", json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_model")
    bundles.numeric_regression().publish(store)
    wait_until(lambda: client.get("/readyz").json()["models"] == ["sine@2"])
    assert version(client) == 2


def test_a_store_that_is_wiped_and_made_anew(store: ModelStore, running: tuple[Server, httpx.Client]) -> None:
    _, client = running
    shutil.rmtree(store.root)
    wait_until(lambda: client.get("/readyz").status_code == 503)
    assert client.get("/readyz").json()["models"] == ["sine@1"]
    bundles.numeric_regression("other").publish(store)
    wait_until(lambda: client.get("/readyz").status_code == 200)
    assert client.get("/readyz").json()["models"] == ["other@1"]


def test_a_backup_of_the_same_bundle_changes_nothing(store: ModelStore, tmp_path: Path) -> None:
    served = Served(store)
    model = served.models.get("sine")
    shutil.copytree(store.root / "sine", tmp_path / "backup")
    shutil.rmtree(store.root / "sine")
    shutil.copytree(tmp_path / "backup", store.root / "sine")
    served.models.load_all()
    assert served.models.get("sine@1") is model
    assert served.cached > 0


def test_the_model_that_was_replaced_leaves_memory(store: ModelStore) -> None:
    served = Served(store)
    model = weakref.ref(served.models.get("sine"))
    cached = served.cached
    replace(store)
    served.models.load_all()
    gc.collect()
    assert model() is None
    assert served.cached == cached


def test_a_request_in_flight_goes_on_with_its_model(store: ModelStore) -> None:
    served = Served(store)
    model: Any = served.models.get("sine")
    store.delete("sine@1")
    served.models.load_all()
    assert (served.models.loaded(), served.cached) == ([], 0)
    assert served.weights.get(model, PLAN, 8, 0)
    assert served.cached > 0
    served.models.load_all()
    assert served.cached == 0
    assert served.weights.get(model, PLAN, 8, 0)
    del model
    served.models.load_all()
    assert served.cached == 0
    with pytest.raises(UnknownModelError):
        served.models.get("sine")


def test_versions_that_nothing_means_go_when_they_are_removed(store: ModelStore) -> None:
    for seed in (1, 2):
        bundles.numeric_regression(seed=seed).publish(store)
    served = Served(store)
    for reference in ("sine@1", "sine@2"):
        served.models.get(reference)
    store.delete("sine@1")
    shutil.copytree(store.root / "sine" / "2", store.root / "sine" / "copy")
    shutil.rmtree(store.root / "sine" / "2")
    (store.root / "sine" / "copy").rename(store.root / "sine" / "2")
    served.models.load_all()
    assert served.models.loaded() == ["sine@2", "sine@3"]
    with (store.root / "sine" / "2" / MANIFEST_FILE).open("a") as f:
        f.write(" ")
    served.models.load_all()
    assert served.models.loaded() == ["sine@3"]


def test_a_stat_that_is_never_the_same_is_followed_once_a_second(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles.numeric_regression(seed=2).publish(store)
    served = Served(store)
    models = {reference: served.models.get(reference) for reference in ("sine@1", "sine")}
    stat, opened, numbers, opens = ModelStore.stamp, ModelStore.open, count(), count()
    monkeypatch.setattr(ModelStore, "stamp", lambda *of: (*stat(*of), next(numbers)))
    monkeypatch.setattr(ModelStore, "open", lambda *of: (next(opens), opened(*of))[1])
    for _ in range(50):
        served.models.load_all()
        assert all(served.models.get(reference) is model for reference, model in models.items())
    assert counter(served.metrics.text().decode(), "fiberwalk_models_loaded") == 2
    del models
    # One of each second, and those of `load_all` for what nothing means.
    assert next(opens) < 80


def test_a_copy_that_was_not_whole_is_tried_again_soon(store: ModelStore, tmp_path: Path) -> None:
    served = Served(store)
    path = store.root / "sine" / "1"
    other = bundles.numeric_regression(seed=7).publish(tmp_path / "other")
    shutil.copy(other.path / MANIFEST_FILE, path)
    served.models.load_all()
    assert (served.models.loaded(), served.models.state) == ([], "failed")
    shutil.copytree(other.path, path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST_FILE))

    def taken_up() -> bool:
        served.models.load_all()
        return served.models.loaded() == ["sine@1"]

    wait_until(taken_up, seconds=4)
    assert served.models.get("sine").bundle.digest == other.digest


def test_what_was_loaded_meanwhile_is_not_let_go(store: ModelStore) -> None:
    bundles.classification().publish(store)
    served = Served(store)
    shutil.rmtree(store.root / "sine")
    served.models.look()
    digest = bundles.numeric_regression(seed=7).publish(store).digest
    loaded = served.models.get("sine@1")
    served.models.load()
    assert served.models.get("sine@1") is loaded
    assert loaded.bundle.digest == digest


def test_what_goes_while_it_is_loaded_is_not_damaged(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles.classification().publish(store)
    served, opened = Served(store), ModelStore.open
    replace(store)

    def going(self: ModelStore, reference: str) -> Any:
        shutil.rmtree(store.root / "sine")
        return opened(self, reference)

    with monkeypatch.context() as patch:
        patch.setattr(ModelStore, "open", going)
        served.models.load_all()
    served.models.load_all()
    assert (served.models.loaded(), served.models.problems()) == (["flowers@1"], [])
    assert counter(served.metrics.text().decode(), "fiberwalk_model_failures_total") == 0


def test_what_does_not_verify_is_not_hidden_by_what_it_replaced(
    store: ModelStore, running: tuple[Server, httpx.Client]
) -> None:
    _, client = running
    assert version(client) == 1
    replace(store)
    damage(store, "sine", BASE_FILE)
    wait_until(lambda: client.get("/readyz").json()["problems"] != [], what="the damaged bundle")
    assert client.get("/readyz").json()["problems"][0]["code"] == "damaged_bundle"
    wait_until(lambda: client.get("/readyz").json()["models"] == [])
    assert client.post("/predict", json=BODY).status_code == 503
    # What mends it is another bundle, so that it does not wait until the damaged one is tried again.
    replace(store, seed=8)
    wait_until(lambda: client.post("/predict", json=BODY).status_code == 200, seconds=8)


def test_a_champion_that_is_gone_is_told(store: ModelStore, running: tuple[Server, httpx.Client]) -> None:
    _, client = running
    bundles.numeric_regression(seed=1).publish(store)
    store.set_alias("sine", CHAMPION, 2)
    wait_until(lambda: version(client) == 2)
    shutil.rmtree(store.root / "sine" / "2")
    wait_until(lambda: client.get("/readyz").json()["problems"] != [], what="the champion to be missed")
    ready, refused = client.get("/readyz").json(), client.post("/predict", json=BODY)
    assert [p["model"] for p in ready["problems"]] == ["sine", "sine@champion"]
    assert (refused.status_code, refused.json()["error"]["message"]) == (404, ready["problems"][0]["message"])
    assert "means its champion, version 2, which is gone" in refused.text
    assert version(client, "sine@1") == 1
    store.set_alias("sine", CHAMPION, 1)
    wait_until(lambda: client.get("/readyz").json() == {"status": "ready", "models": ["sine@1"], "problems": []})
    assert version(client) == 1
