"""A model in short, for whoever is to use it: how good it is in plain words, what to do, and what a build warns of."""

from __future__ import annotations

import math

import numpy as np

from builder.pictures import binomial_band
from builder.words import count, escape, number, unit_of
from model_store.manifest import Manifest, Metrics, RegressionTarget


def in_short(manifest: Manifest) -> str:
    """The section, in Markdown; nothing where a build has neither figures nor warnings."""
    lines = [_on_test(manifest), _beside_map(manifest)]
    if lines[0]:
        lines.append(_use(manifest))
    lines += [f"**Warning:** {escape(w)}" for w in manifest.build.warnings]
    told = "\n".join(f"- {line}" for line in lines if line)
    return f"## In short\n\n{told}" if told else ""


def _on_test(m: Manifest) -> str:
    entry = _entry(m, "posterior")
    if entry is None:
        return ""
    values = {key: value for key, value in entry.values.items() if math.isfinite(value)}
    told = []
    if "rmse" in values:
        missed = f"{number(values['rmse'])}{unit_of(m.target)}"
        told.append(f"predictions miss {escape(m.target.name)} by {missed} (root mean square)")
    if "accuracy" in values:
        told.append(f"the likeliest class is right in {values['accuracy']:.1%} of them")
    if "ece" in values:
        told.append(f"confidence and the share that is right lie {values['ece']:.1%} apart on average (ECE)")
    told += [_covered(m, key, entry) for key in values if key.startswith("coverage_")]
    return f"Tried on {count(entry.rows, 'row')} that it had never seen: {'; '.join(told)}." if told else ""


def _covered(m: Manifest, key: str, entry: Metrics) -> str:
    """How many intervals hold their target, and whether chance alone may have left it at that."""
    share, level = entry.values[key], key.removeprefix("coverage_")
    low, high = (float(ends[0]) for ends in binomial_band(entry.rows, np.array([float(level) / 100])))
    if share < low:
        judged, so = "fewer than", ": error bars may be too narrow"
    elif share > high:
        judged, so = "more than", ": error bars may be wider than need be"
    else:
        judged, so = "as many as", ""
    width = entry.values.get(f"width_{level}")
    wide = "" if width is None else f", {number(width)}{unit_of(m.target)} wide on average,"
    return (
        f"of the {level}% intervals{wide} {share:.1%} hold it, {judged} chance leaves nine times in ten of so many "
        f"rows ({low:.0%} to {high:.0%}){so}"
    )


def _beside_map(m: Manifest) -> str:
    posterior, point = _entry(m, "posterior"), _entry(m, "map")
    if posterior is None or point is None:
        return ""
    ours, theirs = (entry.values.get("nll", math.nan) for entry in (posterior, point))
    if not (math.isfinite(ours) and math.isfinite(theirs)):
        return ""
    return (
        f"On the same rows its NLL is {number(ours)}, and that of the usual point estimate (MAP) {number(theirs)}; "
        "lower is better."
    )


def _use(m: Manifest) -> str:
    bar = "`interval`" if isinstance(m.target, RegressionTarget) else "`prediction_set`"
    return (
        f'Show predictions with their {bar}. Ask with `"ood": true`, and have a person look at rows that are flagged: '
        "what is told of them rests on no data like them."
    )


def _entry(m: Manifest, predictor: str) -> Metrics | None:
    return next((e for e in m.metrics if (e.predictor, e.split) == (predictor, "test")), None)
