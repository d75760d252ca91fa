"""Answers as the API's documentation describes them. Their names become those of classes in generated clients."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel
from pydantic.json_schema import SkipJsonSchema

from model_store import manifest

Task = Literal["regression", "classification"]
Absent = SkipJsonSchema[None]
"""Of a field that is left out where there is nothing to say, and never null."""


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Answer(_Schema):
    model: Annotated[str, Field(description="Name of the model that answered.")]
    version: Annotated[int, Field(description="Its version.")]
    samples: Annotated[int, Field(description="Posterior samples averaged over.")]
    seed: Annotated[int, Field(description="Seed of their draw.")]


class AlarmCalibration(_Schema):
    """What stands behind p-values and flags."""

    points: Annotated[int, Field(description="Rows of the build, scored by what it had not fitted to them.")]
    lowest_false_alarm_rate: Annotated[float, Field(description="The lowest rate that so many rows can vouch for.")]
    warning: Annotated[
        str | None, Field(description="Says so where they cannot vouch for the rate asked; null where they can.")
    ]


class DetectorScores(_Schema):
    """What one detector says; one entry a row."""

    score: Annotated[list[float], Field(description="Its own score; larger is less familiar.")]
    p_value: Annotated[list[float], Field(description="How likely a familiar row is to score as high.")]


class ColumnDeviation(_Schema):
    """A column of a row, beside what the row's other columns suggest for it."""

    column: Annotated[str, Field(description="Name of the column.")]
    deviation: Annotated[
        float,
        Field(description="Standard deviations from what is suggested; negative where a number is lower than that."),
    ]


class Ood(_Schema):
    """How far rows lie from what the model was trained on; one entry a row."""

    false_alarm_rate: Annotated[float, Field(description="Share of familiar rows that are flagged.")]
    calibration: Annotated[AlarmCalibration, Field(description="What stands behind that share.")]
    score: Annotated[
        list[float], Field(description="Mean surprise of all detectors, in nats; larger is less familiar.")
    ]
    p_value: Annotated[
        list[float], Field(description="How likely a familiar row is to score as high: small is unfamiliar.")
    ]
    flag: Annotated[
        list[bool],
        Field(description="Whether the row is unfamiliar: its p-value is at most the rate, or a category is unseen."),
    ]
    detectors: Annotated[dict[str, DetectorScores], Field(description="By name, what each detector says alone.")]
    columns: Annotated[
        list[list[ColumnDeviation]] | None,
        Field(description="For tables: the columns furthest from what the row's others suggest, the furthest first."),
    ]
    unseen: Annotated[
        list[list[str]] | None,
        Field(
            description="For tables: the row's columns with a category that the model was not built with, for which "
            "it has the least p-value there is; null where no row has any."
        ),
    ]


class LevelCalibration(_Schema):
    """What stands behind intervals, quantiles and prediction sets."""

    points: Annotated[
        int, Field(description="Rows of the build, predicted by networks that it had not trained on them.")
    ]
    highest_level: Annotated[float, Field(description="The highest level that so many rows can vouch for.")]
    warning: Annotated[
        str | None, Field(description="Says so where they cannot vouch for the level asked; null where they can.")
    ]


class RegressionAnswer(_Answer):
    """Predictive distribution of a real target, in its own units; one entry a row.

    A model of the target's logarithm (`log` in what `GET /models/{name}` says of the target) has a log-normal one. Its
    mean lies above its median, where samples disagree much even beyond the interval, as few of them decide it: then go
    by the median.
    """

    task: Annotated[Literal["regression"], Field(description="What the model predicts: a number.")]
    level: Annotated[float, Field(description="Level of the intervals.")]
    calibration: Annotated[LevelCalibration, Field(description="What stands behind them.")]
    mean: Annotated[list[float], Field(description="Predictive mean.")]
    variance: Annotated[list[float], Field(description="Predictive variance, the sum of the next two.")]
    epistemic_variance: Annotated[
        list[float], Field(description="Variance of the mean over posterior samples: what more data would reduce.")
    ]
    aleatoric_variance: Annotated[list[float], Field(description="Variance of the noise: what no data would reduce.")]
    entropy: Annotated[list[float], Field(description="Differential entropy of the predictive mixture, in nats.")]
    interval: Annotated[
        list[tuple[float, float]],
        Field(description="[lo, hi]: of `level` such intervals out of 1, so many hold the target."),
    ]
    median: Annotated[list[float] | Absent, Field(description="Median, of a model of the target's logarithm.")] = None
    log_mean: Annotated[
        list[float] | Absent, Field(description="Mean of the target's logarithm, where the model is of that.")
    ] = None
    log_variance: Annotated[
        list[float] | Absent,
        Field(description="Variance of the logarithm; where it is small, its root is the relative error."),
    ] = None
    log_epistemic_variance: Annotated[
        list[float] | Absent,
        Field(
            description="The part of it that more data would reduce; go by it rather than by `epistemic_variance`, as "
            "with the level that samples disagree about the noise grows too."
        ),
    ] = None
    quantiles: Annotated[
        list[list[float]] | Absent,
        Field(description="The quantiles asked for, in their order; 0.05 and 0.95 are the interval of level 0.9."),
    ] = None
    draws: Annotated[
        list[list[float]] | Absent,
        Field(
            description="Mean that every posterior sample predicts; noise of `aleatoric_variance` is to be added. Of a "
            "model of the logarithm it is multiplied by exp(e - v / 2) instead, e of the variance v = `log_variance` - "
            "`log_epistemic_variance`."
        ),
    ] = None
    ood: Annotated[Ood | Absent, Field(description="How unfamiliar the rows are, where that was asked.")] = None


class ClassificationAnswer(_Answer):
    """Predictive distribution of a class; one entry a row."""

    task: Annotated[Literal["classification"], Field(description="What the model predicts: a class.")]
    level: Annotated[float, Field(description="Level of the prediction sets.")]
    calibration: Annotated[LevelCalibration, Field(description="What stands behind them.")]
    mean: Annotated[list[list[float]], Field(description="Probability of every class, in the model's class order.")]
    variance: Annotated[list[list[float]], Field(description="Variance of each probability over posterior samples.")]
    label: Annotated[list[int | str], Field(description="The likeliest class.")]
    entropy: Annotated[list[float], Field(description="Entropy of the mean, in nats: the total uncertainty.")]
    expected_entropy: Annotated[list[float], Field(description="Mean entropy of the samples: the aleatoric part.")]
    mutual_information: Annotated[list[float], Field(description="Their difference: the epistemic part.")]
    prediction_set: Annotated[
        list[list[int | str]],
        Field(
            description="The classes in question, likeliest first: the true one is among them in `level` of 1 or more."
        ),
    ]
    draws: Annotated[
        list[list[list[float]]] | Absent, Field(description="Class probabilities that every posterior sample predicts.")
    ] = None
    ood: Annotated[Ood | Absent, Field(description="How unfamiliar the rows are, where that was asked.")] = None


class PredictAnswer(RootModel[Annotated[RegressionAnswer | ClassificationAnswer, Field(discriminator="task")]]):
    """Predictive distribution of a number or of a class, as `task` says."""


class OodAnswer(_Answer, Ood):
    """How far rows lie from what the model was trained on; one entry a row."""


class HealthWindow(_Schema):
    """Figures over the latest rows whose targets are known."""

    rows: Annotated[int, Field(description="How many rows.")]
    coverage: Annotated[
        dict[str, float], Field(description="By level: share of targets within intervals or prediction sets.")
    ]
    nll: Annotated[float, Field(description="Mean negative log predictive density or probability, in nats.")]
    ece: Annotated[float | None, Field(description="Expected calibration error of the likeliest class.")]


class OodRate(_Schema):
    """How many rows were unfamiliar."""

    rows: Annotated[int, Field(description="Rows whose familiarity was asked about.")]
    flagged: Annotated[float | None, Field(description="Share of the latest of them that are flagged.")]
    false_alarm_rate: Annotated[float, Field(description="The share that would be flagged of familiar rows.")]


class ModelHealth(_Schema):
    """Whether a model keeps its word, as far as targets were told."""

    model: Annotated[str, Field(description="Name of the model.")]
    version: Annotated[int, Field(description="Its version.")]
    scope: Annotated[
        Literal["shared", "process"],
        Field(description="Told to any server on the same Redis, or to this server process alone."),
    ]
    warning: Annotated[
        str | None, Field(description="Says so where servers share a Redis that does not answer; null otherwise.")
    ]
    state: Annotated[
        Literal["unknown", "kept", "broken"],
        Field(description="Broken: targets missed their intervals or sets too often for it to be chance."),
    ]
    rows: Annotated[int, Field(description="Rows whose targets were told.")]
    alarm_at_row: Annotated[int | None, Field(description="Which of them raised the alarm; null where none did.")]
    evidence: Annotated[float, Field(description="Evidence that targets are missed too often.")]
    evidence_for_alarm: Annotated[float, Field(description="As much of it raises the alarm.")]
    windows: Annotated[list[HealthWindow], Field(description="Over the last 100, 1,000 and 10,000 rows.")]
    ood: Annotated[OodRate, Field(description="How many of those that were asked about were unfamiliar.")]


class FeedbackAnswer(ModelHealth):
    """What was taken, and how the model stands then."""

    taken: Annotated[int, Field(description="Targets of this request.")]


class ErrorDetail(_Schema):
    """What is wrong, where, what was expected and what came."""

    code: Annotated[str, Field(description="Stable and machine-readable; each status names those that it may have.")]
    message: Annotated[str, Field(description="One sentence for a person.")]
    field: Annotated[str | None, Field(description="Path of the value, such as inputs[3][0].")]
    expected: Annotated[str | None, Field(description="What would have been accepted.")]
    got: Annotated[str | None, Field(description="What came, shortened.")]


class ErrorAnswer(_Schema):
    """The one shape of every error."""

    error: Annotated[ErrorDetail, Field(description="What is wrong.")]


class ModelSummary(_Schema):
    """One model of the store."""

    name: Annotated[str, Field(description="What `model` in a request may say.")]
    version: Annotated[int | None, Field(description="Version that the bare name means; null if it cannot be served.")]
    versions: Annotated[list[int], Field(description="All versions.")]
    aliases: Annotated[dict[str, int], Field(description="Aliases and the versions they mean.")]
    task: Annotated[Task | None, Field(description="What is predicted; null if it cannot be served.")]
    target: Annotated[str | None, Field(description="Name of the target; null if it cannot be served.")]
    problem: Annotated[str | None, Field(description="Why the model cannot be served; null if it can.")]


class ModelList(_Schema):
    """The models of the store."""

    models: Annotated[list[ModelSummary], Field(description="By name.")]


class ModelNetwork(_Schema):
    """The network behind a model."""

    description: Annotated[str, Field(description="Its layers in a few words.")]
    form: Annotated[Literal["batched", "scan"], Field(description="How it treats samples: at once, or one by one.")]
    weights: Annotated[int, Field(description="Random weights a sample has.")]
    fixed_weights: Annotated[int, Field(description="Weights that are the same in all samples.")]
    outputs: Annotated[int, Field(description="Numbers that it gives a row.")]


class ModelFigures(_Schema):
    """Figures of one predictor on one part of the data."""

    predictor: Annotated[Literal["posterior", "fiber", "map"], Field(description="Whose they are.")]
    split: Annotated[Literal["test", "out_of_fold"], Field(description="Which rows they were measured on.")]
    rows: Annotated[int, Field(description="How many rows.")]
    values: Annotated[
        dict[str, float | None], Field(description="By name, such as nll and rmse; null where one is not finite.")
    ]


class ModelDetail(_Schema):
    """One version of a model: what it takes, what it predicts, and how well."""

    name: Annotated[str, Field(description="Name of the model.")]
    version: Annotated[int, Field(description="The version that is described.")]
    versions: Annotated[list[int], Field(description="All versions of the model.")]
    aliases: Annotated[dict[str, int], Field(description="Aliases and the versions they mean.")]
    digest: Annotated[str, Field(description="sha256 of the bundle's manifest: equal digests are equal models.")]
    task: Annotated[Task, Field(description="What is predicted.")]
    inputs: Annotated[
        manifest.TableInput | manifest.TensorInput,
        Field(discriminator="kind", description="Columns with kind, unit, categories and range; or a shape."),
    ]
    target: Annotated[
        manifest.RegressionTarget | manifest.ClassificationTarget,
        Field(discriminator="task", description="Name, unit and scale, or classes."),
    ]
    network: Annotated[ModelNetwork, Field(description="The network behind the model.")]
    latent: Annotated[manifest.LatentSpace, Field(description="The latent space and its plans.")]
    calibration: Annotated[
        manifest.RegressionCalibration | manifest.ClassificationCalibration,
        Field(discriminator="task", description="Noise, or temperature and dispersion."),
    ]
    ood: Annotated[manifest.OodDetection, Field(description="The OOD detectors, their false alarm rate and points.")]
    metrics: Annotated[list[ModelFigures], Field(description="Figures, each with the part of the data that it is of.")]
    build: Annotated[manifest.BuildInfo, Field(description="When and from what the bundle was built.")]
    card: Annotated[str | None, Field(description="The model card, in Markdown; null where there is none.")]
    files: Annotated[list[str], Field(description="What /models/NAME/files/FILE gives: pictures and the card.")]


class Liveness(_Schema):
    """The process answers."""

    status: Annotated[Literal["ok"], Field(description="Always the same.")]


class Problem(_Schema):
    """What cannot be served or followed."""

    model: Annotated[str | None, Field(description="The version or alias; null where it is the whole store.")]
    code: Annotated[str, Field(description="As of an error: stable and machine-readable.")]
    message: Annotated[str, Field(description="Why, and what to do.")]


class Readiness(_Schema):
    """Whether requests should be sent here."""

    status: Annotated[
        Literal["loading", "ready", "failed"], Field(description="Ready is the only one with status 200.")
    ]
    models: Annotated[list[str], Field(description="NAME@VERSION of every version loaded and warmed.")]
    problems: Annotated[
        list[Problem],
        Field(description="Versions and aliases that cannot be served, and why; without a model: the store itself."),
    ]
