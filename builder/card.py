"""The model card of a bundle, in Markdown: every figure of it comes from the manifest."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable
from typing import Any, Final

from builder.captions import picture
from builder.summary import in_short
from builder.words import count, escape, number, rounded, table, unit_of, with_unit
from model_store.detection import lowest_rate
from model_store.manifest import (
    CategoricalColumn,
    ClassificationTarget,
    DetectorName,
    Manifest,
    NumericColumn,
    RegressionCalibration,
    RegressionTarget,
    TableInput,
    TensorInput,
)

_PREDICTORS: Final = {
    "posterior": "what the server answers from: weights decoded from the latent plan",
    "fiber": "the sampled weights themselves, before the autoencoder; the posterior should come close",
    "map": "the usual point estimate, with one noise level or temperature (of several anchors, the mean of each one's "
    "figures); the posterior should be better",
}
_SPLITS: Final = {
    "test": "rows that neither training nor any choice of this build has seen",
    "out_of_fold": "training rows, each predicted by an anchor that this build did not train on it; calibration was "
    "chosen on them, so they flatter a little",
}
_METRICS: Final = {
    "nll": "negative log likelihood in nats a row (of a number by mean and variance{log}), lower is better",
    "rmse": "root mean squared error of the mean{unit}, lower is better",
    "coverage": "share of rows inside their {percent} interval, ideally {percent}",
    "width": "mean width of that interval{unit}, at equal coverage lower is better",
    "accuracy": "share of rows whose likeliest class is right",
    "ece": "expected calibration error: how far stated confidence and accuracy lie apart on average, ideally 0",
}
_DETECTORS: Final[dict[DetectorName, str]] = {
    "epistemic_to_noise": "logarithm of the epistemic variance over the noise level, within the samples of one anchor",
    "mutual_information": "logarithm of the mutual information of label and weights, within the samples of one anchor",
    "nearest_rows": "logarithm of the mean squared distance from the five nearest of the training rows that are kept",
    "mahalanobis": "logarithm of the squared Mahalanobis distance from the middle of the training rows",
    "nearest_features": "the same as `nearest_rows`, in the features that the network's last layer takes",
    "mahalanobis_features": "logarithm of the squared Mahalanobis distance from the nearest class, in the features",
}
_LOGARITHM: Final = [
    ["`median`", "as likely exceeded as not; the mean lies above it, far above where posterior samples disagree much"],
    [
        "`log_mean`, `log_variance`",
        "of the target's natural logarithm: a small variance is the relative error's square",
    ],
    ["`log_epistemic_variance`", "its epistemic part; the rest is noise"],
]
_SHOWN_CATEGORIES: Final = 30
_SHOWN_VALUES: Final = 64


def make_card(manifest: Manifest, pictures: Iterable[str]) -> str:
    """The model card in Markdown.

    Args:
        manifest: every figure of the card comes from it. Its version is not named: the store gives it afterwards.
        pictures: names of the pictures that lie beside the card.
    """
    names = set(pictures)
    sections = [
        _summary(manifest),
        in_short(manifest),
        picture("posterior.png", manifest, names),
        _inputs(manifest),
        _request(manifest),
        _answer(manifest),
        _figures(manifest),
        picture("calibration.png", manifest, names),
        picture("sharpness.png", manifest, names),
        _calibrated(manifest),
        picture("unfamiliar.png", manifest, names),
        _posterior(manifest),
        picture("fibers.png", manifest, names),
        picture("latent.png", manifest, names),
        _build(manifest),
        _limits(manifest),
    ]
    return "\n\n".join(s for s in sections if s) + "\n"


def example_request(manifest: Manifest) -> dict[str, Any]:
    """A body for `/predict` with one row in the middle of the training data."""
    if isinstance(manifest.inputs, TensorInput):
        row: Any = [rounded(manifest.inputs.mean, manifest.inputs.scale)] * math.prod(manifest.inputs.shape)
    else:
        row = {c.name: _middle(c) for c in manifest.inputs.columns}
    return {"model": manifest.name, "inputs": [row]}


def _summary(m: Manifest) -> str:
    target, rows = m.target, f"{m.build.data_rows:,} rows"
    if isinstance(m.inputs, TableInput):
        source = count(len(m.inputs.columns), "column")
    else:
        source = f"arrays of shape {' × '.join(map(str, m.inputs.shape))}"
    if isinstance(target, ClassificationTarget):
        classes = ", ".join(escape(str(c)) for c in target.classes)
        what = (
            f"Predicts the class **{escape(target.name)}** from {source}, with a probability for each of its "
            f"{len(target.classes)} classes and how far the model itself is to be trusted. Classification, from a "
            f"data set of {rows}.\n\nClasses, in the order of the probabilities: {classes}."
        )
    else:
        what = (
            f"Predicts **{escape(with_unit(target.name, target.unit))}** from {source}, with an error bar that is "
            f"split into what more data would reduce (epistemic) and what it would not (aleatoric). Regression, from a "
            f"data set of {rows}."
        )
        if target.log:
            what += " The network learns its logarithm: error bars grow with the prediction, and end above zero."
    return f"# {escape(m.name)}\n\n{what}"


def _inputs(m: Manifest) -> str:
    spec = m.inputs
    if isinstance(spec, TensorInput):
        unit = f" in {escape(spec.unit)}" if spec.unit else ""
        shape = " × ".join(map(str, spec.shape))
        encoded = (
            "They enter the network as they are."
            if (spec.mean, spec.scale) == (0.0, 1.0)
            else f"In training they had the mean {number(spec.mean)} and the standard deviation {number(spec.scale)}."
        )
        return f"## Inputs\n\nArrays of numbers{unit} of shape {shape}, nested or flat in row-major order. {encoded}"
    rows = []
    for column in spec.columns:
        if isinstance(column, CategoricalColumn):
            shown = [escape(c) if c else "(empty)" for c in column.categories[:_SHOWN_CATEGORIES]]
            more = len(column.categories) - len(shown)
            values = ", ".join(shown) + (f" and {more} more (`GET /models/{m.name}` lists them)" if more else "")
        else:
            values = _range(column)
        rows.append([escape(column.name), column.kind, escape(column.unit or ""), values])
    return "## Inputs\n\n" + table(["column", "kind", "unit", "values in training"], rows)


def _request(m: Manifest) -> str:
    body = example_request(m)
    head = "curl -s http://localhost:8000/predict -H 'Content-Type: application/json' -d "
    (row,) = body["inputs"]
    if isinstance(row, list) and len(row) > _SHOWN_VALUES:
        code = f'import json; print(json.dumps({{"model": "{m.name}", "inputs": [[{row[0]}] * {len(row)}]}}))'
        command = f"python3 -c {shlex.quote(code)} |\n  {head}@-"
        about = "one array of the mean value; put your own in its place"
    else:
        command = head + shlex.quote(json.dumps(body, ensure_ascii=False))
        about = "one row from the middle of the training data"
    samples = m.latent.plans["predict"].samples
    options = f"`samples` (posterior samples, {samples} by default), `seed`"
    if isinstance(m.target, RegressionTarget):
        options += ", `level` (of the interval), `quantiles` (such as `[0.05, 0.5, 0.95]`)"
    else:
        options += ", `level` (of the prediction set)"
    options += ', `return` (`["samples"]` adds what every posterior sample says), `ood` (`true` adds how unfamiliar '
    options += "the rows are)"
    return (
        f"## How to ask\n\nOn the machine of `fiberwalk serve`, with {about}:\n\n```sh\n{command}\n```\n\n"
        f"`inputs` may hold many rows, each an array{_order(m)}. Optional: {options}. The same "
        "request always gets the same answer. `/ood` takes the same rows, and `false_alarm_rate`."
    )


def _answer(m: Manifest) -> str:
    if isinstance(m.target, RegressionTarget):
        unit = escape(m.target.unit or "the target's unit")
        rows = [
            ["`mean`", f"the prediction, in {unit}"],
            ["`interval`", "`[lo, hi]`: the target lies within it with the probability `level`"],
            ["`variance`", f"square of the error bar's standard deviation, in ({unit})²: the sum of the next two"],
            ["`epistemic_variance`", "the part that comes from not knowing the weights; more data would reduce it"],
            ["`aleatoric_variance`", "the part that is noise in the target; no further rows would reduce it"],
            ["`entropy`", "the whole uncertainty in nats, for comparing rows; it can be negative"],
            ["`quantiles`", "those asked for: 0.05 and 0.95 are the ends of the interval of level 0.9, 0.5 the median"],
            ["`draws`", "on demand, the mean that each posterior sample predicts"],
            *(_LOGARITHM if m.target.log else []),
        ]
    else:
        rows = [
            ["`mean`", "probability of every class, in the order above"],
            ["`label`", "the likeliest class"],
            ["`variance`", "how much each probability differs between posterior samples"],
            ["`entropy`", "the whole uncertainty in nats: 0 is certain, log(number of classes) is a blind guess"],
            [
                "`expected_entropy`",
                "the part that is overlap between classes (aleatoric); more data would not reduce it",
            ],
            ["`mutual_information`", "the part that comes from not knowing the weights (epistemic); more data would"],
            ["`prediction_set`", "the classes in question: the true one is among them with the probability `level`"],
            ["`draws`", "on demand, the probabilities that each posterior sample predicts"],
        ]
    rows += [
        ["`ood`", "on demand, what `/ood` says of the rows: the fields that follow"],
        ["`score`, `flag`", "from `/ood`: how unfamiliar a row is, and whether it is flagged"],
        ["`p_value`", "from `/ood`: how likely a familiar row is to score as high"],
        ["`false_alarm_rate`", "from `/ood`: the share of familiar rows that are flagged"],
        ["`detectors`", "from `/ood`: score and p-value by each detector alone"],
        [
            "`columns`",
            "from `/ood`, for tables: the columns furthest from what the row's other columns suggest, and by how many "
            "standard deviations",
        ],
        ["`unseen`", "from `/ood`, for tables: the columns with a category that was not in the training data"],
        ["`calibration`", "how many rows stand behind level or rate, how far they go, and a warning beyond that"],
        ["`model`, `version`, `task`, `samples`, `seed`, `level`", "what answered and how it was asked, to repeat it"],
    ]
    return "Every field of the answer holds one entry a row:\n\n" + table(["field", "meaning"], rows)


def _figures(m: Manifest) -> str:
    if not m.metrics:
        return ""
    keys = list(dict.fromkeys(k for entry in m.metrics for k in entry.values))
    rows = [
        [e.predictor, e.split, f"{e.rows:,}", *(_metric(k, e.values[k]) if k in e.values else "" for k in keys)]
        for e in m.metrics
    ]
    unit = f" in{own}" if (own := unit_of(m.target)) else ""
    log = " of a log-normal" if isinstance(m.target, RegressionTarget) and m.target.log else ""
    about = [f"`{k}`: {said}." for k in keys if (said := _meaning(k, unit, log))]
    about += [f"*{p}*: {_PREDICTORS[p]}." for p in dict.fromkeys(e.predictor for e in m.metrics)]
    about += [f"*{s}*: {_SPLITS[s]}." for s in dict.fromkeys(e.split for e in m.metrics)]
    figures = table(["predictor", "measured on", "rows", *keys], rows)
    return "## How good it is\n\n" + figures + "\n\n" + "\n".join(f"- {line}" for line in about)


def _calibrated(m: Manifest) -> str:
    c = m.calibration
    behind = f"{c.points:,} rows, each predicted by an anchor that this build did not train on it."
    if isinstance(c, RegressionCalibration):
        unit = unit_of(m.target)
        if isinstance(m.target, RegressionTarget) and m.target.log:
            unit = " of the logarithm"
        size = f"{number(c.noise_std)}{unit}, the same for every row"
        if c.noise_range is not None:
            size = f"{' to '.join(map(number, c.noise_range))}{unit}, by the inputs, in all at {number(c.noise_std)}"
        first = f"- Noise: a standard deviation of {size}. Intervals are conformal: they reach as many standard "
        first += f"deviations of the whole as it took on {behind}"
    else:
        apart = f", at {number(c.dispersion)} of their distance from the mean" if c.dispersion < 1 else ""
        first = f"- Temperature: {number(c.temperature)} divides every sample's logits{apart}. It and the conformal "
        first += f"prediction sets come from {behind}"
    detectors = "\n".join(f"  - `{name}`: {_DETECTORS[name]}." for name in m.ood.detectors)
    lowest, few, kept = lowest_rate(m.ood.points), "", ""
    if m.ood.false_alarm_rate < lowest:
        few = f" So few rows cannot vouch for that, and none is flagged at it; ask for {100 * lowest:.3g}% or more."
    if "nearest_rows" in m.ood.detectors:
        kept = "\n- The bundle holds encoded training rows; `calibration.reference_rows = 0` builds one without."
    elif "nearest_features" in m.ood.detectors:
        kept = "\n- The bundle holds features of training rows; `calibration.reference_rows = 0` builds one without."
    return (
        f"## Calibration and unfamiliar rows\n\n{first}\n- OOD detection: every detector gives the share of "
        f"{m.ood.points:,} training rows, kept from what judged them, that look as unfamiliar as a row does. The score "
        "is the mean of -log of these shares, held against that of the same rows: a row is flagged where so high a "
        f"score is rarer than the false alarm rate, {100 * m.ood.false_alarm_rate:.3g}% unless asked otherwise."
        f"{few} The detectors, larger where a row is less familiar:\n{detectors}{kept}"
    )


def _posterior(m: Manifest) -> str:
    net, latent = m.network, m.latent
    trunk = f"; {net.fixed_weights:,} more stay at the MAP" if net.fixed_weights else ""
    if net.trunk_outputs:
        trunk += ", those before the first random one in a trunk that runs once a request"
    plans = [
        [f"`{p.name}`", str(p.samples), f"{p.start:.3g} to {p.stop:.3g}", f"{p.drift_scale:.3g}"]
        for p in latent.plans.values()
    ]
    return (
        f"## Network and posterior\n\n- Network: {escape(net.description) or 'as exported'}; "
        f"{net.random_weights:,} random weights{trunk}; {count(net.outputs, 'output')}.\n"
        f"- Posterior: {count(latent.anchors, 'anchor')} (MAP solutions), {count(latent.trajectories, 'fiber')} each "
        f"of {count(latent.steps, 'drift step')}; {count(latent.dimension, 'latent dimension')}; decoder of rank "
        f"{latent.rank} an anchor.\n- The drift scale counts in posterior radii: 1 is the whole width of the Gaussian "
        "approximation at the anchor.\n\n"
        + table(["latent plan", "samples by default", "part of each fiber", "drift scale at its end"], plans)
    )


def _build(m: Manifest) -> str:
    b = m.build
    preset = b.config.get("preset")
    lines = [
        f"Built {b.created:%Y-%m-%d %H:%M %Z} on {escape(b.device)} with seed {b.seed}"
        + (f" and preset `{preset}`" if preset else "")
        + "; all options stand in `manifest.json`.",
        f"Data: {b.data_rows:,} rows, fingerprint (sha256) `{b.data_fingerprint}`.",
    ]
    if b.libraries:
        lines.append("Libraries: " + ", ".join(f"{k} {v}" for k, v in b.libraries.items()) + ".")
    if b.seconds:
        lines.append("Seconds: " + ", ".join(f"{k} {v:.1f}" for k, v in b.seconds.items()) + ".")
    return "## Build\n\n" + "\n".join(f"- {line}" for line in lines)


def _limits(m: Manifest) -> str:
    lines = [
        "Calibration holds on average over rows like those of the training data, not for every group or class of them; "
        "when the world behind the data changes, calibrate anew.",
        "Far from the training data the epistemic part should grow, but no figure above was measured there: ask "
        "`/ood`, and do not rely on the width of an error bar for a flagged row.",
        "The epistemic part covers the weights of this one network. What no such network can represent, columns that "
        "are missing and errors in the data count as noise.",
    ]
    if isinstance(m.target, RegressionTarget):
        of = " of the logarithm" if m.target.log else ""
        even = isinstance(m.calibration, RegressionCalibration) and m.calibration.noise_range is None
        everywhere = "as large everywhere" if even else "what the inputs tell"
        lines.append(
            f"Noise{of} is taken to be {everywhere} and on both sides alike; intervals are wrong where it is not."
        )
    else:
        lines.append("A row of a class that is not in the list gets one of those that are.")
    if isinstance(m.inputs, TableInput) and any(isinstance(c, CategoricalColumn) for c in m.inputs.columns):
        lines.append("New categories are refused, or with `ood` predicted as of none that it knows, and flagged.")
    if m.build.given_weights:
        lines.append("Weights were given: if they were trained on rows of this data set, no figure holds for others.")
    if m.network.fixed_weights:
        lines.append(f"{m.network.fixed_weights:,} weights are fixed, and their uncertainty is not in the error bars.")
    return "## What the error bars do not cover\n\n" + "\n".join(f"- {line}" for line in lines)


def _order(m: Manifest) -> str:
    if isinstance(m.inputs, TensorInput):
        return f" of {math.prod(m.inputs.shape)} numbers or nested as above"
    return " of values in the order above or an object keyed by column name"


def _metric(key: str, value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.1%}" if key in {"accuracy", "ece"} or key.startswith("coverage") else number(value)


def _meaning(key: str, unit: str, log: str) -> str:
    kind, _, level = key.partition("_")
    return _METRICS.get(kind, "").format(unit=unit, log=log, percent=f"{level} %")


def _range(column: NumericColumn) -> str:
    if column.minimum is None or column.maximum is None:
        return f"{number(column.mean)} ± {number(column.scale)}"
    return f"{number(column.minimum, 6)} to {number(column.maximum, 6)}"


def _middle(column: NumericColumn | CategoricalColumn) -> float | str:
    """A typical value: of the range, a whole number where both its ends are; or a category."""
    if isinstance(column, CategoricalColumn):
        return next((c for c in column.categories if c), column.categories[0])
    low, high = column.minimum, column.maximum
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return rounded(column.mean, column.scale)
    middle = low / 2 + high / 2
    if low.is_integer() and high.is_integer() and abs(middle) < 1e15:
        return round(middle)
    return rounded(middle, high - low)
