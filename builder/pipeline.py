"""A whole build: from data to a published bundle, stage by stage, resumable between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from builder.config import BuildConfig
from builder.data import RawData, prepare, read_file
from builder.diagnostics import Finding, examine
from builder.distributed import first
from builder.evaluation import evaluate, predict_test
from builder.groups import uneven
from builder.learning import Clock, learn
from builder.network import NetworkFactory
from builder.preparation import make_factory, standardized
from builder.progress import StageBars
from builder.publication import publish
from builder.trained import Trained
from builder.work import WorkFolder
from model_store.bundle import Bundle
from model_store.errors import ConfigError
from model_store.logarithm import MOST_NOISE
from model_store.manifest import Metrics, RegressionTarget, TableInput
from model_store.store import ModelStore
from model_store.writing import why_not_writable


@dataclass(frozen=True)
class BuildResult:
    """What a build returns.

    Attributes:
        bundle: the published bundle.
        metrics: as in its manifest.
        findings: failure signatures seen, and promises that parts of the rows do not keep, with advice.
    """

    bundle: Bundle
    metrics: list[Metrics]
    findings: list[Finding]


def refuse_unwritable(config: BuildConfig) -> None:
    """Tells before a build what it would fail for after hours.

    Raises:
        ConfigError: finished stages could not be kept.
        StoreError: the store cannot be written.
    """
    folder = _work_folder(config)
    try:
        why = why_not_writable(folder)
    except OSError as e:
        why = e.strerror
    if why is not None:
        raise ConfigError(
            f"Finished stages cannot be kept in {str(folder)!r} ({why}); name another folder with --work.", field="work"
        )
    ModelStore(config.store).refuse_unwritable(config.name)


def _work_folder(config: BuildConfig) -> Path:
    return config.work or Path(".fiberwalk") / config.name


def run_build(
    config: BuildConfig,
    raw: RawData | None = None,
    factory: NetworkFactory | None = None,
    bars: StageBars | None = None,
) -> BuildResult:
    """Builds and publishes a bundle; in a `builder.distributed.joined` block together with other processes, of which
    the first alone returns.

    Args:
        config: every option.
        raw: the data, where it is not to be read from `config.data.file`.
        factory: makes the network, where it is not named in `config.network.factory`.
        bars: where progress is shown; nowhere by default.

    Raises:
        DataError, ConfigError: the data or an option cannot be used; the message says what to do.
        StoreError: the bundle cannot be published.
    """
    bars = bars or StageBars(quiet=True)
    raw = raw if raw is not None else read_file(config.data)
    dataset = prepare(raw, config.data, standardized(config), config.seed, config.network.weights is not None)
    for note in dataset.notes:
        bars.say(note)
    work = WorkFolder(_work_folder(config)) if first() else None
    seconds: dict[str, float] = {}
    trained = learn(config, dataset, factory or make_factory(config, dataset), bars, seconds, work)
    _refuse_no_logarithm(trained)
    with bars.stage("Test metrics"), Clock(seconds)("evaluation"):
        test = predict_test(trained)
        metrics = evaluate(trained, test)
    calibrated = trained.calibrated
    findings = [
        *examine(trained.cross_fitted, trained.reach, trained.latent, calibrated, trained.detection.described),
        *uneven(
            calibrated.unseen,
            dataset.target,
            given=config.network.weights is not None,
            learned=calibrated.noise is not None if isinstance(dataset.inputs, TableInput) else None,
        ),
    ]
    for finding in findings:
        bars.say(str(finding), "yellow")
    told = [*dataset.notes, *trained.notes, *map(str, findings)]
    with bars.stage("Export"):
        bundle = publish(trained, metrics, told, seconds, test)
    for warning in bundle.manifest.build.warnings[len(told) :]:
        bars.say(warning)
    if work is not None and config.work is None:
        work.clear()
    return BuildResult(bundle, metrics, findings)


def _refuse_no_logarithm(trained: Trained) -> None:
    target = trained.dataset.target
    if not isinstance(target, RegressionTarget) or not target.log:
        return
    noise = trained.calibrated.spread * target.scale
    if noise > MOST_NOISE:
        raise ConfigError(
            "What is predicted is no logarithm of the target: given weights have to predict it, and other "
            "networks want other options of the training.",
            field="data.log_target",
            expected=f"logarithms that are off by {MOST_NOISE:g} at most (standard deviation, unseen rows)",
            got=f"{noise:.3g}",
        )
