"""What changes for those who ask where one version takes another's place."""

from __future__ import annotations

import pytest

from model_store.changes import changes
from model_store.manifest import CategoricalColumn, Column, Manifest, NumericColumn, TableInput
from tests import bundles

TABLE = bundles.mixed_regression().manifest
CLASSES = bundles.classification().manifest
IMAGES = bundles.image_classification().manifest
ROOMS, AREA, TOWN = TABLE.inputs.columns if isinstance(TABLE.inputs, TableInput) else []


def taking(*columns: Column) -> Manifest:
    return TABLE.model_copy(update={"inputs": TableInput(columns=list(columns))})


def predicting(manifest: Manifest, **change: object) -> Manifest:
    return manifest.model_copy(update={"target": manifest.target.model_copy(update=change)})


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (TABLE, TABLE, []),
        (TABLE, bundles.mixed_regression("other", seed=3, trunk=True).manifest, []),
        (TABLE, predicting(TABLE, mean=7.0, unit=None), []),
        (
            TABLE,
            taking(AREA, ROOMS, TOWN),
            ["Its columns come in another order: rows that are sent as arrays mean something else."],
        ),
        (
            TABLE,
            taking(ROOMS, NumericColumn(name="year"), NumericColumn(name="town")),
            [
                "It has new columns: 'year'.",
                "It has no longer the columns: 'area'.",
                "The column 'town' is numeric and not categorical.",
            ],
        ),
        (
            TABLE,
            taking(
                ROOMS,
                AREA.model_copy(update={"unit": "ft²"}),
                CategoricalColumn(name="town", categories=["Bonn", "Ulm"]),
            ),
            ["The column 'area' is in ft² and not in m².", "The column 'town' no longer knows: 'Aachen', 'Köln'."],
        ),
        (
            taking(CategoricalColumn(name="{x}", categories=["a", "{0}"])),
            taking(CategoricalColumn(name="{x}", categories=["a", "b"])),
            ["The column '{x}' no longer knows: '{0}'."],
        ),
        (
            TABLE,
            predicting(TABLE, name="rent", unit="€"),
            ["It predicts 'rent' and not 'price'.", "The target is in € and not in k€."],
        ),
        (
            CLASSES,
            predicting(CLASSES, classes=["setosa", *range(7)]),
            [
                "It has new classes: 0, 1, 2, 3, 4 and 2 more.",
                "It has no longer the classes: 'versicolor', 'virginica'.",
            ],
        ),
        (
            TABLE,
            CLASSES,
            [
                "It is a classification and no regression.",
                "It has new columns: 'length', 'width'.",
                "It has no longer the columns: 'rooms', 'area', 'town'.",
            ],
        ),
        (IMAGES, bundles.image_classification(shape=[3, 4, 4]).manifest, ["It takes [3, 4, 4] and not [1, 4, 4]."]),
        (IMAGES, predicting(IMAGES, name="digit").model_copy(update={"inputs": TABLE.inputs}), None),
    ],
)
def test_what_requests_would_run_into_is_told(before: Manifest, after: Manifest, told: list[str] | None) -> None:
    found = changes(before, after)
    if told is None:
        assert "It takes a table and not [1, 4, 4]." in found
    else:
        assert found == told
