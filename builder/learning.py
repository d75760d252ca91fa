"""The learning stages of a build, from encoded data to a calibrated posterior, resumable between them."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from builder.augmentation import Augmentation, refuse_other_than_images
from builder.autoencoder import LatentModel, train_autoencoder
from builder.calibration import DecodedPosterior, SampledPosterior, calibrate, choose_reach, drawn_of_each
from builder.config import BuildConfig, FiberConfig, MapConfig
from builder.data import Dataset
from builder.decoder import WeightDecoder
from builder.detection import fit_detectors
from builder.distributed import first, from_first, go_on_alone
from builder.features import FeatureNetworks
from builder.fiber import Fibers, walk_fibers
from builder.fiber_plan import work_of
from builder.fingerprint import network_digest
from builder.likelihood import Likelihood, likelihood_of
from builder.map import Anchors, given_anchor, refit_anchors, train_anchors
from builder.metric import PredictiveMetric
from builder.narrowing import narrow_first_layers
from builder.network import FunctionalNetwork, NetworkFactory
from builder.plans import make_plan, settled, with_enough_samples, with_enough_samples_of_classes
from builder.preparation import assign_members, choose_device, default_memory, make_module
from builder.progress import StageBars, StepReport
from builder.runtime import limit_memory
from builder.trained import Trained
from builder.trial import notes_on, try_network
from builder.work import WorkFolder, keep, make_key, on_device, resume
from model_store.errors import ConfigError
from model_store.manifest import TableInput

_ROWS_OF_A_DIGEST = 32


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
        seconds: gets the seconds that each stage took, whenever it was run.
        work: where finished stages are kept and found again; without one, nowhere. Of several processes the first
            alone has one, and returns.

    Raises:
        ConfigError: an option or the network cannot be used; the message says what to do.
    """
    device = choose_device(config)
    limit_memory(config.memory or default_memory(device))
    module, given = make_module(config, dataset, factory), config.network.weights is not None
    refuse_other_than_images(config.map.augment, dataset.x.shape[1:])
    train = torch.from_numpy(~dataset.test)
    x = torch.from_numpy(dataset.x)[train].to(device)
    y = torch.from_numpy(dataset.y)[train].to(device)
    member = assign_members(config, module, y).to(device)
    refit = config.map.refit and not given  # given weights are answered with as they are
    count = _served(config.map, len(member), refit)
    with bars.stage("Trial"):
        try_network(module, config.network.posterior, given, dataset)
    notes = notes_on(module, given, dataset)
    for note in notes:
        bars.say(note)
    clock = Clock(seconds, work)
    key = make_key(
        dataset.fingerprint,
        config.data.model_dump(mode="json", exclude={"file"}),
        config.network.model_dump(mode="json"),
        network_digest(module, torch.from_numpy(dataset.x[:_ROWS_OF_A_DIGEST])),
        config.seed,
        device.type,
        torch.__version__,
        version("fiberwalk"),
    )

    full = FunctionalNetwork(module).to(device)
    key = trained_key = make_key(key, config.map.model_dump(exclude={"refit", "served"}), len(member))
    with bars.stage("MAP training") as report, clock("map"):

        def first_anchors() -> Anchors:
            if given:
                return given_anchor(full, x, y, member, config.map)
            return train_anchors(full, factory, x, y, member, config.map, config.seed, report)

        anchors = _trained(work, "map", key, device, first_anchors)
    own = _Start.of(config, module, full, anchors, member, y, dataset.outputs)
    work_a_walk = work_of(config.fiber, len(member)) / (2 if refit else 1)
    fiber = config.fiber.model_copy(update={"work": work_a_walk})
    # As many fibers in all as around those that are served: what is judged then takes no more work than what is served.
    each = None if fiber.trajectories is None else max(1, round(fiber.trajectories * count / len(member)))
    judging = fiber.model_copy(update={"trajectories": each})

    key = make_key(key, judging.model_dump())
    with bars.stage("Fiber sampling") as report, clock("fiber"):
        cross_fitted = _walked(
            work, "fiber", key, device, lambda: own.walk(x, y, judging, config.map.augment, config.seed, report)
        )
    reach = from_first(
        choose_reach(own.network, cross_fitted, x, y, member, count) if first() and cross_fitted else None
    )
    assert reach is not None

    served, fibers, evaluations = own, cross_fitted, anchors.gradient_evaluations
    if refit:
        key = make_key(key, reach.used, count, fiber.trajectories)
        with bars.stage("MAP, all rows") as report, clock("map"):
            whole = _trained(
                work,
                "refit",
                make_key(trained_key, count),
                device,
                lambda: refit_anchors(full, factory, anchors, x, y, config.map, config.seed, report),
            )
        evaluations += whole.gradient_evaluations
        served = _Start.of(config, module, full, whole, torch.ones_like(member[:count]), y, dataset.outputs)
        with bars.stage("Fibers, all rows") as report, clock("fiber"):
            fibers = _walked(
                work,
                "refit_fiber",
                key,
                device,
                lambda: served.walk(x, y, fiber, config.map.augment, config.seed, report, reach.used),
            )
    go_on_alone()
    assert cross_fitted is not None and fibers is not None
    used = slice(0, reach.used + 1)

    key = make_key(key, config.autoencoder.model_dump(exclude={"first_rank"}), reach.used)
    with bars.stage("Autoencoder") as report, clock("autoencoder"):
        latent = _resume_latent(work, key, device)
        if latent is None:
            metric = PredictiveMetric(
                served.network, served.anchors, x, served.member, served.likelihood, served.precision
            )
            latent = train_autoencoder(
                fibers.nodes[used], fibers.scales[used], config.autoencoder, config.seed, report, metric
            )
            _keep_latent(work, key, latent)
        plan = make_plan(config.calibration, fibers, reach)
        columns = config.autoencoder.first_rank
        decoder = narrow_first_layers(served.network, latent.decoder, latent.nodes, x, served.likelihood, plan, columns)
        latent = dataclasses.replace(latent, decoder=decoder)

    posterior = DecodedPosterior(served.network, latent.decoder, latent.nodes.cpu().numpy())
    with bars.stage("Calibration"), clock("calibration"):
        judged = SampledPosterior.of(own.network, cross_fitted, reach.used) if refit else posterior
        wider = SampledPosterior.of(own.network, cross_fitted, reach.shown) if reach.shown > reach.used else None
        known = settled(config.calibration, served.network)
        calibrated = calibrate(
            judged,
            own.anchors,
            plan,
            x,
            y,
            member,
            wider,
            count,
            drawn_of_each(plan, count) if known else None,
            isinstance(dataset.inputs, TableInput) and config.calibration.noise == "learned",
        )
        if not known:
            if y.is_floating_point():
                plan = with_enough_samples(plan, posterior, x, calibrated.noise_std)
            else:
                spread, dispersion = calibrated.spread, calibrated.dispersion
                plan = with_enough_samples_of_classes(plan, judged, x, member, spread, dispersion)
        networks = FeatureNetworks(full, anchors.weights)
        detection = fit_detectors(
            judged,
            plan,
            calibrated.spread,
            x,
            y,
            member,
            dataset.inputs,
            config.calibration,
            networks,
            posterior if refit else None,
        )
    return Trained(
        config,
        dataset,
        served.network,
        x,
        y,
        member,
        anchors,
        cross_fitted,
        served.anchors,
        fibers,
        reach,
        latent,
        {plan.name: plan},
        posterior,
        calibrated,
        detection,
        networks,
        evaluations,
        notes,
    )


def _served(config: MapConfig, anchors: int, refit: bool) -> int:
    """How many of the anchors are served. Raises ConfigError where it cannot be as many as asked."""
    if config.served is None or config.served == anchors:
        return anchors
    if not refit:
        raise ConfigError(
            "Anchors that are not trained anew on all rows are all served; leave map.served out, or set map.refit.",
            field="map.served",
            expected=f"{anchors}, or none",
            got=str(config.served),
        )
    if config.served > anchors:
        raise ConfigError(
            "No more anchors can be served than there are; raise map.anchors.",
            field="map.served",
            expected=f"at most {anchors}",
            got=str(config.served),
        )
    return config.served


@dataclass(frozen=True)
class _Start:
    """What a walk starts from: anchors (A, P) in the network's random weights, and the rows (A, n) of each."""

    network: FunctionalNetwork
    anchors: Tensor
    member: Tensor
    likelihood: Likelihood
    precision: Tensor

    @classmethod
    def of(
        cls,
        config: BuildConfig,
        module: nn.Module,
        full: FunctionalNetwork,
        anchors: Anchors,
        member: Tensor,
        y: Tensor,
        outputs: int,
    ) -> _Start:
        network, start = _posterior_network(config, module, full, anchors)
        precision = torch.full((network.weights,), anchors.prior_precision, device=start.device)
        return cls(network, start, member, likelihood_of(anchors.noise_std, y, outputs), precision)

    def walk(
        self,
        x: Tensor,
        y: Tensor,
        config: FiberConfig,
        augment: Sequence[Augmentation],
        seed: int,
        report: StepReport,
        last: int | None = None,
    ) -> Fibers:
        return walk_fibers(
            self.network,
            self.anchors,
            x,
            y,
            self.member,
            self.likelihood,
            self.precision,
            config,
            seed,
            report,
            last,
            augment,
        )


class Clock:
    """Takes the seconds of each stage, of all its parts together, those that an earlier start has run included."""

    def __init__(self, seconds: dict[str, float], work: WorkFolder | None = None) -> None:
        self._seconds, self._work = seconds, work

    def __call__(self, stage: str) -> Clock:
        self._stage = stage
        return self

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(self, *_: object) -> None:
        taken = self._now() - self._start
        self._seconds[self._stage] = round(self._seconds.get(self._stage, 0.0) + taken, 3)

    def _now(self) -> float:
        return time.perf_counter() + (self._work.spared if self._work else 0.0)


def _posterior_network(
    config: BuildConfig, module: nn.Module, full: FunctionalNetwork, anchors: Anchors
) -> tuple[FunctionalNetwork, Tensor]:
    """The network whose random weights are the posterior's, and the anchors (A, P) in them."""
    device = anchors.weights.device
    network = FunctionalNetwork(module, config.network.posterior).to(device)
    if network.parameters == full.parameters:
        return network, anchors.weights
    # The fixed part is the MAP's: it is written into the module, from which the function takes it.
    module = copy.deepcopy(module)
    with torch.no_grad():
        named = dict(module.named_parameters())
        for name, value in full.unflatten(anchors.weights[0]).items():
            named[name].copy_(value)
    network = FunctionalNetwork(module, config.network.posterior).to(device)
    return network, network.current()[None]


def _trained(
    work: WorkFolder | None, stage: str, key: str, device: torch.device, train: Callable[[], Anchors]
) -> Anchors:
    """Anchors of an earlier start, or new ones; of several processes all have them."""
    found = from_first(resume(work, stage, key, Anchors))
    if found is None:
        found = train()
        keep(work, stage, key, found)
    return on_device(found, device)


def _walked(
    work: WorkFolder | None, stage: str, key: str, device: torch.device, walk: Callable[[], Fibers]
) -> Fibers | None:
    """Fibers of an earlier start, which of several processes the first alone has, or new ones, which all have."""
    found = resume(work, stage, key, Fibers)
    if from_first(found is not None):
        return on_device(found, device) if found is not None else None
    found = walk()
    keep(work, stage, key, found)
    return found


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
