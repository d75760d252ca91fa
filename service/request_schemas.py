"""Requests as the API's documentation describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from service.protocol import DEFAULT_LEVEL, MAX_QUANTILES, MAX_SEED


class NamedRow(RootModel[dict[str, float | str | bool | None]]):
    """A row by column name. A missing category is `null`; truth values stand for 0 and 1."""


Row = Annotated[
    list[Any] | NamedRow,
    Field(description="Values in the model's column order, or keyed by column name; for arrays, nested or flat."),
]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InferenceRequest(_Schema):
    """Rows, the model and how its posterior is drawn from. What is null counts as left out."""

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
        int | None, Field(ge=0, le=MAX_SEED, description="Which samples are drawn; one seed gives one answer.")
    ] = 0


class OodRequest(InferenceRequest):
    """Rows to be scored."""

    false_alarm_rate: Annotated[
        float | None,
        Field(gt=0, lt=1, description="Share of familiar rows that may be flagged; unset, the model's own."),
    ] = None


class PredictRequest(InferenceRequest):
    """Rows to be predicted."""

    level: Annotated[
        float | None,
        Field(gt=0, lt=1, description="Probability with which an interval or prediction set holds the target."),
    ] = DEFAULT_LEVEL
    quantiles: Annotated[
        list[Annotated[float, Field(gt=0, lt=1)]] | None,
        Field(min_length=1, max_length=MAX_QUANTILES, description="Quantiles of a real target to return as well."),
    ] = None
    returned: Annotated[
        list[Literal["samples"]] | None,
        Field(alias="return", description="`samples`: also what every posterior sample says, as `draws`."),
    ] = None
    empty_sets: Annotated[
        bool | None,
        Field(
            description="Whether a prediction set may be empty, where no class is as likely as true ones are. Sets "
            "then hold the true class in `level` of 1 and no more, also where the likeliest alone is right more often."
        ),
    ] = False
    ood: Annotated[
        bool | None,
        Field(
            description="Whether to say too how unfamiliar the rows are, as `/ood` does. Rows with a category that the "
            "model was not built with are then predicted, as of no category, and flagged; without it they are refused."
        ),
    ] = False
    false_alarm_rate: Annotated[
        float | None, Field(gt=0, lt=1, description="With `ood`, as in a request to `/ood`.")
    ] = None


Targets = Annotated[
    list[float | str | bool],
    Field(description="The true target of every row, in their order: numbers, or classes as answers name them."),
]


class FeedbackById(_Schema):
    """True targets of rows that were predicted, told by the id of the prediction's request."""

    targets: Targets
    request_id: Annotated[str, Field(description="X-Request-ID of the prediction.")]


class FeedbackWithInputs(_Schema):
    """True targets of rows, which are given again and predicted anew."""

    targets: Targets
    inputs: Annotated[list[Row], Field(min_length=1, description="The rows.")]
    model: Annotated[str | None, Field(description="As in a prediction.")] = None
    samples: Annotated[int | None, Field(ge=1, description="As in the prediction.")] = None
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED, description="As in the prediction.")] = 0
