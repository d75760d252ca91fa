"""What is told of versions that nothing means: their networks are not loaded for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from model_store.bundle import MANIFEST_FILE
from model_store.manifest import CARD_FILE, REPORT_FILE
from model_store.store import ModelStore
from tests import bundles
from tests.servers import Server, serving, wait_until
from tests.service.test_models import damage
from tests.service.test_requests import refused

OLD = range(1, 7)
PATHS = ("", "/health", f"/files/{CARD_FILE}", "/report")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    folder = tmp_path_factory.mktemp("store")
    for _ in (*OLD, "newest"):
        bundles.mixed_regression().publish(folder)
    return ModelStore(folder)


@pytest.fixture(scope="module")
def running(store: ModelStore) -> Iterator[tuple[Server, httpx.Client]]:
    with serving(store.root, spare_models=2) as server, server.client() as client:
        yield server, client


def test_old_versions_are_described_without_being_loaded(
    store: ModelStore, running: tuple[Server, httpx.Client]
) -> None:
    server, client = running
    for old in OLD:
        for path in PATHS:
            answer = client.get(f"/models/prices@{old}{path}")
            assert answer.status_code == 200, answer.text
        detail = client.get(f"/models/prices@{old}").json()
        assert (detail["version"], detail["digest"]) == (old, store.open(f"prices@{old}").digest)
    assert client.get("/readyz").json()["models"] == ["prices@7"]
    # What it is told they keep, and are loaded once they are to predict.
    told = {"model": "prices@3", "inputs": [[5, 80, "Bonn"]], "targets": [1.0]}
    assert client.post("/feedback", json=told).json()["rows"] == 1
    assert client.get("/models/prices@3/health").json()["rows"] == 1
    assert client.get("/readyz").json()["models"] == ["prices@3", "prices@7"]
    wait_until(lambda: server.log.count("model_loaded") == 2)


def test_what_is_damaged_of_an_old_version_is_not_shown(
    store: ModelStore, running: tuple[Server, httpx.Client]
) -> None:
    _, client = running
    for old, file, path in ((1, REPORT_FILE, "/report"), (2, CARD_FILE, ""), (4, MANIFEST_FILE, "/health")):
        if file == MANIFEST_FILE:
            Path(store.root / "prices" / str(old) / file).write_bytes(b"{}")
        else:
            damage(store, f"prices@{old}", file)

        def told(where: str = f"/models/prices@{old}{path}") -> httpx.Response:
            return client.get(where)

        wait_until(lambda told=told: told().status_code == 503)  # type: ignore[misc]
        error = refused(told(), 503)
        assert error["message"].startswith(f"prices@{old} ") and str(store.root) not in told().text
    for reference in ("prices@99", "nothing@1"):
        assert refused(client.get(f"/models/{reference}"), 404)["code"] == "unknown_model"
    assert client.get("/models/prices").json()["version"] == 7
