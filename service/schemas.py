"""Requests and answers as the API's documentation describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.protocol import DEFAULT_LEVEL, MAX_SEED

Row = Annotated[
    list[Any] | dict[str, float | str],
    Field(description="Values in the model's column order, or keyed by column name; for arrays, nested or flat."),
]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class OodRequest(_Schema):
    """Rows to be scored."""

    inputs: Annotated[list[Row], Field(min_length=1, description="The rows.")]
    model: Annotated[
        str | None,
        Field(
            description="NAME (its champion or newest version), NAME@VERSION or NAME@ALIAS; optional with one model."
        ),
    ] = None
    samples: Annotated[
        int | None, Field(ge=1, description="Posterior samples averaged over; unset, the model's latent plan says.")
    ] = None
    seed: Annotated[
        int, Field(ge=0, le=MAX_SEED, description="Which samples are drawn; one seed gives one answer.")
    ] = 0


class PredictRequest(OodRequest):
    """Rows to be predicted."""

    level: Annotated[
        float, Field(gt=0, lt=1, description="Probability with which an interval shall cover the target.")
    ] = DEFAULT_LEVEL


class _Answer(_Schema):
    model: Annotated[str, Field(description="Name of the model that answered.")]
    version: Annotated[int, Field(description="Its version.")]
    samples: Annotated[int, Field(description="Posterior samples averaged over.")]
    seed: Annotated[int, Field(description="Seed of their draw.")]


class RegressionAnswer(_Answer):
    """Predictive distribution of a real target, in its own units; one entry a row."""

    level: Annotated[float, Field(description="Level of the intervals.")]
    mean: Annotated[list[float], Field(description="Predictive mean.")]
    variance: Annotated[list[float], Field(description="Predictive variance, the sum of the next two.")]
    epistemic_variance: Annotated[
        list[float], Field(description="Variance of the mean over posterior samples: what more data would reduce.")
    ]
    aleatoric_variance: Annotated[list[float], Field(description="Variance of the noise: what no data would reduce.")]
    entropy: Annotated[list[float], Field(description="Differential entropy of the predictive mixture, in nats.")]
    interval: Annotated[
        list[tuple[float, float]], Field(description="[lo, hi], calibrated on out-of-fold predictions.")
    ]


class ClassificationAnswer(_Answer):
    """Predictive distribution of a class; one entry a row."""

    level: Annotated[float, Field(description="As asked; classification has no intervals.")]
    mean: Annotated[list[list[float]], Field(description="Probability of every class, in the model's class order.")]
    variance: Annotated[list[list[float]], Field(description="Variance of each probability over posterior samples.")]
    label: Annotated[list[int | str], Field(description="The likeliest class.")]
    entropy: Annotated[list[float], Field(description="Entropy of the mean, in nats: the total uncertainty.")]
    expected_entropy: Annotated[list[float], Field(description="Mean entropy of the samples: the aleatoric part.")]
    mutual_information: Annotated[list[float], Field(description="Their difference: the epistemic part.")]


class OodAnswer(_Answer):
    """How far rows lie from what the model was trained on; one entry a row."""

    score: Annotated[list[float], Field(description="Epistemic score; larger is farther out.")]
    threshold: Annotated[list[float], Field(description="Score above which a row is flagged.")]
    flag: Annotated[list[bool], Field(description="Whether the score exceeds the threshold.")]


class ErrorDetail(_Schema):
    """What is wrong, where, what was expected and what came."""

    code: Annotated[str, Field(description="Stable and machine-readable.")]
    message: Annotated[str, Field(description="One sentence for a person.")]
    field: Annotated[str | None, Field(description="Path of the value, such as inputs[3][0].")]
    expected: Annotated[str | None, Field(description="What would have been accepted.")]
    got: Annotated[str | None, Field(description="What came, shortened.")]


class ErrorAnswer(_Schema):
    """The one shape of every error."""

    error: ErrorDetail


class ModelSummary(_Schema):
    """One model of the store."""

    name: Annotated[str, Field(description="What `model` in a request may say.")]
    version: Annotated[int | None, Field(description="Version that the bare name means; null if it cannot be served.")]
    versions: Annotated[list[int], Field(description="All versions.")]
    aliases: Annotated[dict[str, int], Field(description="Aliases and the versions they mean.")]
    task: Annotated[Literal["regression", "classification"] | None, Field(description="What is predicted.")]
    target: Annotated[str | None, Field(description="Name of the target.")]
    problem: Annotated[str | None, Field(description="Why the model cannot be served, if it cannot.")] = None


class ModelList(_Schema):
    """The models of the store."""

    models: list[ModelSummary]


class ModelDetail(_Schema):
    """One version of a model: what it takes, what it predicts, and how well."""

    name: str
    version: int
    versions: Annotated[list[int], Field(description="All versions of the model.")]
    aliases: Annotated[dict[str, int], Field(description="Aliases and the versions they mean.")]
    digest: Annotated[str, Field(description="sha256 of the bundle's manifest: equal digests are equal models.")]
    task: Literal["regression", "classification"]
    inputs: Annotated[dict[str, Any], Field(description="Columns with kind, unit, categories and range; or a shape.")]
    target: Annotated[dict[str, Any], Field(description="Name, unit and scale, or classes.")]
    network: Annotated[dict[str, Any], Field(description="Description, number of random and fixed weights, outputs.")]
    latent: Annotated[dict[str, Any], Field(description="The latent space and its plans.")]
    calibration: Annotated[dict[str, Any], Field(description="Noise or temperature.")]
    ood: Annotated[dict[str, Any], Field(description="The detector: score, threshold, false alarm rate.")]
    metrics: Annotated[list[dict[str, Any]], Field(description="Figures, each with the data split it was measured on.")]
    build: Annotated[dict[str, Any], Field(description="When and from what the bundle was built.")]
    card: Annotated[str | None, Field(description="The model card, in Markdown.")]
    files: Annotated[list[str], Field(description="What /models/NAME/files/FILE gives: pictures and the card.")]


class Health(_Schema):
    """The process answers."""

    status: Literal["ok"]


class Readiness(_Schema):
    """Whether requests should be sent here."""

    status: Annotated[
        Literal["loading", "ready", "failed"], Field(description="Ready is the only one with status 200.")
    ]
    models: Annotated[list[str], Field(description="NAME@VERSION of every version loaded and warmed.")]
    problems: Annotated[list[dict[str, str]], Field(description="Versions that cannot be served, and why.")]
