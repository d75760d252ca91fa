"""What a bundle is: the pydantic schema of `manifest.json`.

A bundle holds everything a server needs to answer with error bars, and nothing that can run code when it is
read: JSON, ONNX and safetensors. Lengths: S posterior samples, B rows, A anchors, N trajectories an anchor,
T drift steps, k latent dimensions, P random weights, O network outputs.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, FiniteFloat, model_validator

SCHEMA_VERSION: Final = 8
OLDEST_SCHEMA_VERSION: Final = 7
"""The oldest that is read: what came later may be left out of a manifest."""

DECODER_FILE: Final = "decoder.onnx"
"""Inputs `latents` (S, k) float32 and `anchors` (S,) int64; outputs `coefficients` (S, C), C = A*(1+rank), and every
one of `NetworkSpec.parameters`, by its `ParameterSpec.input`, as (S, prod(shape)). Coefficients are the coordinates of
the weights in the decoder's linear last layer: a parameter is their product with the initializer of the same name after
`head.`, (C, prod(shape))."""

BASE_FILE: Final = "base.onnx"
"""Inputs: the network's input `inputs` (B, ...) float32, or the trunk's outputs where there is a trunk, and
every one of `NetworkSpec.parameters` by its `ParameterSpec.input` as (S, *shape); output `outputs` (S, B, O)."""

MIXING: Final = "mixing"
"""Input of a base that mixes parameters, `NetworkSpec.mixed`: it has a few columns of theirs as constants, and takes
every sample's shares in them, (S, columns), which are the last of `NetworkSpec.parameters`, in their place."""

TRUNK_FILE: Final = "trunk.onnx"
"""Input `inputs` (B, ...); outputs the tensors named in `NetworkSpec.trunk_outputs`, free of S."""

ROW_FILE: Final = "row.onnx"
"""The base for one row (B = 1), optional: where a bundle has it, it is faster. Inputs as those of the base, but each
random parameter it takes is in a layout of its own, see `model_store.layout`."""

BLOCKED_FILE: Final = "blocked.onnx"
"""The base in the layout in which ONNX Runtime convolves fastest, optional, for processors that it has one for. Inputs
as those of the base, some weights as `blocks.onnx` gives them, by names with the suffix `model_store.layout.BLOCKS`."""

BLOCKS_FILE: Final = "blocks.onnx"
"""With `blocked.onnx`: inputs are random parameters as those of the base, outputs the inputs that `blocked.onnx` takes
in their place, laid out for the processor that it runs on."""

FEATURES_FILE: Final = "features.onnx"
"""Inputs some of the trunk's outputs, where they are enough, or `inputs` (B, ...); output `features` (B, d): what the
last linear layer takes in one network, where there are detectors of the features."""

ARRAYS_FILE: Final = "arrays.safetensors"
"""`nodes` (A, N, T+1, k) float32: latents of every trajectory from its anchor (position 0) to its end (1);
`conformity_scores` (n,) float64 sorted, of out-of-fold predictions: `|y - mean| / std` for regression (y the logarithm
of a `log` target), one less the probability of the true class for classification; `ood_scores` (D, n) float64, each row
sorted: the scores of every OOD detector on n training rows that whatever it rests on had not seen; `ood_combined` (n,)
float64 sorted: their combined scores. Where there are detectors of the inputs, or of the features: `ood_center` and
`ood_scale` (d,) float64, by which encoded rows, or features, x (d,) become `(x - center) / scale`; for `nearest_rows`
and `nearest_features` `ood_rows` (m, d) float32, training rows so scaled; for `mahalanobis` and `mahalanobis_features`
`ood_precision` (d, d) float64, and for the latter `ood_means` (C, d) float64, the middles of the classes, or of all
rows. Where there is a `noise_range`, `noise_` and the name of each attribute of `model_store.noise.NoiseShape`,
float64."""

CARD_FILE: Final = "card.md"

REPORT_FILE: Final = "report.html"
"""The card with its pictures inside, which refers to nothing else."""


def _distinct(values: list[Any]) -> list[Any]:
    # Two of one name could not be told apart in a request or an answer.
    if len(set(values)) < len(values):
        raise ValueError("no value may stand twice")
    return values


_MOST: Final = 2**40
"""Of whatever is counted: no machine has more, and what is worked out from a manifest's numbers stays small."""
_MOST_IN_A_ROW: Final = 2**26


def _of_at_most(values: int) -> AfterValidator:
    def checked(shape: list[int]) -> list[int]:
        if math.prod(shape) > values:
            raise ValueError(f"a shape may hold at most {values} values")
        return shape

    return AfterValidator(checked)


T = TypeVar("T")
Listed = Annotated[list[T], FailFast()]
"""A list that is refused at its first fault: telling each of a million takes minutes."""
Positive = Annotated[int, Field(ge=1, le=_MOST)]
Count = Annotated[int, Field(ge=0, le=_MOST)]
Shape = Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(max_length=16), _of_at_most(_MOST)]
RowShape = Annotated[
    list[Annotated[int, Field(ge=1, le=2**31)]], Field(min_length=1, max_length=16), _of_at_most(_MOST_IN_A_ROW)
]


class _Schema(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        ser_json_inf_nan="constants",
        json_schema_serialization_defaults_required=True,  # a server's answers have every field
    )


class NumericColumn(_Schema):
    """A number, encoded as `(value - mean) / scale`."""

    kind: Literal["numeric"] = "numeric"
    name: str
    unit: str | None = None
    mean: FiniteFloat = 0.0
    scale: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    minimum: float | None = None
    maximum: float | None = None


class CategoricalColumn(_Schema):
    """One of `categories`, encoded as one 0/1 column each, in this order."""

    kind: Literal["categorical"] = "categorical"
    name: str
    unit: str | None = None
    categories: Annotated[Listed[str], Field(min_length=1), AfterValidator(_distinct)]


Column = Annotated[NumericColumn | CategoricalColumn, Field(discriminator="kind")]


class TableInput(_Schema):
    """Rows of named columns."""

    kind: Literal["table"] = "table"
    columns: Annotated[Listed[Column], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> TableInput:
        _distinct([c.name for c in self.columns])
        return self


class TensorInput(_Schema):
    """Arrays of one shape (images, sequences), encoded as `(value - mean) / scale`."""

    kind: Literal["tensor"] = "tensor"
    shape: RowShape
    mean: FiniteFloat = 0.0
    scale: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    unit: str | None = None


InputSpec = Annotated[TableInput | TensorInput, Field(discriminator="kind")]


class RegressionTarget(_Schema):
    """A real target; the network predicts `(y - mean) / scale`, or of a `log` target `(log(y) - mean) / scale`.

    What is Gaussian, and what the noise and the conformity scores are of, is then the natural logarithm.
    """

    task: Literal["regression"] = "regression"
    name: str
    unit: str | None = None
    log: bool = False
    mean: FiniteFloat
    scale: Annotated[FiniteFloat, Field(gt=0)]


class ClassificationTarget(_Schema):
    """A class; the network predicts one logit for each of `classes`."""

    task: Literal["classification"] = "classification"
    name: str
    classes: Annotated[Listed[int | str], Field(min_length=2), AfterValidator(_distinct)]


Target = Annotated[RegressionTarget | ClassificationTarget, Field(discriminator="task")]


class ParameterSpec(_Schema):
    """One input of the base, (S, *shape); in weight vectors (S, P) it is `[:, offset : offset + prod(shape)]`."""

    name: str
    input: str
    shape: Shape
    offset: Count


class NetworkSpec(_Schema):
    """The base architecture as a function of its random weights.

    `form` says how `base.onnx` treats the sample axis: `batched` computes all samples in each operator,
    `scan` loops over them inside the graph. Either way one run takes all S samples and the whole batch.

    `parameters` are the random parameters, and `weights` is how many numbers a sample has of them, but for those in
    `mixed`, shapes by input name: the base computes these from `MIXING`, which then are among `parameters`.
    """

    form: Literal["batched", "scan"]
    outputs: Positive
    weights: Positive
    fixed_weights: Count = 0
    parameters: Annotated[Listed[ParameterSpec], Field(min_length=1)]
    mixed: dict[str, Shape] = {}
    trunk_outputs: Listed[str] = []
    description: str = ""

    @model_validator(mode="after")
    def _layout_is_dense(self) -> NetworkSpec:
        end = 0
        for p in self.parameters:
            if p.offset != end:
                raise ValueError(f"parameter {p.name} starts at {p.offset}, expected {end}")
            end += math.prod(p.shape)
        if end != self.weights:
            raise ValueError(f"the parameters hold {end} weights, expected {self.weights}")
        if bool(self.mixed) != any(p.input == MIXING for p in self.parameters):
            raise ValueError(f"{MIXING} is a parameter where others are mixed, and only there")
        return self

    @property
    def random_weights(self) -> int:
        """Random weights of the network, decoded or mixed."""
        own = sum(math.prod(p.shape) for p in self.parameters if p.input != MIXING)
        return own + sum(math.prod(shape) for shape in self.mixed.values())


class LatentPlan(_Schema):
    """How posterior samples are drawn: uniformly in position over [start, stop] of every trajectory.

    Position u of a trajectory lies between its nodes floor(u*T) and ceil(u*T), interpolated linearly.
    """

    name: str
    samples: Positive
    start: Annotated[float, Field(ge=0, le=1)] = 0.0
    stop: Annotated[float, Field(ge=0, le=1)] = 1.0
    drift_scale: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _ordered(self) -> LatentPlan:
        if self.start > self.stop:
            raise ValueError("start must not exceed stop")
        return self


class LatentSpace(_Schema):
    """The latent space of the decoder and the plans that draw from it (at least `predict`)."""

    anchors: Positive
    trajectories: Positive
    steps: Positive
    dimension: Positive
    rank: Positive
    plans: dict[str, LatentPlan]

    @model_validator(mode="after")
    def _has_plans(self) -> LatentSpace:
        if "predict" not in self.plans:
            raise ValueError("the latent plan predict is missing")
        return self


class RegressionCalibration(_Schema):
    """Chosen on out-of-fold predictions. `noise_std` is in the target's own units, that of a `log` target of its
    logarithm. Where noise differs from row to row, `noise_std` is the level that `NoiseShape` counts in, and
    `noise_range` has the least and the largest standard deviation among the training rows."""

    task: Literal["regression"] = "regression"
    noise_std: Annotated[FiniteFloat, Field(gt=0)]
    noise_range: tuple[Annotated[FiniteFloat, Field(gt=0)], Annotated[FiniteFloat, Field(gt=0)]] | None = None
    points: Positive


class ClassificationCalibration(_Schema):
    """Chosen on out-of-fold predictions. Every sample's logits are brought to a share of `dispersion` of their distance
    from the mean over samples, and divided by `temperature`."""

    task: Literal["classification"] = "classification"
    temperature: Annotated[FiniteFloat, Field(gt=0)]
    dispersion: Annotated[float, Field(gt=0, le=1)] = 1.0
    points: Positive


Calibration = Annotated[RegressionCalibration | ClassificationCalibration, Field(discriminator="task")]


DetectorName = Literal[
    "epistemic_to_noise",
    "mutual_information",
    "nearest_rows",
    "mahalanobis",
    "nearest_features",
    "mahalanobis_features",
]
OF_INPUTS: Final[frozenset[DetectorName]] = frozenset({"nearest_rows", "mahalanobis"})
OF_FEATURES: Final[frozenset[DetectorName]] = frozenset({"nearest_features", "mahalanobis_features"})


class OodDetection(_Schema):
    """Flags rows that look less familiar than all but a share of `false_alarm_rate` of `points` unseen rows.

    Every detector's score is a logarithm, larger where a row is less familiar. Of the network, within each anchor's
    samples of the plan `predict` and averaged over the anchors: `epistemic_to_noise` of the epistemic variance over
    `noise_std` squared, `mutual_information` of label and weights in nats. Of the inputs of a table: `nearest_rows` of
    the mean squared distance from the nearest training rows, `mahalanobis` of the squared Mahalanobis distance. Of the
    features of inputs that are no table: `nearest_features` and `mahalanobis_features`, the latter from the nearest
    class.
    """

    detectors: Annotated[Listed[DetectorName], Field(min_length=1), AfterValidator(_distinct)]
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)]
    points: Annotated[int, Field(ge=2, le=_MOST)]


class Metrics(_Schema):
    """Figures of one predictor on one part of the data, e.g. `{"nll": 2.4, "rmse": 2.9}`."""

    predictor: Literal["posterior", "fiber", "map"]
    split: Literal["test", "out_of_fold"]
    rows: Count
    values: dict[str, float]


class BuildInfo(_Schema):
    """Where the bundle came from; `given_weights`: they were trained elsewhere, on rows that are not known."""

    created: datetime
    config: dict[str, Any]
    libraries: dict[str, str]
    data_fingerprint: str
    data_rows: Count
    seed: int
    device: str
    seconds: dict[str, float] = {}
    warnings: Listed[str] = []
    given_weights: bool = False


class FileEntry(_Schema):
    """Size in bytes and sha256 (hex) of one file of the bundle."""

    size: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(_Schema):
    """`manifest.json`: the whole description of one immutable version of a model."""

    schema_version: int = SCHEMA_VERSION
    name: str
    version: Positive
    inputs: InputSpec
    target: Target
    network: NetworkSpec
    latent: LatentSpace
    calibration: Calibration
    ood: OodDetection
    metrics: Listed[Metrics] = []
    build: BuildInfo
    files: dict[str, FileEntry] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.target.task != self.calibration.task:
            raise ValueError("target and calibration disagree on the task")
        other = "mutual_information" if self.target.task == "regression" else "epistemic_to_noise"
        if other in self.ood.detectors:
            raise ValueError(f"there is no detector {other} for {self.target.task}")
        table = isinstance(self.inputs, TableInput)
        if (OF_FEATURES if table else OF_INPUTS) & set(self.ood.detectors):
            raise ValueError("detectors of the inputs need a table, and those of the features other inputs")
        if isinstance(self.target, ClassificationTarget) and self.network.outputs != len(self.target.classes):
            raise ValueError("the network needs one output a class")
        return self

    @property
    def task(self) -> Literal["regression", "classification"]:
        """`regression` or `classification`."""
        return self.target.task
