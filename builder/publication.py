"""From trained stages to a published bundle: ONNX files, arrays, manifest, pictures and model card."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as save_arrays

from builder.evaluation import LEVEL, TestPredictions, learned_units, predict_test
from builder.export import SCALE_ROWS, export_decoder, export_features, export_network
from builder.mixing import matching_decoder
from builder.page import make_page
from builder.predictive import conformal_quantile, sample_outputs
from builder.report import ReportData, make_card, make_pictures
from builder.trained import Trained
from builder.unfamiliar import stand_in_scores, takes
from builder.worst import worst_rows
from model_store.bundle import Bundle
from model_store.encoding import TableEncoder
from model_store.manifest import (
    ARRAYS_FILE,
    CARD_FILE,
    DECODER_FILE,
    FEATURES_FILE,
    OF_FEATURES,
    REPORT_FILE,
    BuildInfo,
    ClassificationCalibration,
    LatentSpace,
    Manifest,
    Metrics,
    NetworkSpec,
    NumericColumn,
    RegressionCalibration,
    RegressionTarget,
    TableInput,
)
from model_store.store import ModelStore

_CURVE_POINTS = 301
_CURVE_SAMPLES = 256
_PLACES: dict[str, Any] = {"store": True, "work": True, "data": {"file"}, "network": {"weights"}}
_LIBRARIES = ("fiberwalk", "torch", "onnx", "numpy", "pandas", "safetensors")


def publish(
    trained: Trained,
    metrics: list[Metrics],
    warnings: list[str],
    seconds: dict[str, float],
    test: TestPredictions | None = None,
) -> Bundle:
    """Exports everything and publishes it as the next version of `trained.config.name`.

    Args:
        test: what `predict_test` gives, where that is known already.

    Raises:
        ConfigError: the network cannot be exported, or ONNX computes something else than torch.
        StoreError: the store refuses it.
    """
    decoder = trained.latent.decoder
    example = trained.x[:SCALE_ROWS].cpu()
    exported = export_network(trained.network, example, decoder.head, trained.plans["predict"].samples)
    decoder = matching_decoder(decoder, trained.network, exported.mixture)
    files = {DECODER_FILE: export_decoder(decoder, exported.spec.parameters), **exported.files}
    if OF_FEATURES & set(trained.detection.described.detectors):
        files[FEATURES_FILE] = export_features(trained.features, example, exported)
    arrays: dict[str, NDArray[Any]] = {"nodes": np.ascontiguousarray(trained.posterior.nodes)}
    scores = trained.calibrated.conformity_scores.cpu().numpy()
    arrays |= {"conformity_scores": scores, **trained.detection.arrays}
    if trained.calibrated.noise is not None:
        arrays |= trained.calibrated.noise.shape.arrays()
    files[ARRAYS_FILE] = save_arrays(arrays)
    stand_ins, left_out = stand_in_scores(trained)
    for kind in left_out:
        note = f"The network does not take stand-ins for unfamiliar rows ({kind}): the report shows none of them."
        warnings = [*warnings, note]
    manifest = _manifest(trained, exported.spec, metrics, warnings, seconds)
    data = _report_data(trained, manifest, scores, stand_ins, test or predict_test(trained))
    pictures = make_pictures(data)
    files |= pictures
    card = make_card(manifest, pictures)
    report = "\n".join([card, worst_rows(manifest.target, data.test_rows, data.predictions)])
    files |= {CARD_FILE: card.encode(), REPORT_FILE: make_page(manifest.name, report, pictures).encode()}
    return ModelStore(trained.config.store).publish(manifest, files)


def _manifest(
    trained: Trained, network: NetworkSpec, metrics: list[Metrics], warnings: list[str], seconds: dict[str, float]
) -> Manifest:
    config, dataset, calibrated = trained.config, trained.dataset, trained.calibrated
    target = dataset.target
    calibration: RegressionCalibration | ClassificationCalibration
    if isinstance(target, RegressionTarget):
        noise = calibrated.noise_std(trained.x) * target.scale
        calibration = RegressionCalibration(
            noise_std=calibrated.spread * target.scale,
            noise_range=None if calibrated.noise is None else (float(noise.min()), float(noise.max())),
            points=calibrated.points,
        )
    else:
        calibration = ClassificationCalibration(
            temperature=calibrated.spread, dispersion=calibrated.dispersion, points=calibrated.points
        )
    anchors, trajectories, points, dimension = trained.posterior.nodes.shape
    return Manifest(
        name=config.name,
        version=1,
        inputs=dataset.inputs,
        target=target,
        network=network,
        latent=LatentSpace(
            anchors=anchors,
            trajectories=trajectories,
            steps=points - 1,
            dimension=dimension,
            rank=trained.latent.decoder.rank,
            plans=trained.plans,
        ),
        calibration=calibration,
        ood=trained.detection.described,
        metrics=metrics,
        build=BuildInfo(
            created=datetime.now(UTC),
            # Where files lie on the machine of the build is nobody else's business.
            config=config.model_dump(mode="json", exclude=_PLACES),
            libraries={"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
            data_fingerprint=dataset.fingerprint,
            data_rows=len(dataset.y),
            seed=config.seed,
            device=trained.x.device.type,
            seconds=seconds,
            warnings=warnings,
            given_weights=config.network.weights is not None,
        ),
    )


def _report_data(
    trained: Trained,
    manifest: Manifest,
    scores: NDArray[Any],
    stand_ins: dict[str, NDArray[Any]],
    test: TestPredictions,
) -> ReportData:
    target = trained.dataset.target
    predictions: dict[str, NDArray[Any]] = {}
    if isinstance(target, RegressionTarget):
        assert test.mean is not None and test.std is not None and test.epistemic_std is not None
        predictions = {
            "y": learned_units(test.y, target),
            "mean": learned_units(test.mean, target),
            "std": test.std.cpu().numpy() * target.scale,
            "epistemic_std": test.epistemic_std.cpu().numpy() * target.scale,
        }
    elif test.probabilities is not None:
        predictions = {"y": test.y.cpu().numpy(), "probabilities": test.probabilities.cpu().numpy()}
    fibers = trained.cross_fitted
    return ReportData(
        manifest=manifest,
        predictions=predictions,
        test_rows=np.flatnonzero(trained.dataset.test),
        ood_scores=trained.detection.arrays["ood_combined"],
        stand_ins=stand_ins,
        conformity_scores=scores,
        fiber_loss=fibers.loss.cpu().numpy(),
        scales=fibers.scales.cpu().numpy(),
        reach=trained.reach.node,
        out_of_fold=trained.reach.out_of_fold,
        latents=trained.posterior.nodes,
        curve=posterior_curve(trained),
    )


def posterior_curve(trained: Trained) -> dict[str, NDArray[Any]] | None:
    """The posterior over the one input column, a third of its range beyond the data on either side.

    Returns:
        What `builder.pictures.posterior` takes; None where there is not one numeric column and a real target, or the
        network does not take numbers beyond the data.
    """
    inputs, target = trained.dataset.inputs, trained.dataset.target
    if not isinstance(inputs, TableInput) or not isinstance(target, RegressionTarget) or len(inputs.columns) != 1:
        return None
    column = inputs.columns[0]
    if not isinstance(column, NumericColumn) or column.minimum is None or column.maximum is None:
        return None
    margin = (column.maximum - column.minimum) / 3 or 1.0
    grid = np.linspace(column.minimum - margin, column.maximum + margin, _CURVE_POINTS)
    x = torch.from_numpy(TableEncoder(inputs).encode_matrix(grid[:, None])).to(trained.x.device)
    if not takes(trained, x):
        return None
    weights, _ = trained.posterior.draw(trained.plans["predict"], _CURVE_SAMPLES)
    samples = learned_units(sample_outputs(trained.network, weights, x)[..., 0], target)
    noise = trained.calibrated.noise_std(x).double().cpu().numpy() * target.scale
    mean, epistemic = samples.mean(0), samples.std(0)
    std = np.sqrt(epistemic**2 + noise**2)
    half = conformal_quantile(trained.calibrated.conformity_scores, LEVEL) * std
    return {
        "grid": grid,
        "map": learned_units(sample_outputs(trained.network, trained.anchors, x)[..., 0], target),
        "samples": samples,
        "mean": mean,
        "std": std,
        "epistemic_std": epistemic,
        "lower": mean - half,
        "upper": mean + half,
        "x_train": trained.x[:, 0].double().cpu().numpy() * column.scale + column.mean,
        "y_train": learned_units(trained.y, target),
    }
