"""A bundle is a program: one that never comes to an end holds up no other."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_store.manifest import BASE_FILE
from model_store.store import ModelStore
from tests import bundles
from tests.servers import serving, wait_until

PATIENCE = "from service import held; held._PATIENCE_SECONDS = 3.0"


def endless(name: str) -> bundles.Parts:
    """A sound bundle, but for a loop in its network that goes on for ever."""
    parts = bundles.classification(name)
    model = onnx.load_from_string(parts.files[BASE_FILE])
    graph = model.graph
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["on_"]), helper.make_node("Identity", ["zero"], ["zero_"])],
        "body",
        [info("i", TensorProto.INT64, []), info("on", TensorProto.BOOL, []), info("zero", TensorProto.FLOAT, [])],
        [info("on_", TensorProto.BOOL, []), info("zero_", TensorProto.FLOAT, [])],
    )
    for node in graph.node:
        node.output[:] = ["sound" if o == "outputs" else o for o in node.output]
    for constant, value in (("always", np.array(True)), ("nothing", np.float32(0))):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), constant))
    graph.node.append(helper.make_node("Loop", ["", "always", "nothing"], ["never"], body=body))
    graph.node.append(helper.make_node("Add", ["sound", "never"], ["outputs"]))
    return bundles.Parts(parts.manifest, parts.files | {BASE_FILE: model.SerializeToString()})


def asked(client: httpx.Client, model: str) -> httpx.Response:
    return client.post("/predict", json={"model": model, "inputs": [[1.0, 2.0]]})


def test_a_model_that_never_loads_holds_up_no_other(tmp_path: Path) -> None:
    bundles.classification("flowers").publish(tmp_path)
    bundles.classification("both").publish(tmp_path)
    endless("both").publish(tmp_path)
    endless("endless").publish(tmp_path)
    with serving(tmp_path, before=PATIENCE) as server, server.client() as client:
        ready = client.get("/readyz").json()
        # What comes first in the store does not load; an older version stands in for a newer one.
        assert ready["models"] == ["both@1", "flowers@1"]
        assert [p["model"] for p in ready["problems"]] == ["both@2", "endless@1"]
        assert "takes more than 3 s to load" in ready["problems"][0]["message"]
        assert asked(client, "both").json()["version"] == asked(client, "flowers").json()["version"] == 1
        started = time.monotonic()
        assert {asked(client, "endless").status_code for _ in range(60)} == {503}
        assert time.monotonic() - started < 10
        # What is published later is taken up.
        bundles.classification("later").publish(tmp_path)
        wait_until(lambda: "later@1" in client.get("/readyz").json()["models"])


def test_while_a_newer_version_loads_the_one_before_answers_and_others_too(tmp_path: Path) -> None:
    bundles.classification("flowers").publish(tmp_path)
    bundles.classification("both").publish(tmp_path)
    with serving(tmp_path) as server, server.client() as client:
        endless("both").publish(tmp_path)
        started = time.monotonic()
        # Longer than it takes to be found.
        while time.monotonic() < started + 4:
            for model in ("both", "flowers"):
                before = time.monotonic()
                assert asked(client, model).json()["version"] == 1
                assert time.monotonic() - before < 4
            time.sleep(0.02)
        assert client.get("/readyz").json()["problems"] == []


def test_while_a_moved_champion_loads_what_it_meant_before_answers(tmp_path: Path) -> None:
    bundles.classification("moved").publish(tmp_path)
    store = ModelStore(tmp_path)
    store.set_alias("moved", "champion", 1)
    patience = "from service import held; held._PATIENCE_SECONDS = 6.0"
    with serving(tmp_path, before=patience) as server, server.client() as client:
        endless("moved").publish(tmp_path)
        store.set_alias("moved", "champion", 2)
        started = time.monotonic()
        while time.monotonic() < started + 4:
            for name in ("moved", "moved@champion"):
                assert asked(client, name).json()["version"] == 1
            assert client.get("/models").json()["models"][0]["version"] == 1
        # What is known not to load is not hidden by what was there before.
        wait_until(lambda: asked(client, "moved").status_code == 503)
        assert "takes more than 6 s to load" in asked(client, "moved").json()["error"]["message"]
        assert client.get("/models").json()["models"][0]["version"] is None
        store.set_alias("moved", "champion", 1)
        wait_until(lambda: asked(client, "moved").status_code == 200)


def test_who_asks_for_what_takes_long_to_load_is_told_so_and_others_are_answered(tmp_path: Path) -> None:
    bundles.classification("flowers").publish(tmp_path)
    with (
        serving(tmp_path, before="from service import models; models._WAIT_SECONDS = 1.0") as server,
        server.client() as client,
        ThreadPoolExecutor(4) as many,
    ):
        endless("new").publish(tmp_path)
        wait_until(lambda: asked(client, "new").status_code == 503)
        refused = list(many.map(lambda _: asked(client, "new"), range(8)))
        started = time.monotonic()
        assert asked(client, "flowers").status_code == 200
        assert time.monotonic() - started < 4
        assert {r.status_code for r in refused} == {503} and refused[0].headers["Retry-After"] == "1"
        assert "new@1 is being loaded" in refused[0].json()["error"]["message"]


def test_what_takes_long_to_load_is_served_once_it_has(tmp_path: Path) -> None:
    bundles.classification("flowers").publish(tmp_path)
    slow = "import time; warmed = held.Versions._warmed; "
    slow += "held.Versions._warmed = lambda *asked: (time.sleep(2), warmed(*asked))[1]; held._PATIENCE_SECONDS = 0.2"
    with (
        serving(tmp_path, ready=False, before=f"from service import held; {slow}") as server,
        server.client() as client,
    ):
        wait_until(lambda: client.get("/readyz").json()["problems"] != [])
        assert asked(client, "flowers").status_code == 503
        wait_until(lambda: client.get("/readyz").json() == {"status": "ready", "models": ["flowers@1"], "problems": []})
        assert asked(client, "flowers").status_code == 200
        assert server.log.count("model_loaded") == 1
