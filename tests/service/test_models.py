"""Models that come, go, move and break while a server runs."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from model_store.errors import InputError, IntegrityError, StoreError, UnknownModelError
from model_store.manifest import BASE_FILE, DECODER_FILE
from model_store.shelf import CHAMPION
from model_store.store import ModelStore
from service.catalog import summaries
from service.metrics import ServiceMetrics
from service.models import Models
from service.settings import Settings
from service.weights import WeightSource, sample_limit
from tests import bundles
from tests.servers import Server, serving, wait_until

BODY = {"inputs": [[1.0]]}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    bundles.numeric_regression().publish(tmp_path)
    return ModelStore(tmp_path)


def models_of(store: ModelStore, **settings: Any) -> Models:
    chosen = Settings(store=store.root, **settings)
    metrics, log = ServiceMetrics(), structlog.get_logger()
    models = Models(chosen, WeightSource(chosen, metrics), metrics, log)
    models.load_all()
    return models


def damage(store: ModelStore, reference: str, file: str = BASE_FILE) -> None:
    path = store.open(reference).path / file
    content = bytearray(path.read_bytes())
    content[-5] ^= 255
    path.write_bytes(content)


def version(client: httpx.Client, model: str | None = None) -> int:
    response = client.post("/predict", json=BODY | ({} if model is None else {"model": model}))
    assert response.status_code == 200, response.text
    found: int = response.json()["version"]
    return found


@pytest.fixture
def running(store: ModelStore) -> Iterator[tuple[Server, httpx.Client]]:
    with serving(store.root) as server, server.client() as client:
        yield server, client


def test_the_only_model_needs_no_name(store: ModelStore) -> None:
    assert models_of(store).get(None).reference == "sine@1"
    bundles.classification().publish(store)
    with pytest.raises(InputError, match="several") as caught:
        models_of(store).get(None)
    assert caught.value.expected == "one of: flowers, sine"


def test_an_empty_store(tmp_path: Path) -> None:
    models = models_of(ModelStore(tmp_path))
    assert (models.state, models.loaded()) == ("ready", [])
    with pytest.raises(UnknownModelError, match="holds no model yet"):
        models.get(None)


def test_names_and_aliases_are_loaded_at_the_start_and_others_on_demand(store: ModelStore) -> None:
    for seed in (1, 2, 3):
        bundles.numeric_regression(seed=seed).publish(store)
    store.set_alias("sine", "old", 2)
    models = models_of(store)
    assert models.loaded() == ["sine@2", "sine@4"]
    assert models.get("sine@old").reference == "sine@2"
    assert models.get("sine").reference == "sine@4"
    assert models.get("sine@1").reference == "sine@1"
    assert models.loaded() == ["sine@1", "sine@2", "sine@4"]


def test_versions_that_nothing_means_are_let_go(store: ModelStore) -> None:
    for seed in range(1, 5):
        bundles.numeric_regression(seed=seed).publish(store)
    models = models_of(store, spare_models=1)
    for reference in ("sine@1", "sine@2", "sine@3"):
        models.get(reference)
    assert "sine@5" in models.loaded()
    assert len(models.loaded()) <= 3
    assert models.get("sine@1").reference == "sine@1"


def test_one_load_however_many_ask(store: ModelStore) -> None:
    bundles.numeric_regression(seed=1).publish(store)
    models = models_of(store)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(models.get("sine@1"))) for _ in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 16
    assert len(set(map(id, found))) == 1


def test_large_weight_sets_lower_the_sample_limit(store: ModelStore) -> None:
    models = models_of(store)
    model = models.get("sine")
    size = 4 * model.manifest.network.weights
    assert sample_limit(model, Settings(max_samples=50)) == 50
    assert sample_limit(model, Settings(max_samples=50, max_set_bytes=size * 7 + 1)) == 7
    assert sample_limit(model, Settings(max_samples=50, max_set_bytes=1)) == 1


def test_a_bundle_that_cannot_be_run_is_reported(store: ModelStore) -> None:
    parts = bundles.numeric_regression("broken")
    bundles.Parts(parts.manifest, parts.files | {BASE_FILE: parts.files[DECODER_FILE]}).publish(store)
    models = models_of(store)
    assert models.state == "ready"
    assert [(p["model"], p["code"]) for p in models.problems()] == [("broken@1", "damaged_bundle")]
    with pytest.raises(IntegrityError, match="broken@1 does not verify"):
        models.get("broken")
    assert models.get("sine").reference == "sine@1"


@pytest.mark.parametrize("content", ["[]", '{"champion": Infinity}', "[" * 100_000, "no json"])
def test_a_damaged_alias_file_stops_only_its_model(store: ModelStore, content: str) -> None:
    bundles.classification().publish(store)
    (store.root / "sine" / "aliases.json").write_text(content)
    models = models_of(store)
    assert (models.state, models.loaded()) == ("ready", ["flowers@1"])
    with pytest.raises(StoreError, match="damaged"):
        models.get("sine")


def test_what_is_no_alias_file_stops_only_its_model(store: ModelStore) -> None:
    bundles.classification().publish(store)
    (store.root / "sine" / "aliases.json").mkdir()
    models = models_of(store)
    assert (models.state, models.loaded()) == ("ready", ["flowers@1"])
    with pytest.raises(StoreError, match=r"sine/aliases\.json is no regular file; set the aliases again"):
        models.get("sine")
    assert [(m.name, m.problem is None) for m in summaries(models)] == [("flowers", True), ("sine", False)]


def test_a_moved_alias_and_a_new_version_are_followed(store: ModelStore, running: tuple[Server, httpx.Client]) -> None:
    server, client = running
    assert version(client) == 1
    bundles.numeric_regression(seed=5).publish(store)
    wait_until(lambda: version(client) == 2, what="the new version")
    wait_until(lambda: "sine@2" in client.get("/readyz").json()["models"])
    store.set_alias("sine", CHAMPION, 1)
    wait_until(lambda: version(client) == 1, what="the champion")
    assert version(client, "sine@champion") == 1
    assert version(client, "sine@2") == 2
    store.set_alias("sine", CHAMPION, 2)
    wait_until(lambda: version(client) == 2, what="the moved champion")
    assert client.get("/models/sine").json()["aliases"] == {"champion": 2}
    # Operators see when.
    told = re.findall(r"name_means +before=(\w+) model=(\S+) version=(\d)", server.log)
    assert told == [("None", "sine", "1"), ("1", "sine", "2"), ("2", "sine", "1"), ("1", "sine", "2")]
    assert server.counter("fiberwalk_model_version", model="sine") == 2


def test_a_new_model_is_served_without_restart(store: ModelStore, running: tuple[Server, httpx.Client]) -> None:
    _, client = running
    bundles.numeric_regression("second").publish(store)
    wait_until(lambda: client.post("/predict", json=BODY | {"model": "second"}).status_code == 200)
    wait_until(lambda: client.post("/predict", json=BODY).status_code == 422)
    wait_until(lambda: [m["name"] for m in client.get("/models").json()["models"]] == ["second", "sine"])


def test_versions_come_while_requests_run(store: ModelStore) -> None:
    """A reader sees the old version or the new one, and never half of one."""
    with serving(store.root, batch_rows=1) as server:  # so that answers are the same to the bit
        ask_while_versions_come(store, server)


def ask_while_versions_come(store: ModelStore, server: Server) -> None:
    answers: dict[int, set[bytes]] = {}
    statuses: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        with server.client() as mine:
            while not stop.is_set():
                response = mine.post("/predict", json=BODY)
                statuses.append(response.status_code)
                answers.setdefault(response.json()["version"], set()).add(response.content)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for t in threads:
        t.start()
    wait_until(lambda: 1 in answers)
    for seed in (1, 2, 3):
        bundles.numeric_regression(seed=seed).publish(store)
        wait_until(lambda seen=seed + 1: seen in answers, what="the new version")
    stop.set()
    for t in threads:
        t.join()
    assert set(statuses) == {200}
    assert {len(found) for found in answers.values()} == {1}
    assert set(answers) == {1, 2, 3, 4}


def test_a_damaged_bundle_is_reported_and_the_others_are_served(store: ModelStore) -> None:
    bundles.classification().publish(store)
    damage(store, "sine")
    with serving(store.root) as server, server.client() as client:
        ready = client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["models"] == ["flowers@1"]
        (problem,) = ready.json()["problems"]
        assert (problem["model"], problem["code"]) == ("sine@1", "damaged_bundle")
        assert "does not verify" in problem["message"]

        refused = client.post("/predict", json=BODY | {"model": "sine"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "damaged_bundle")
        assert str(store.root) not in refused.text + ready.text
        wait_until(lambda: "changed since it was published" in server.log)

        assert client.post("/predict", json={"inputs": [[1, 2]], "model": "flowers"}).status_code == 200
        listed = {m["name"]: m["problem"] for m in client.get("/models").json()["models"]}
        assert listed["flowers"] is None
        assert "does not verify" in listed["sine"]
        start = client.get("/").text
        assert "does not verify" in start and "Served: 1 of 2 models." in start
        # There is no report to go to.
        assert '<th scope="row">sine</th>' in start and 'href="models/sine' not in start


def test_a_server_with_nothing_sound_is_not_ready_until_there_is(store: ModelStore) -> None:
    damage(store, "sine")
    with serving(store.root, ready=False) as server, server.client() as client:
        wait_until(lambda: client.get("/readyz").json()["status"] == "failed")
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        bundles.numeric_regression().publish(store)
        wait_until(lambda: client.get("/readyz").status_code == 200, what="the sound version")
        assert version(client) == 2
