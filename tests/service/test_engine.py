from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from model_store.bundle import Bundle
from model_store.errors import IntegrityError
from model_store.manifest import BASE_FILE, DECODER_FILE, FEATURES_FILE, ROW_FILE, TRUNK_FILE
from model_store.plan import draw_latents
from service.engine import Engine, Parts, WeightSet
from tests import bundles

KINDS: dict[str, Callable[[], bundles.Parts]] = {
    "mixed": bundles.mixed_regression,
    "trunk": lambda: bundles.mixed_regression(trunk=True),
    "classification": bundles.classification,
    "image": bundles.image_classification,
}


def decoded(bundle: Bundle, engine: Engine, samples: int) -> tuple[Parts, WeightSet]:
    plan = bundle.manifest.latent.plans["predict"]
    latents, anchors = draw_latents(plan, bundle.arrays()["nodes"], samples, 3)
    parts = engine.decode(latents, anchors)
    return parts, engine.bind(parts, anchors)


def encoded(bundle: Bundle, rows: int) -> np.ndarray:
    inputs = bundle.manifest.inputs
    shape = inputs.shape if inputs.kind == "tensor" else [5 if len(inputs.columns) == 3 else len(inputs.columns)]
    return np.random.default_rng(0).normal(size=(rows, *shape)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("samples", "rows"), [(1, 1), (7, 5), (16, 64)])
def test_outputs_are_the_networks(tmp_path: Path, kind: str, samples: int, rows: int) -> None:
    bundle = KINDS[kind]().publish(tmp_path)
    engine = Engine(bundle)
    parts, weights = decoded(bundle, engine, samples)
    x = encoded(bundle, rows)
    found = np.concatenate(list(engine.outputs(weights, x, 8192)), axis=1)
    assert found.shape == (samples, rows, bundle.manifest.network.outputs)
    assert np.allclose(found, bundles.forward(bundle, parts, x), rtol=1e-4, atol=1e-5)


def test_a_set_holds_each_weight_once_and_contiguous(tmp_path: Path) -> None:
    bundle = bundles.mixed_regression().publish(tmp_path)
    parts, weights = decoded(bundle, Engine(bundle), 7)
    assert weights.samples == 7
    assert 0 < weights.nbytes - sum(p.nbytes for p in parts.values()) < 2**16
    for p in bundle.manifest.network.parameters:
        part = weights.arrays[p.input]
        assert part.shape == (7, *p.shape)
        assert part.flags.c_contiguous and np.shares_memory(part, parts[p.input])


def test_weight_vectors_are_cut_where_they_were_joined(tmp_path: Path) -> None:
    bundle = bundles.mixed_regression().publish(tmp_path)
    engine = Engine(bundle)
    parts, _ = decoded(bundle, engine, 7)
    whole = engine.joined(parts)
    assert whole.shape == (7, bundle.manifest.network.weights)
    (first, *_) = bundle.manifest.network.parameters
    assert np.array_equal(
        whole[:, first.offset : first.offset + parts[first.input][0].size], parts[first.input].reshape(7, -1)
    )
    again = engine.cut(whole)
    assert again.keys() == parts.keys() and all(np.array_equal(again[n], parts[n]) for n in parts)


def test_large_batches_are_cut(tmp_path: Path) -> None:
    bundle = bundles.mixed_regression(trunk=True).publish(tmp_path)
    engine = Engine(bundle)
    _, weights = decoded(bundle, engine, 10)
    x = encoded(bundle, 25)
    whole = list(engine.outputs(weights, x, 8192))
    cut = list(engine.outputs(weights, x, 70))
    assert [p.shape[1] for p in whole] == [25]
    assert [p.shape[1] for p in cut] == [7, 7, 7, 4]
    assert [p.shape[1] for p in engine.outputs(weights, x, 3)] == [1] * 25
    assert np.allclose(np.concatenate(cut, axis=1), whole[0], rtol=1e-5, atol=1e-6)


def test_files_are_not_kept_beside_the_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundles.mixed_regression(trunk=True).publish(tmp_path)
    read: list[bytes] = []
    original = Bundle.read
    monkeypatch.setattr(Bundle, "read", lambda *a: read.append(original(*a)) or read[-1])
    engine = Engine(bundle)
    # Of a bytes object that only the list has, CPython counts the list, the loop's name and the argument.
    assert [sys.getrefcount(data) for data in read] == [3] * len(read) and len(read) >= 3
    decoded(bundle, engine, 3)


def test_threads_do_not_change_the_numbers(tmp_path: Path) -> None:
    bundle = bundles.mixed_regression().publish(tmp_path)
    x = encoded(bundle, 300)
    found = []
    for threads in (1, 2, 0):
        engine = Engine(bundle, threads=threads)
        found.append(next(iter(engine.outputs(decoded(bundle, engine, 32)[1], x, 2**20))))
    assert all(np.array_equal(found[0], f) for f in found[1:])


def test_threads_that_ask_at_once_do_not_share_buffers(tmp_path: Path) -> None:
    bundle = bundles.mixed_regression(trunk=True).publish(tmp_path)
    engine = Engine(bundle)
    _, weights = decoded(bundle, engine, 16)
    rows = [encoded(bundle, 1 + i % 3) + np.float32(i) for i in range(24)]
    alone = [next(iter(engine.outputs(weights, x, 8192))) for x in rows]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda x: next(iter(engine.outputs(weights, x, 8192))), rows * 8))
    assert all(np.array_equal(found, alone[i % 24]) for i, found in enumerate(together))


def test_outputs_outlive_the_next_run(tmp_path: Path) -> None:
    bundle = bundles.classification().publish(tmp_path)
    engine = Engine(bundle)
    _, weights = decoded(bundle, engine, 4)
    x = encoded(bundle, 2)
    first = next(iter(engine.outputs(weights, x, 8192)))
    kept = first.copy()
    next(iter(engine.outputs(weights, x + 1, 8192)))
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("trunk", [False, True])
@pytest.mark.parametrize("rows", [1, 64, 150])
def test_features_are_those_of_the_file(tmp_path: Path, rows: int, trunk: bool) -> None:
    bundle = bundles.image_classification(trunk=trunk).publish(tmp_path)
    engine, x = Engine(bundle), encoded(bundle, rows)
    engine.take_features(bundle, bundles.FEATURES)
    given = {"inputs": x}
    if trunk:
        session = ort.InferenceSession(bundle.read(TRUNK_FILE), providers=["CPUExecutionProvider"])
        given = dict(zip(["trunk"], session.run(["trunk"], given), strict=True))
    session = ort.InferenceSession(bundle.read(FEATURES_FILE), providers=["CPUExecutionProvider"])
    (expected,) = session.run(["features"], given)
    assert engine.features(x) == pytest.approx(expected, abs=1e-5)
    _, weights = decoded(bundle, engine, 4)
    parts = list(engine.answers(weights, x, 8192, look=True))
    beside = [features for _, features in parts if features is not None]
    assert np.concatenate(beside) == pytest.approx(expected, abs=1e-5)
    assert all(np.array_equal(o, p) for (o, _), p in zip(parts, engine.outputs(weights, x, 8192), strict=True))
    assert all(features is None for _, features in engine.answers(weights, x, 8192))


def test_a_trunk_runs_once_for_outputs_and_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundles.image_classification(trunk=True).publish(tmp_path)
    engine, x, runs = Engine(bundle), encoded(bundle, 150), []
    engine.take_features(bundle, bundles.FEATURES)
    trunk = engine._trunk
    assert trunk is not None

    class Counted:
        def run(self, *asked: Any) -> Any:
            runs.append(asked)
            return trunk.run(*asked)

    monkeypatch.setattr(engine, "_trunk", Counted())
    list(engine.answers(decoded(bundle, engine, 4)[1], x, 8192, look=True))
    assert len(runs) == 3


def test_features_of_what_no_trunk_gives_are_refused(tmp_path: Path) -> None:
    parts, plain = bundles.image_classification(trunk=True), bundles.image_classification()
    entering = ("pooled", ["B", 5])
    wrong = bundles.fixed_model(entering, np.ones((5, bundles.FEATURES)), "Identity", "features")
    for kind in (parts, plain):
        kind.files[FEATURES_FILE] = wrong
        bundle = kind.publish(tmp_path / str(kind is parts))
        with pytest.raises(IntegrityError, match=r"features\.onnx is not what the manifest says .*pooled"):
            Engine(bundle).take_features(bundle, bundles.FEATURES)


def test_features_that_detectors_do_not_know_are_named(tmp_path: Path) -> None:
    bundle = bundles.image_classification().publish(tmp_path)
    with pytest.raises(IntegrityError, match=r"features\.onnx gives features of shape .*, and the detectors know 4"):
        Engine(bundle).take_features(bundle, 4)


def test_a_changed_file_is_not_run(tmp_path: Path) -> None:
    bundle = bundles.numeric_regression().publish(tmp_path)
    file = bundle.path / BASE_FILE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match="changed"):
        Engine(bundle)


def test_what_onnxruntime_cannot_load_is_named(tmp_path: Path) -> None:
    parts = bundles.numeric_regression()
    # Valid protobuf with no graph: it passes the guard, and fails in ONNX Runtime.
    parts = bundles.numeric_regression()
    bundle = bundles.Parts(parts.manifest, parts.files | {DECODER_FILE: b"\x08\x07"}).publish(tmp_path)
    with pytest.raises(IntegrityError, match=r"cannot load decoder\.onnx"):
        Engine(bundle)


@pytest.mark.parametrize("file", [BASE_FILE, ROW_FILE])
def test_a_graph_that_is_not_the_manifests_is_named(tmp_path: Path, file: str) -> None:
    parts = bundles.numeric_regression()
    swapped = parts.files | {file: parts.files[DECODER_FILE]}
    bundle = bundles.Parts(parts.manifest, swapped).publish(tmp_path)
    with pytest.raises(IntegrityError, match=f"{file} is not what the manifest says.*missing outputs"):
        Engine(bundle)


def test_a_file_that_is_two_formats_is_not_run(tmp_path: Path) -> None:
    """To the guard it is ONNX that holds nothing but bytes; ONNX Runtime by itself would take it for its own format."""
    file = tmp_path / "network.ort"
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(file)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ORT")
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 2]) for name in ("inputs", "outputs")]
    graph = helper.make_graph([helper.make_node("Relu", ["inputs"], ["outputs"])], "network", rows[:1], rows[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    own = file.read_bytes()
    # The place of its root becomes the start of a field of ONNX, whose one value is all the rest.
    start = int.from_bytes(b"\x08\x10\x12\x04", "little")
    padded = start.to_bytes(4, "little") + own[4:8] + bytes(start - int.from_bytes(own[:4], "little")) + own[8:]
    rest = len(padded) - 13
    length = bytes([(rest >> 7 * i) & 0x7F | (0x80 if i < 3 else 0) for i in range(4)])
    both = padded[:8] + b"\x12" + length + padded[13:]
    assert ort.InferenceSession(both, providers=["CPUExecutionProvider"]).get_outputs()
    parts = bundles.numeric_regression()
    bundle = bundles.Parts(parts.manifest, parts.files | {BASE_FILE: both}).publish(tmp_path / "store")
    with pytest.raises(IntegrityError, match=r"cannot load base\.onnx"):
        Engine(bundle)
