"""Models with random weights, made by the builder's export and opened by the server's code.

Lengths: B rows, P weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as save_arrays
from torch import nn

from benchmarks.networks import lenet5, resnet20
from builder.decoder import WeightDecoder
from builder.export import export_decoder, export_fixed, export_network
from builder.mixing import matching_decoder
from builder.network import MLP, FunctionalNetwork
from model_store.manifest import (
    ARRAYS_FILE,
    DECODER_FILE,
    BuildInfo,
    Calibration,
    ClassificationCalibration,
    ClassificationTarget,
    LatentPlan,
    LatentSpace,
    Manifest,
    OodDetection,
    RegressionCalibration,
    RegressionTarget,
    Target,
    TensorInput,
)
from model_store.store import ModelStore
from service.model import ServedModel

Float32 = NDArray[np.float32]

_POINTS, _SAMPLES = 999, 32


@dataclass(frozen=True)
class Case:
    """A network to serve.

    Attributes:
        make: the network with random weights.
        shape: of one input row.
        classes: how many it tells apart; 0 for a regression.
        rank: of the decoder's head; a wide first layer is mixed of so many columns, and one, where they are few.
        dimension: of the latent space, k.
        posterior: a regular expression, which weights are random.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int
    rank: int = 32
    dimension: int = 4
    posterior: str = ".*"


CASES: Final = {
    "MLP 13-50-1": Case(lambda: MLP(13, [50], 1, "tanh"), (13,), 0),
    "MLP 784-256-128-10": Case(lambda: MLP(784, [256, 128], 10), (784,), 10),
    "MLP 784-256-128-10, rank 8": Case(lambda: MLP(784, [256, 128], 10), (784,), 10, rank=8),
    "LeNet-5": Case(lenet5, (1, 28, 28), 10),
    "ResNet-20": Case(resnet20, (3, 32, 32), 10),
    "ResNet-20, last block": Case(resnet20, (3, 32, 32), 10, posterior=r"(11|14)\..*"),
    "ResNet-20, last layer": Case(resnet20, (3, 32, 32), 10, posterior=r"14\..*"),
}


def rows_of(case: Case, rows: int) -> Float32:
    """Encoded rows (B, *shape)."""
    return np.random.default_rng(rows).normal(size=(rows, *case.shape)).astype(np.float32)


def sent_rows(case: Case, rows: int) -> list[Any]:
    """Rows (B, *shape) of few digits, as people send them in JSON."""
    values: list[Any] = rows_of(case, rows).astype(np.float64).round(4).tolist()
    return values


def serve_beside(case: Case, store: Path) -> tuple[ServedModel, ort.InferenceSession]:
    """As `serve`, and the network with the anchor's weights as one ONNX graph."""
    return serve(case, store), deterministic(_module(case), case)


def _module(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case.make().eval()


def serve(case: Case, store: Path) -> ServedModel:
    """The model as the server holds it, on one thread; published in the store."""
    module = _module(case)
    network = FunctionalNetwork(module, case.posterior)
    decoder = WeightDecoder(anchors=1, dimension=case.dimension, hidden=16, rank=case.rank, weights=network.weights)
    torch.nn.init.normal_(decoder.table, std=case.dimension**-0.5)
    theta = network.current()
    # Samples within a tenth of the anchor's own size, as fibers are.
    decoder.set_head(theta[None], 0.1 * theta.square().mean().sqrt() * torch.randn(1, case.rank, network.weights))
    exported = export_network(network, torch.from_numpy(rows_of(case, 4)), decoder.head, _SAMPLES)
    decoder = matching_decoder(decoder, network, exported.mixture)
    nodes = np.random.default_rng(0).normal(size=(1, 8, 2, case.dimension)).astype(np.float32)
    scores = np.sort(np.random.default_rng(1).uniform(size=_POINTS))
    arrays = {"nodes": nodes, "conformity_scores": scores, "ood_scores": scores[None], "ood_combined": scores}
    files = {
        DECODER_FILE: export_decoder(decoder, exported.spec.parameters),
        **exported.files,
        ARRAYS_FILE: save_arrays(arrays),
    }
    target: Target = RegressionTarget(name="y", mean=0.0, scale=1.0)
    calibration: Calibration = RegressionCalibration(noise_std=0.3, points=_POINTS)
    if case.classes:
        target = ClassificationTarget(name="y", classes=list(range(case.classes)))
        calibration = ClassificationCalibration(temperature=1.0, points=_POINTS)
    manifest = Manifest(
        name="random",
        version=1,
        inputs=TensorInput(shape=list(case.shape)),
        target=target,
        network=exported.spec,
        latent=LatentSpace(
            anchors=1,
            trajectories=8,
            steps=1,
            dimension=case.dimension,
            rank=case.rank,
            plans={"predict": LatentPlan(name="predict", samples=_SAMPLES, drift_scale=0.1)},
        ),
        calibration=calibration,
        ood=OodDetection(
            detectors=["mutual_information" if case.classes else "epistemic_to_noise"],
            false_alarm_rate=0.05,
            points=_POINTS,
        ),
        build=BuildInfo(
            created=datetime.now(UTC),
            config={},
            libraries={},
            data_fingerprint="0" * 64,
            data_rows=_POINTS,
            seed=0,
            device="cpu",
        ),
    )
    return ServedModel(ModelStore(store).publish(manifest, files), threads=1)


def deterministic(module: nn.Module, case: Case) -> ort.InferenceSession:
    """The same network as torch exports it, its weights constants that ONNX Runtime may lay out as it likes."""
    return session_of(export_fixed(module, torch.from_numpy(rows_of(case, 1))))


def session_of(data: bytes) -> ort.InferenceSession:
    """A graph in ONNX Runtime, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
