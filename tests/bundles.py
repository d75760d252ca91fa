"""Small real bundles for tests, made without torch: every file is what a build publishes, only tiny.

The network is a multilayer perceptron with one hidden layer of tanh units, optionally behind a fixed trunk;
`forward` computes it in numpy, so that tests can hold the served numbers against an independent reference.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save as save_safetensors

from model_store.bundle import Bundle
from model_store.detection import ClassMahalanobis, Mahalanobis, NearestRows, Scaler, combined, familiar_surprise
from model_store.encoding import TableEncoder
from model_store.manifest import (
    ARRAYS_FILE,
    BASE_FILE,
    CARD_FILE,
    DECODER_FILE,
    FEATURES_FILE,
    REPORT_FILE,
    TRUNK_FILE,
    BuildInfo,
    Calibration,
    CategoricalColumn,
    ClassificationCalibration,
    ClassificationTarget,
    InputSpec,
    LatentPlan,
    LatentSpace,
    Manifest,
    Metrics,
    NetworkSpec,
    NumericColumn,
    OodDetection,
    ParameterSpec,
    RegressionCalibration,
    RegressionTarget,
    TableInput,
    Target,
    TensorInput,
)
from model_store.store import ModelStore

Array = NDArray[Any]
Tensors = dict[str, tuple[int, list[int | str]]]

PICTURE_FILE = "posterior.png"
OPSET, IR_VERSION = 18, 10
POINTS = 199
ANCHORS, TRAJECTORIES, STEPS, DIMENSION, RANK = 2, 3, 4, 3, 2
FEATURES = 5
_TRUNK = "trunk"


@dataclass(frozen=True)
class Parts:
    """Everything a bundle is published from; change a part to get a bundle that differs in just that."""

    manifest: Manifest
    files: dict[str, bytes] = field(repr=False)

    def publish(self, store: ModelStore | Path) -> Bundle:
        """Publishes as the next version of the manifest's name."""
        store = store if isinstance(store, ModelStore) else ModelStore(store)
        return store.publish(self.manifest, self.files)


# ---- the bundles


def mixed_regression(name: str = "prices", *, seed: int = 0, trunk: bool = False, weight_scale: float = 0.5) -> Parts:
    """Regression over `rooms`, `area` (numeric) and `town` (one of 3 categories)."""
    columns = [
        NumericColumn(name="rooms", mean=6.0, scale=1.5, minimum=1, maximum=12),
        NumericColumn(name="area", unit="m²", mean=90.0, scale=30.0, minimum=20, maximum=300),
        CategoricalColumn(name="town", categories=["Aachen", "Bonn", "Köln"]),
    ]
    target = RegressionTarget(name="price", unit="k€", mean=250.0, scale=80.0)
    return _parts(
        name, TableInput(columns=list(columns)), target, width=5, seed=seed, trunk=trunk, weight_scale=weight_scale
    )


def numeric_regression(
    name: str = "sine", *, columns: Sequence[str] = ("x",), seed: int = 0, trunk: bool = False, noise: float = 0.25
) -> Parts:
    """Regression over numeric columns alone."""
    spec = TableInput(columns=[NumericColumn(name=c, mean=3.0, scale=1.5, minimum=0, maximum=6) for c in columns])
    target = RegressionTarget(name="y", mean=0.1, scale=0.8)
    return _parts(name, spec, target, width=len(columns), seed=seed, trunk=trunk, noise=noise)


def classification(
    name: str = "flowers",
    *,
    classes: Sequence[int | str] = ("setosa", "versicolor", "virginica"),
    seed: int = 0,
    trunk: bool = False,
) -> Parts:
    """Classification over two numeric columns."""
    columns = [NumericColumn(name=c, unit="cm", mean=4.0, scale=1.0) for c in ("length", "width")]
    target = ClassificationTarget(name="species", classes=list(classes))
    return _parts(name, TableInput(columns=list(columns)), target, width=2, seed=seed, trunk=trunk)


def image_classification(name: str = "digits", *, shape: Sequence[int] = (1, 4, 4), trunk: bool = False) -> Parts:
    """Classification of small arrays with integer classes; with a trunk, features are made of what it gives."""
    spec = TensorInput(shape=list(shape), mean=8.0, scale=4.0)
    target = ClassificationTarget(name="digit", classes=list(range(4)))
    return _parts(name, spec, target, width=math.prod(shape), seed=0, trunk=trunk)


# ---- the network in numpy


def forward(bundle: Bundle, parts: Mapping[str, Array], x: Array) -> Array:
    """Outputs (S, B, O) in float64 for decoded weights, by the base's input, and encoded inputs x (B, ...)."""
    x = np.asarray(x, dtype=np.float64).reshape(len(x), -1)
    if TRUNK_FILE in bundle.manifest.files:
        fixed = {i.name: numpy_helper.to_array(i) for i in _graph(bundle.read(TRUNK_FILE)).initializer}
        x = np.maximum(x @ fixed["fixed.weight"].astype(np.float64), 0.0)
    w = {p.name: parts[p.input].astype(np.float64) for p in bundle.manifest.network.parameters}
    hidden = np.tanh(np.einsum("bd,shd->sbh", x, w["0.weight"]) + w["0.bias"][:, None])
    outputs: Array = np.einsum("sbh,soh->sbo", hidden, w["2.weight"]) + w["2.bias"][:, None]
    return outputs


def _graph(data: bytes) -> onnx.GraphProto:
    return onnx.load_from_string(data).graph


# ---- parts


def _parts(
    name: str,
    inputs: InputSpec,
    target: Target,
    *,
    width: int,
    seed: int,
    trunk: bool,
    noise: float = 0.25,
    weight_scale: float = 0.5,
    hidden: int = 6,
) -> Parts:
    rng = np.random.default_rng(seed)
    outputs = len(target.classes) if isinstance(target, ClassificationTarget) else 1
    features = 5 if trunk else width
    parameters, weights = _layout(features, hidden, outputs)
    nodes = rng.normal(size=(ANCHORS, TRAJECTORIES, STEPS + 1, DIMENSION)).cumsum(axis=2).astype(np.float32)
    nodes[:, :, 0] = 0.0  # every trajectory starts at its anchor
    arrays: dict[str, Array] = {"nodes": nodes}
    calibration: Calibration
    if isinstance(target, RegressionTarget):
        calibration = RegressionCalibration(noise_std=noise * target.scale, points=199)
        arrays["conformity_scores"] = np.sort(np.abs(rng.normal(size=199)))
        detectors = ["epistemic_to_noise"]
        ood_scores = [rng.normal(size=POINTS)]
    else:
        calibration = ClassificationCalibration(temperature=1.3, points=199)
        arrays["conformity_scores"] = np.sort(rng.uniform(size=199) ** 2)
        detectors = ["mutual_information"]
        ood_scores = [np.log(np.linspace(0.001, 0.2, POINTS))]
    if isinstance(inputs, TableInput):
        detectors += ["nearest_rows", "mahalanobis"]
        found, references = _of_inputs(inputs, rng)
        ood_scores += found
        arrays |= references
    looks: Array | None = None
    if isinstance(inputs, TensorInput):
        looks = rng.normal(size=(features, FEATURES))
        detectors += ["nearest_features", "mahalanobis_features"]
        found, references = _of_features(rng.normal(size=(POINTS, features)) @ looks, outputs, rng)
        ood_scores += found
        arrays |= references
    arrays["ood_scores"] = np.sort(ood_scores, axis=1)
    arrays["ood_combined"] = np.sort(combined([familiar_surprise(s) for s in ood_scores]))
    files = {
        DECODER_FILE: decoder_model(rng, parameters, weight_scale),
        BASE_FILE: base_model(parameters, _inputs(inputs, features, trunk)),
        ARRAYS_FILE: save_safetensors(arrays),
        CARD_FILE: f"# {name}\n\nA small model for {target.name}.\n".encode(),
        REPORT_FILE: f"<!doctype html><title>{name}</title>".encode(),
        PICTURE_FILE: picture(),
    }
    if looks is not None:
        files[FEATURES_FILE] = fixed_model(_inputs(inputs, features, trunk), looks, "Identity", "features")
    if trunk:
        fixed, entering = rng.normal(size=(width, features)), _inputs(inputs, width, False)
        files[TRUNK_FILE] = fixed_model(entering, fixed, "Relu", _TRUNK)
    manifest = Manifest(
        name=name,
        version=1,
        inputs=inputs,
        target=target,
        network=NetworkSpec(
            form="batched",
            outputs=outputs,
            weights=weights,
            fixed_weights=width * features if trunk else 0,
            parameters=parameters,
            trunk_outputs=[_TRUNK] if trunk else [],
            description=f"MLP {features}-{hidden}-{outputs}, tanh",
        ),
        latent=LatentSpace(
            anchors=ANCHORS,
            trajectories=TRAJECTORIES,
            steps=STEPS,
            dimension=DIMENSION,
            rank=RANK,
            plans={
                "predict": LatentPlan(name="predict", samples=32, start=0.0, stop=0.5, drift_scale=0.1),
            },
        ),
        calibration=calibration,
        ood=OodDetection.model_validate({"detectors": detectors, "false_alarm_rate": 0.05, "points": POINTS}),
        metrics=[Metrics(predictor="posterior", split="test", rows=40, values={"nll": 1.25})],
        build=BuildInfo(
            created=datetime(2026, 1, 1, tzinfo=UTC),
            config={"preset": "fast"},
            libraries={"numpy": np.__version__},
            data_fingerprint="0" * 64,
            data_rows=199,
            seed=seed,
            device="cpu",
        ),
    )
    return Parts(manifest, files)


def _of_inputs(inputs: TableInput, rng: np.random.Generator) -> tuple[list[Array], dict[str, Array]]:
    """Scores of made-up familiar rows by the detectors of a table's inputs, and what these compare rows with."""
    encoder = TableEncoder(inputs)
    columns = [
        rng.normal(c.mean, c.scale, POINTS) if isinstance(c, NumericColumn) else rng.choice(c.categories, POINTS)
        for c in inputs.columns
    ]
    x = encoder.encode_columns([np.array(c, dtype=object) for c in columns])
    scaler = Scaler.fit(x, encoder.numeric)
    u = scaler(x)
    precision = Mahalanobis.precision_of(u)
    rows = u.astype(np.float32)
    scores = [NearestRows(rows).scores(u, np.arange(POINTS)), Mahalanobis(precision, encoder.groups)(u)[0]]
    references = {"ood_center": scaler.center, "ood_scale": scaler.scale, "ood_rows": rows, "ood_precision": precision}
    return scores, references


def _of_features(f: Array, classes: int, rng: np.random.Generator) -> tuple[list[Array], dict[str, Array]]:
    """The same by the detectors of made-up features f (POINTS, FEATURES)."""
    scaler = Scaler.fit(f.astype(np.float32), np.ones(FEATURES, dtype=bool))
    u = scaler(f.astype(np.float32))
    rows, known = u.astype(np.float32), ClassMahalanobis.fit(u, rng.permutation(np.arange(POINTS) % classes))
    references = {"ood_center": scaler.center, "ood_scale": scaler.scale, "ood_rows": rows}
    references |= {"ood_means": known.means, "ood_precision": known.precision}
    return [NearestRows(rows).scores(u, np.arange(POINTS)), known.scores(u)], references


def _layout(features: int, hidden: int, outputs: int) -> tuple[list[ParameterSpec], int]:
    shapes = {
        "0.weight": [hidden, features],
        "0.bias": [hidden],
        "2.weight": [outputs, hidden],
        "2.bias": [outputs],
    }
    parameters, offset = [], 0
    for name, shape in shapes.items():
        parameters.append(ParameterSpec(name=name, input=f"weights.{name}", shape=shape, offset=offset))
        offset += math.prod(shape)
    return parameters, offset


def _inputs(inputs: InputSpec, width: int, trunk: bool) -> tuple[str, list[int | str]]:
    """Name and shape of the tensor that enters a graph."""
    if trunk:
        return _TRUNK, ["B", width]
    shape: list[int | str] = list(inputs.shape) if isinstance(inputs, TensorInput) else [width]
    return "inputs", ["B", *shape]


# ---- ONNX


def decoder_model(rng: np.random.Generator, parameters: Sequence[ParameterSpec], scale: float = 0.5) -> bytes:
    """`decoder.onnx`: tanh of a linear map gives the coordinates, a head each turns them into parameters."""
    sizes = {p.input: math.prod(p.shape) for p in parameters}
    columns, weights = 1 + RANK, sum(sizes.values())
    head = rng.normal(size=(ANCHORS, columns, weights)) * scale
    head[:, 0] = rng.normal(size=(ANCHORS, weights)) * 0.8
    constants = {
        "map": rng.normal(size=(DIMENSION, ANCHORS * RANK)),
        **{
            f"head.{p.input}": head.reshape(ANCHORS * columns, weights)[:, p.offset : p.offset + sizes[p.input]]
            for p in parameters
        },
        "every": np.arange(ANCHORS).reshape(1, ANCHORS),
        "split": np.array([-1, ANCHORS, RANK]),
        "join": np.array([-1, ANCHORS * columns]),
        "last": np.array([2]),
        "back": np.array([1]),
    }
    nodes = [
        helper.make_node("MatMul", ["latents", "map"], ["linear"]),
        helper.make_node("Tanh", ["linear"], ["bent"]),
        helper.make_node("Reshape", ["bent", "split"], ["coordinates"]),
        helper.make_node("Unsqueeze", ["anchors", "back"], ["column"]),
        helper.make_node("Equal", ["column", "every"], ["chosen"]),
        helper.make_node("Cast", ["chosen"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["number", "last"], ["mask"]),
        helper.make_node("Mul", ["coordinates", "mask"], ["masked"]),
        helper.make_node("Concat", ["mask", "masked"], ["stacked"], axis=2),
        helper.make_node("Reshape", ["stacked", "join"], ["coefficients"]),
        *(helper.make_node("MatMul", ["coefficients", f"head.{name}"], [name]) for name in sizes),
    ]
    return _model(
        nodes,
        {"latents": (TensorProto.FLOAT, ["S", DIMENSION]), "anchors": (TensorProto.INT64, ["S"])},
        {
            **{name: (TensorProto.FLOAT, ["S", size]) for name, size in sizes.items()},
            "coefficients": (TensorProto.FLOAT, ["S", ANCHORS * columns]),
        },
        constants,
    )


def base_model(parameters: Sequence[ParameterSpec], entering: tuple[str, list[int | str]]) -> bytes:
    """`base.onnx`: the perceptron with every weight as an input (S, *shape)."""
    name, shape = entering
    nodes = [
        helper.make_node("Flatten", [name], ["flat"], axis=1),
        helper.make_node("Transpose", ["weights.0.weight"], ["w0"], perm=[0, 2, 1]),
        helper.make_node("Unsqueeze", ["weights.0.bias", "rows"], ["b0"]),
        helper.make_node("MatMul", ["flat", "w0"], ["m0"]),
        helper.make_node("Add", ["m0", "b0"], ["a0"]),
        helper.make_node("Tanh", ["a0"], ["hidden"]),
        helper.make_node("Transpose", ["weights.2.weight"], ["w2"], perm=[0, 2, 1]),
        helper.make_node("Unsqueeze", ["weights.2.bias", "rows"], ["b2"]),
        helper.make_node("MatMul", ["hidden", "w2"], ["m2"]),
        helper.make_node("Add", ["m2", "b2"], ["outputs"]),
    ]
    inputs: Tensors = {name: (TensorProto.FLOAT, shape)}
    inputs |= {p.input: (TensorProto.FLOAT, ["S", *p.shape]) for p in parameters}
    outputs = parameters[-1].shape[0]
    return _model(nodes, inputs, {"outputs": (TensorProto.FLOAT, ["S", "B", outputs])}, {"rows": np.array([1])})


def fixed_model(entering: tuple[str, list[int | str]], weights: Array, last: str, output: str) -> bytes:
    """`trunk.onnx` or `features.onnx`: one fixed layer, of these weights (width, outputs), and an operator."""
    name, shape = entering
    nodes = [
        helper.make_node("Flatten", [name], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "fixed.weight"], ["linear"]),
        helper.make_node(last, ["linear"], [output]),
    ]
    given: Tensors = {output: (TensorProto.FLOAT, ["B", weights.shape[1]])}
    return _model(nodes, {name: (TensorProto.FLOAT, shape)}, given, {"fixed.weight": weights})


def _model(nodes: list[onnx.NodeProto], inputs: Tensors, outputs: Tensors, constants: dict[str, Array]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in outputs.items()],
        [
            numpy_helper.from_array(v if v.dtype.kind == "i" else v.astype(np.float32), name=n)
            for n, v in constants.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def picture() -> bytes:
    """A valid PNG of one grey pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\x00\x80")) + chunk(b"IEND", b"")
    )
