"""The engine's goals, each a ratio to a limit that is measured by turns with it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from benchmarks.quality.goals import Goal, make_goal
from benchmarks.serving.measure import all_outputs, by_turns
from benchmarks.serving.models import CASES, rows_of, serve_beside, session_of
from builder.onnx_graph import model_of
from model_store.plan import draw_latents

What = Literal["det", "read", "sgemm", "hot"]

_SHOWN: Final[dict[What, str]] = {
    "det": "in deterministic runs",
    "read": "reading the weights, as a share of the time",
    "sgemm": "a matrix product of as many operations, as a share of the time",
    "hot": "fresh latents, in times of a set that is held",
}
_SGEMM: Final = 1024
_WIDE: Final = "MLP 784-256-128-10"


@dataclass(frozen=True)
class Limit:
    """A goal.

    Attributes:
        network, rows, samples: what is run.
        what: the limit.
        bound: the ratio wanted: at most of `det` and `hot`, which should be small, at least of the others.
    """

    network: str
    rows: int
    samples: int
    what: What
    bound: float

    @property
    def text(self) -> str:
        """What is asked, in a line."""
        size = f"{self.network}, {self.samples} samples, {self.rows} row{'s' if self.rows > 1 else ''}"
        least = "at least" if self.what in ("read", "sgemm") else "at most"
        return f"{size}: {_SHOWN[self.what]}, {least} {self.bound:g}"

    def met(self, ratio: float) -> bool:
        """Whether it is."""
        return ratio >= self.bound if self.what in ("read", "sgemm") else ratio <= self.bound


LIMITS: Final = (
    Limit("MLP 13-50-1", 1, 32, "det", 2.0),
    Limit(_WIDE, 1, 32, "det", 8.0),
    Limit(f"{_WIDE}, rank 8", 1, 32, "det", 8.0),
    Limit(_WIDE, 64, 100, "det", 35.0),
    Limit(f"{_WIDE}, rank 8", 64, 100, "det", 35.0),
    Limit("LeNet-5", 1, 32, "det", 17.0),
    Limit("ResNet-20", 1, 32, "det", 28.0),
    Limit("ResNet-20, last block", 1, 32, "det", 1.5),
    Limit("ResNet-20, last layer", 1, 32, "det", 1.5),
    Limit(_WIDE, 1, 32, "read", 0.9),
    Limit(_WIDE, 256, 32, "sgemm", 0.95),
    Limit(_WIDE, 1, 32, "hot", 2.5),
    Limit(f"{_WIDE}, rank 8", 1, 32, "hot", 2.5),
)


def measure_limit(limit: Limit, seconds: float) -> dict[str, float]:
    """The `ratio`, of medians of the processor's time; of a matrix product also `own`, the limit's time in that of the
    same product by the library that the engine is built on, which no network can be faster than."""
    case = CASES[limit.network]
    with tempfile.TemporaryDirectory(prefix="fiberwalk-benchmark-") as store:
        model, det = serve_beside(case, Path(store))
    latents, anchors = draw_latents(model.plan("predict"), model.nodes, limit.samples, 0)
    decoded = model.engine.decode(latents, anchors)
    weights = model.engine.bind(decoded, anchors)
    x = rows_of(case, limit.rows)
    calls: dict[str, Callable[[], object]] = {"samples": partial(all_outputs, model, weights, x)}
    scale = 1.0
    if limit.what == "det":
        calls["limit"] = partial(det.run, ["outputs"], {"inputs": x})
    elif limit.what == "read":
        flat = model.engine.joined(decoded).reshape(-1)
        calls["limit"] = partial(np.dot, flat, flat)
    elif limit.what == "sgemm":
        left, right = (np.random.default_rng(i).normal(size=(_SGEMM, _SGEMM)).astype(np.float32) for i in (0, 1))
        calls["limit"] = partial(np.matmul, left, right)
        calls["own"] = partial(_product().run, None, {"left": left, "right": right})
        # Every weight of a linear layer is multiplied once a row.
        scale = limit.samples * limit.rows * model.manifest.network.random_weights / _SGEMM**3
    else:
        calls["limit"] = calls["samples"]
        calls["samples"] = lambda: all_outputs(
            model, model.engine.bind(model.engine.decode(latents, anchors), anchors), x
        )
    times = by_turns(calls, seconds)
    if limit.what in ("read", "sgemm"):
        found = {"ratio": scale * times["limit"] / times["samples"]}
        return found | ({"own": times["limit"] / times["own"]} if "own" in times else {})
    return {"ratio": times["samples"] / times["limit"]}


def _product() -> ort.InferenceSession:
    """ONNX Runtime's product of two matrices."""
    left, right, found = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [_SGEMM, _SGEMM]) for name in ("left", "right", "found")
    )
    node = helper.make_node("MatMul", ["left", "right"], ["found"])
    return session_of(model_of([node], [left, right], [found], "product", []).SerializeToString())


def judge_limits(found: Sequence[dict[str, Any]]) -> list[Goal]:
    """All goals, from runs whose set is the text of a limit."""
    measured = {f["set"]: f for f in found if "ratio" in f}

    def goal(limit: Limit) -> Goal:
        runs = [measured[limit.text]] if limit.text in measured else []
        return make_goal(limit.text, runs, None, lambda: (limit.met(runs[0]["ratio"]), _told(runs[0])))

    return [goal(limit) for limit in LIMITS]


def _told(run: dict[str, Any]) -> str:
    own = run.get("own")
    return f"{run['ratio']:.2f}" + ("" if own is None else f", where ONNX Runtime's own product has {own:.2f}")
