"""The model card."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.card import example_request
from builder.report import make_card
from builder.words import number
from model_store.encoding import TableEncoder
from model_store.manifest import (
    CategoricalColumn,
    LatentPlan,
    Manifest,
    Metrics,
    NumericColumn,
    TableInput,
    TensorInput,
)
from service.formats import Body
from service.inputs import InputEncoder
from service.protocol import parse
from service.schemas import ClassificationAnswer, OodAnswer, RegressionAnswer
from tests import bundles

PICTURES = [
    "posterior.png", "calibration.png", "sharpness.png", "unfamiliar.png", "fibers.png", "latent.png"
]  # fmt: skip
KINDS = {
    "mixed": bundles.mixed_regression(trunk=True).manifest,
    "one column": bundles.numeric_regression().manifest,
    "classes": bundles.classification().manifest,
    "image": bundles.image_classification().manifest,
    "large image": bundles.image_classification(shape=(3, 32, 32)).manifest,
}
every_kind = pytest.mark.parametrize("manifest", KINDS.values(), ids=KINDS)


def with_columns(*columns: NumericColumn | CategoricalColumn) -> Manifest:
    return KINDS["mixed"].model_copy(update={"inputs": TableInput(columns=list(columns))})


def with_metrics(*metrics: Metrics) -> Manifest:
    return KINDS["mixed"].model_copy(update={"metrics": list(metrics)})


def cells(row: str) -> list[str]:
    """The cells of one row of a table, as Markdown shows them."""
    parts = re.split(r"(?<!\\)(?:\\\\)*\|", row)
    return [re.sub(r"\\(.)", r"\1", cell).strip() for cell in parts[1:-1]]


def table_below(card: str, head: str) -> list[list[str]]:
    lines = card.splitlines()
    start = next(i for i, text in enumerate(lines) if text.startswith(f"| {head} |"))
    end = next((i for i, text in enumerate(lines[start:], start) if not text.startswith("|")), len(lines))
    return [cells(row) for row in [lines[start], *lines[start + 2 : end]]]


def asked(card: str) -> bytes:
    """The body that the card's command sends."""
    (command,) = re.findall(r"```sh\n(.*?)\n```", card, re.S)
    words = shlex.split(command)
    assert "http://localhost:8000/predict" in words
    body = words[words.index("-d") + 1]
    if body != "@-":
        return body.encode()
    assert words[:2] == ["python3", "-c"]
    return subprocess.run([sys.executable, "-c", words[2]], capture_output=True, check=True).stdout


# ---- how to ask


@every_kind
def test_the_service_accepts_the_example(manifest: Manifest) -> None:
    body = asked(make_card(manifest, PICTURES))
    assert json.loads(body) == example_request(manifest)
    request = parse(Body(body), max_rows=1, predicts=False)
    assert request.model == manifest.name
    assert len(InputEncoder(manifest.inputs).encode(request.inputs)) == 1


def test_the_example_lies_in_the_middle_of_the_data() -> None:
    assert example_request(KINDS["mixed"])["inputs"] == [{"rooms": 6, "area": 160, "town": "Aachen"}]
    columns = [
        NumericColumn(name="fraction", minimum=0.25, maximum=0.75),
        NumericColumn(name="narrow", minimum=1990.001, maximum=1990.003),
        NumericColumn(name="unbounded", mean=3.14159265, scale=2.0),
        NumericColumn(name="huge", minimum=-1.7e308, maximum=1.7e308),
        CategoricalColumn(name="gap", categories=["", "b"]),
    ]
    (row,) = example_request(with_columns(*columns))["inputs"]
    assert row["fraction"] == 0.5
    assert 1990.001 < row["narrow"] < 1990.003
    assert row["unbounded"] == 3.142
    assert row["huge"] == 0
    assert row["gap"] == "b"


def test_a_large_array_is_not_written_out() -> None:
    assert len(make_card(KINDS["large image"], [])) < 10_000


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
column = st.one_of(
    st.builds(
        NumericColumn, name=texts, unit=st.none() | texts, minimum=st.none() | numbers, maximum=st.none() | numbers
    ),
    st.builds(CategoricalColumn, name=texts, categories=st.lists(texts, min_size=1, max_size=40, unique=True)),
)


@given(st.lists(column, min_size=1, max_size=5, unique_by=lambda c: c.name))
def test_any_names_keep_the_table_and_the_command_whole(columns: list[Any]) -> None:
    manifest = with_columns(*columns)
    card = make_card(manifest, [])
    rows = table_below(card, "column")
    assert [row[0] for row in rows[1:]] == [" ".join(c.name.split()) for c in columns]
    assert {len(row) for row in rows} == {4}
    request = parse(Body(asked(card)), max_rows=1, predicts=False)
    encoded = InputEncoder(manifest.inputs).encode(request.inputs)
    assert isinstance(manifest.inputs, TableInput)
    assert encoded.shape == (1, TableEncoder(manifest.inputs).width)


# ---- what it takes and gives


def test_every_column_is_told() -> None:
    rows = table_below(make_card(KINDS["mixed"], []), "column")
    assert rows[1:] == [
        ["rooms", "numeric", "", "1 to 12"],
        ["area", "numeric", "m²", "20 to 300"],
        ["town", "categorical", "", "Aachen, Bonn, Köln"],
    ]


def test_many_categories_are_cut() -> None:
    card = make_card(with_columns(CategoricalColumn(name="c", categories=[f"k{i}" for i in range(100)])), [])
    assert "k29" in card and "k30" not in card
    assert "and 70 more" in card


def test_a_tensors_shape_and_scaling_are_told() -> None:
    assert "shape 1 × 4 × 4" in make_card(KINDS["image"], [])
    assert "mean 8 and the standard deviation 4" in make_card(KINDS["image"], [])
    raw = KINDS["image"].model_copy(update={"inputs": TensorInput(shape=[1, 4, 4], unit="counts")})
    assert "in counts" in make_card(raw, []) and "as they are" in make_card(raw, [])


@pytest.mark.parametrize(
    ("value", "digits", "said"),
    [(0.35241, 4, "0.3524"), (1710.4, 4, "1710"), (227514.2, 4, "227,500"), (-98765.4, 4, "-98,770"),
     (9999.7, 4, "10,000"), (1234567.0, 6, "1,234,570"), (1990.25, 6, "1990.25"), (3e15, 4, "3e+15"),
     (float("inf"), 4, "inf")],
)  # fmt: skip
def test_large_numbers_are_written_out(value: float, digits: int, said: str) -> None:
    assert number(value, digits) == said


@every_kind
def test_every_field_of_the_answers_is_explained(manifest: Manifest) -> None:
    answer = RegressionAnswer if manifest.task == "regression" else ClassificationAnswer
    explained = {
        name for row in table_below(make_card(manifest, []), "field") for name in re.findall(r"`(\w+)`", row[0])
    }
    fields = set(answer.model_fields) | set(OodAnswer.model_fields)
    assert explained == fields - {"median", "log_mean", "log_variance", "log_epistemic_variance"}  # of a logarithm


def test_a_logarithm_that_is_learned_is_told() -> None:
    manifest = with_metrics(Metrics(predictor="posterior", split="test", rows=30, values={"nll": 1.0}))
    linear, card = (make_card(changed(manifest, "target", log=log), PICTURES) for log in (False, True))
    assert all(f"`{field}`" in card for field in ("median", "log_mean", "log_variance", "log_epistemic_variance"))
    for said in (
        "The network learns its logarithm",
        "of the logarithm, the same for every row",
        "mean and variance of a log-normal",
        "Noise of the logarithm is taken",
        "0.1 in it is about a tenth of the target",
    ):
        assert said in card and said not in linear


def test_classes_are_named_in_order() -> None:
    assert "setosa, versicolor, virginica" in make_card(KINDS["classes"], [])


# ---- figures


def test_metrics_are_told_with_split_rows_and_meaning() -> None:
    card = make_card(
        with_metrics(
            Metrics(predictor="posterior", split="test", rows=1040,
                    values={"nll": 2.41, "rmse": 2.9, "coverage_90": 0.8875, "width_90": 9.25}),
            Metrics(predictor="map", split="out_of_fold", rows=455, values={"nll": float("inf"), "rmse": 3.3}),
        ),
        [],
    )  # fmt: skip
    assert table_below(card, "predictor") == [
        ["predictor", "measured on", "rows", "nll", "rmse", "coverage_90", "width_90"],
        ["posterior", "test", "1,040", "2.41", "2.9", "88.8%", "9.25"],
        ["map", "out_of_fold", "455", "not finite", "3.3", "", ""],
    ]
    for said in (
        "`nll`:",
        "`rmse`: root mean squared error of the mean in k€",
        "inside their 90 % interval",
        "`width_90`:",
    ):
        assert said in card
    assert "*posterior*:" in card and "*map*:" in card and "*fiber*:" not in card
    assert "*test*:" in card and "*out_of_fold*:" in card


def test_classification_metrics_are_told() -> None:
    values = {"nll": 0.5, "accuracy": 0.93, "ece": 0.021, "brier": 0.1}
    metrics = [Metrics(predictor="fiber", split="test", rows=90, values=values)]
    card = make_card(KINDS["classes"].model_copy(update={"metrics": metrics}), [])
    assert table_below(card, "predictor")[1] == ["fiber", "test", "90", "0.5", "93.0%", "2.1%", "0.1"]
    assert all(f"`{name}`:" in card for name in ("nll", "accuracy", "ece"))


def test_without_metrics_there_is_no_such_section() -> None:
    assert "How good" not in make_card(with_metrics(), [])


def changed(manifest: Manifest, part: str, **values: Any) -> Manifest:
    return manifest.model_copy(update={part: getattr(manifest, part).model_copy(update=values)})


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        ("calibration", {"noise_std": 17.25}, "17.25 k€"),
        ("calibration", {"points": 12345}, "12,345 rows"),
        ("ood", {"points": 4321}, "4,321 training rows"),
        ("ood", {"points": 18}, "none is flagged at it; ask for 5.26% or more"),
        ("ood", {"false_alarm_rate": 0.025}, "2.5%"),
        ("network", {"description": "ResNet | small"}, "ResNet \\| small"),
        ("network", {"fixed_weights": 98765}, "98,765 weights are fixed"),
        ("latent", {"anchors": 7}, "7 anchors"),
        ("latent", {"trajectories": 64}, "64 fibers"),
        ("latent", {"steps": 13}, "13 drift steps"),
        ("latent", {"rank": 11}, "rank 11"),
        ("latent", {"dimension": 23}, "23 latent dimensions"),
        ("build", {"seed": 99}, "seed 99"),
        ("build", {"data_fingerprint": "ab" * 32}, "ab" * 32),
        ("build", {"data_rows": 54321}, "54,321 rows"),
        ("build", {"device": "cuda"}, "on cuda"),
        ("build", {"libraries": {"torch": "9.9.9"}}, "torch 9.9.9"),
        ("build", {"seconds": {"map": 12.34}}, "map 12.3"),
        ("build", {"warnings": ["3 rows were\nleft out."]}, "**Warning:** 3 rows were left out."),
    ],
)  # fmt: skip
def test_every_figure_comes_from_the_manifest(part: str, values: dict[str, Any], said: str) -> None:
    before = KINDS["mixed"]
    assert said not in make_card(before, [])
    assert said in make_card(changed(before, part, **values), [])


def test_plans_are_told() -> None:
    plans = {
        "predict": LatentPlan(name="predict", samples=48, stop=0.625, drift_scale=0.155),
    }
    rows = table_below(make_card(changed(KINDS["mixed"], "latent", plans=plans), []), "latent plan")
    assert rows[1:] == [["`predict`", "48", "0 to 0.625", "0.155"]]


def test_the_version_is_not_named() -> None:
    """The store gives it when the bundle is published, after the card is written."""
    manifest = KINDS["mixed"]
    assert make_card(manifest.model_copy(update={"version": 87}), []) == make_card(manifest, [])


def test_only_the_pictures_that_exist_are_shown() -> None:
    assert re.findall(r"\]\((.*?)\)", make_card(KINDS["mixed"], PICTURES)) == PICTURES
    assert re.findall(r"\]\((.*?)\)", make_card(KINDS["mixed"], iter(["latent.png"]))) == ["latent.png"]


@pytest.mark.parametrize("kind", ["mixed", "classes"])
def test_every_picture_is_told_how_to_read(kind: str) -> None:
    told = re.findall(r"!\[(.*?)\]\((.*?)\)\n\*(.*?)\*\n", make_card(KINDS[kind], PICTURES))
    assert [name for _, name, _ in told] == PICTURES
    for alt, _, below in told:
        assert len(alt) > 30 and len(below) > 80 and "*" not in below


# ---- in short


def in_short(manifest: Manifest) -> str:
    return make_card(manifest, []).split("## In short")[1].split("\n## ")[0]


@pytest.mark.parametrize(
    ("rows", "share", "said"),
    [
        (60, 0.85, "85.0% hold it, as many as chance leaves nine times in ten of so many rows (83% to 97%)."),
        (1000, 0.85, "85.0% hold it, fewer than chance leaves nine times in ten of so many rows (88% to 92%): error "
                     "bars may be too narrow."),
        (1000, 0.95, "95.0% hold it, more than chance leaves nine times in ten of so many rows (88% to 92%): error "
                     "bars may be wider than need be."),
    ],
)  # fmt: skip
def test_error_bars_are_judged_by_what_chance_leaves(rows: int, share: float, said: str) -> None:
    values = {"nll": 2.4, "rmse": 12345.6, "coverage_90": share, "width_90": 9.25}
    told = in_short(with_metrics(Metrics(predictor="posterior", split="test", rows=rows, values=values)))
    assert f"Tried on {rows:,} rows that it had never seen: predictions miss price by 12,350 k€" in told
    assert f"of the 90% intervals, 9.25 k€ wide on average, {said}" in told
    assert "Show predictions with their `interval`" in told and "MAP" not in told


def test_classes_and_the_point_estimate_are_told_in_short() -> None:
    ours = Metrics(predictor="posterior", split="test", rows=1, values={"nll": 0.42, "accuracy": 0.8, "ece": 0.093})
    point = Metrics(predictor="map", split="test", rows=1, values={"nll": 0.43})
    told = in_short(KINDS["classes"].model_copy(update={"metrics": [ours, point]}))
    assert "Tried on 1 row that" in told and "is right in 80.0%" in told and "lie 9.3% apart" in told
    assert "its NLL is 0.42, and that of the usual point estimate (MAP) 0.43" in told
    assert "Show predictions with their `prediction_set`" in told


def test_what_a_build_warns_of_stands_at_the_top() -> None:
    told = in_short(changed(with_metrics(), "build", warnings=["No row\nwill be flagged."]))
    assert told.strip() == "- **Warning:** No row will be flagged."
    assert "In short" not in make_card(with_metrics(), [])
    lost = Metrics(predictor="posterior", split="test", rows=9, values={"nll": float("nan"), "rmse": float("inf")})
    assert "In short" not in make_card(with_metrics(lost), [])


# ---- limits


def limits(manifest: Manifest) -> str:
    return make_card(manifest, []).split("## What the error bars do not cover")[1]


def test_limits_are_those_of_the_model() -> None:
    assert "Noise is taken to be as large everywhere and on both sides" in limits(KINDS["mixed"])
    assert "categories" in limits(KINDS["mixed"])
    assert "weights are fixed" in limits(KINDS["mixed"])
    assert "class that is not in the list" in limits(KINDS["classes"])
    for absent in ("Noise is taken", "categories", "weights are fixed"):
        assert absent not in limits(KINDS["classes"])
    given = changed(KINDS["mixed"], "build", given_weights=True)
    assert "Weights were given" in limits(given) and "Weights were given" not in limits(KINDS["mixed"])
