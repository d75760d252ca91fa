"""Peers over HTTP: their answers are predictives, they end with the benchmark, and ratios become goals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.serving import page
from benchmarks.serving.load import post
from benchmarks.serving.models import CASES, rows_of
from benchmarks.serving.peers.__main__ import main
from benchmarks.serving.peers.predictors import NETWORK, PREDICTORS
from benchmarks.serving.peers.processes import running
from benchmarks.serving.peers.tables import LEAST_RATIO, judge, table
from model_store.errors import FiberwalkError


@pytest.mark.parametrize("name", list(PREDICTORS))
def test_what_is_compared_are_predictives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.serving.peers.predictors._MEMBERS", 2)  # exporting takes a while
    found = PREDICTORS[name]()(rows_of(CASES[NETWORK], 3))
    mean, variance = np.array(found["mean"]), np.array(found["variance"])
    assert mean.shape == variance.shape == (3, 10)
    np.testing.assert_allclose(mean.sum(1), 1, rtol=1e-5)
    assert (variance > 0).all()


def test_a_peer_answers_until_the_block_ends() -> None:
    row = rows_of(CASES[NETWORK], 1).tolist()
    with running("plain", post("/predict", json.dumps({"inputs": row}).encode())) as url:
        assert len(httpx.post(f"{url}/predict", json={"inputs": row}).json()["mean"][0]) == 10
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_peer_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(running.__wrapped__.__globals__["PEERS"], "plain", ("with_fastapi", ["no_such"]))  # type: ignore[attr-defined]
    with pytest.raises(FiberwalkError) as caught, running("plain", b""):
        pass
    assert "no_such" in str(caught.value.got)


def run(peer: str, ratio: float) -> dict[str, Any]:
    figures = {"rate": 100.0, "p50": 10.0, "p99": 20.0}
    ours = {"ours_mixed": figures | {"rate": 100 * ratio}, "ours": figures | {"rate": 30 * ratio}}
    return {"set": peer, "clients": 32, "peer": figures, **ours}


def test_goals() -> None:
    for peer, least in LEAST_RATIO.items():
        for ratio, state in ((1.01 * least, "met"), (0.99 * least, "not met")):
            states = [g.state for g in judge([run(peer, ratio)])]
            assert states.count(state) == 1 and states.count("not measured") == len(LEAST_RATIO) - 1
    header, rows = table([run("plain", 2.0)])
    assert len(header) == len(rows[0])


def test_the_command_measures_and_its_page_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A working tree that others write to must not end the run.
    monkeypatch.setattr("benchmarks.results.revision", lambda _: "a")
    arguments = ["--peers", "plain", "--seconds", "0.5", "--turns", "1", "--output", str(tmp_path / "peers.json")]
    assert main(arguments) == 0
    assert "torch behind FastAPI" in capsys.readouterr().out
    (tmp_path / "serving.json").write_text(json.dumps({"benchmark": "serving", "environments": {}, "runs": []}))
    target = tmp_path / "performance.md"
    assert page.main([str(tmp_path), str(target)]) == 0
    assert "torch behind FastAPI | 32 |" in target.read_text()
