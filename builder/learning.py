"""The learning stages of a build, from encoded data to a calibrated posterior, resumable between them."""

from __future__ import annotations

import dataclasses
import time
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from builder.autoencoder import LatentModel, train_autoencoder
from builder.calibration import DecodedPosterior, Reach, calibrate, choose_reach
from builder.config import BuildConfig
from builder.data import Dataset
from builder.decoder import WeightDecoder
from builder.distributed import from_first, go_on_alone
from builder.fiber import Fibers, walk_fibers
from builder.likelihood import likelihood_of
from builder.map import Anchors, given_anchor, train_anchors
from builder.metric import PredictiveMetric
from builder.network import FunctionalNetwork, NetworkFactory
from builder.preparation import assign_members, choose_device, make_module
from builder.progress import StageBars
from builder.runtime import limit_memory
from builder.trained import Trained
from builder.work import WorkFolder, make_key
from model_store.manifest import LatentPlan

Stage = TypeVar("Stage", Anchors, Fibers)

_OOD_START = 2 / 3


def learn(
    config: BuildConfig,
    dataset: Dataset,
    factory: NetworkFactory,
    bars: StageBars,
    seconds: dict[str, float],
    work: WorkFolder | None = None,
) -> Trained:
    """Learns the posterior from a data set's training rows.

    Args:
        config: every option.
        factory: makes the network.
        bars: where progress is shown.
        seconds: gets the seconds that each stage took.
        work: where finished stages are kept and found again; without one, nowhere. Of several processes the first
            alone has one, and returns.

    Raises:
        ConfigError: an option or the network cannot be used; the message says what to do.
    """
    limit_memory(config.memory)
    device = choose_device(config)
    module = make_module(config, dataset, factory)

    train = torch.from_numpy(~dataset.test)
    x = torch.from_numpy(dataset.x)[train].to(device)
    y = torch.from_numpy(dataset.y)[train].to(device)
    member = assign_members(config, module, y).to(device)
    clock = Clock(seconds)
    key = make_key(
        dataset.fingerprint,
        config.data.model_dump(mode="json", exclude={"file"}),
        config.network.model_dump(mode="json"),
        repr(module),
        [float(p.detach().double().sum()) for p in module.parameters()],
        config.seed,
        device.type,
        torch.__version__,
        version("fiberwalk"),
    )

    full = FunctionalNetwork(module).to(device)
    key = make_key(key, config.map.model_dump())
    with bars.stage("MAP training") as report, clock("map"):
        anchors = from_first(_resume(work, "map", key, Anchors))
        if anchors is None:
            if config.network.weights is not None:
                anchors = given_anchor(full, x, y, member, config.map)
            else:
                anchors = train_anchors(full, factory, x, y, member, config.map, config.seed, report)
            _keep(work, "map", key, anchors)
    anchors = _on(anchors, device)
    network, start = _posterior_network(config, module, full, anchors)
    likelihood = likelihood_of(anchors.noise_std, y, dataset.outputs)
    precision = torch.full((network.weights,), anchors.prior_precision, device=device)

    key = make_key(key, config.fiber.model_dump())
    with bars.stage("Fiber sampling") as report, clock("fiber"):
        fibers = _resume(work, "fiber", key, Fibers)
        go_on_alone(fibers is not None)
        if fibers is None:
            fibers = walk_fibers(network, start, x, y, member, likelihood, precision, config.fiber, config.seed, report)
            go_on_alone()
            _keep(work, "fiber", key, fibers)
    fibers = _on(fibers, device)
    reach = choose_reach(network, fibers, x, y, member)

    key = make_key(key, config.autoencoder.model_dump(), reach.wide)
    with bars.stage("Autoencoder") as report, clock("autoencoder"):
        latent = _resume_latent(work, key, device)
        if latent is None:
            used = slice(0, reach.wide + 1)
            metric = PredictiveMetric(network, start, x, member, likelihood, precision)
            latent = train_autoencoder(
                fibers.nodes[used], fibers.scales[used], config.autoencoder, config.seed, report, metric
            )
            _keep_latent(work, key, latent)

    plans = make_plans(config, fibers, reach)
    posterior = DecodedPosterior(network, latent.decoder, latent.nodes.cpu().numpy())
    with bars.stage("Calibration"), clock("calibration"):
        calibrated = calibrate(posterior, start, plans, x, y, member, config.calibration)
    return Trained(
        config,
        dataset,
        network,
        x,
        y,
        member,
        start,
        fibers,
        reach,
        latent,
        plans,
        posterior,
        calibrated,
        anchors.gradient_evaluations + fibers.gradient_evaluations,
    )


def make_plans(config: BuildConfig, fibers: Fibers, reach: Reach) -> dict[str, LatentPlan]:
    """The plan for predicting, up to the chosen reach, and the one for OOD: its outer part, where samples differ."""
    last = reach.node / reach.wide
    return {
        "predict": LatentPlan(
            name="predict",
            samples=config.calibration.samples,
            stop=last,
            drift_scale=float(fibers.scales[reach.node]),
        ),
        "ood": LatentPlan(
            name="ood",
            samples=config.calibration.ood_samples,
            start=_OOD_START * (last or 1.0),
            stop=1.0,
            drift_scale=float(fibers.scales[reach.wide]),
        ),
    }


class Clock:
    """Takes the seconds of each stage."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    def __call__(self, stage: str) -> Clock:
        self._stage = stage
        return self

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._stage] = round(time.perf_counter() - self._start, 3)


def _posterior_network(
    config: BuildConfig, module: nn.Module, full: FunctionalNetwork, anchors: Anchors
) -> tuple[FunctionalNetwork, Tensor]:
    """The network whose random weights are the posterior's, and the anchors (A, P) in them."""
    device = anchors.weights.device
    network = FunctionalNetwork(module, config.network.posterior).to(device)
    if network.fixed_weights == 0:
        return network, anchors.weights
    # The fixed part is the MAP's: it is written into the module, from which the function takes it.
    with torch.no_grad():
        named = dict(module.named_parameters())
        for name, value in full.unflatten(anchors.weights[0]).items():
            named[name].copy_(value)
    network = FunctionalNetwork(module, config.network.posterior).to(device)
    return network, network.current()[None]


def _resume(work: WorkFolder | None, stage: str, key: str, kind: type[Stage]) -> Stage | None:
    found = work.load(stage, key) if work else None
    if found is None:
        return None
    values: dict[str, Any] = {**found[0], **found[1]}
    return kind(**values)


def _keep(work: WorkFolder | None, stage: str, key: str, result: Anchors | Fibers) -> None:
    if work is None:
        return
    values = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    tensors = {n: v for n, v in values.items() if isinstance(v, Tensor)}
    work.save(stage, key, tensors, {n: v for n, v in values.items() if n not in tensors})


def _on(result: Stage, device: torch.device) -> Stage:
    tensors = {
        f.name: getattr(result, f.name).to(device)
        for f in dataclasses.fields(result)
        if isinstance(getattr(result, f.name), Tensor)
    }
    return dataclasses.replace(result, **tensors)


def _keep_latent(work: WorkFolder | None, key: str, latent: LatentModel) -> None:
    if work is None:
        return
    decoder = latent.decoder
    values: dict[str, Any] = {
        "decoder": decoder.arguments,
        "reconstruction_error": latent.reconstruction_error,
        "basis_error": latent.basis_error,
    }
    work.save("autoencoder", key, {"nodes": latent.nodes, **decoder.state_dict()}, values)


def _resume_latent(work: WorkFolder | None, key: str, device: torch.device) -> LatentModel | None:
    found = work.load("autoencoder", key) if work else None
    if found is None:
        return None
    tensors, values = found
    nodes = tensors.pop("nodes").to(device)
    decoder = WeightDecoder(**values["decoder"]).to(device).requires_grad_(False)
    decoder.load_state_dict(tensors)
    return LatentModel(decoder, nodes, values["reconstruction_error"], values["basis_error"])
