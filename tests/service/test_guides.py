"""What docs/operating.md and docs/serving.md list: each setting, series, field and error code, as the server has it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from model_store.manifest import DetectorName
from service.described import CODES
from service.metrics import ServiceMetrics
from service.protocol import STATUS
from service.request_schemas import PredictRequest
from service.schemas import ClassificationAnswer, FeedbackAnswer, Ood, RegressionAnswer
from service.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def section(page: str, heading: str) -> str:
    """What stands below a heading of a page, up to the next one of any level."""
    (found,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", (DOCS / page).read_text(), re.M | re.S)
    return str(found)


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of a section's tables, without their heads."""
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    ruled = [i for i, row in enumerate(cells) if all(re.fullmatch(r"-+:?", c) for c in row)]
    return [row for i, row in enumerate(cells) if i not in ruled and i + 1 not in ruled]


def names(cell: str) -> list[str]:
    return re.findall(r"`([A-Za-z_]+)`", cell)


# ---- settings


TABLE = {row[0].strip("`"): row[1:] for row in rows(section("operating.md", "Settings"))}


def test_every_setting_is_listed_once_and_no_other() -> None:
    listed = [row[0].strip("`") for row in rows(section("operating.md", "Settings"))]
    assert sorted(listed) == sorted(f"FIBERWALK_{name.upper()}" for name in Settings.model_fields)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_setting_means_what_the_server_says_of_it(name: str) -> None:
    assert TABLE[f"FIBERWALK_{name.upper()}"][1] == Settings.model_fields[name].description


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_default_is_what_its_variable_would_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told, default = TABLE[f"FIBERWALK_{name.upper()}"][0], Settings.model_fields[name].default
    if name == "concurrency":
        assert told == "cores, at least 2" and default == max(2, os.cpu_count() or 1)
        return
    if default is None:
        assert told == "unset"
        return
    found = re.fullmatch(r"`(\S+)`(?: \((\d+) (MiB|GiB|days)\))?", told)
    assert found is not None
    monkeypatch.setenv(f"FIBERWALK_{name.upper()}", found[1])
    assert getattr(load_settings(), name) == default
    if found[2]:
        assert int(found[2]) * {"MiB": 2**20, "GiB": 2**30, "days": 86_400}[found[3]] == default


# ---- metrics


def test_every_series_is_listed_and_no_other() -> None:
    metrics = ServiceMetrics()
    metrics.watch(lambda: [("m", _health())])
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", metrics.text().decode(), re.M))
    served = {name: kind for name, kind in kinds.items() if not name.endswith("_created")}
    listed = {name: row[1] for row in rows(section("operating.md", "Metrics")) for name in names(row[0])}
    assert listed == served


def _health() -> dict[str, object]:
    window = {"rows": 1, "coverage": {"0.9": 1.0}, "nll": 0.1, "ece": 0.1}
    return {"version": 1, "state": "kept", "scope": "process", "ood": {"flagged": 0.0}, "windows": [window]}


# ---- requests, answers and errors


def fields(*models: type[BaseModel]) -> set[str]:
    return {f.alias or name for model in models for name, f in model.model_fields.items()}


@pytest.mark.parametrize(
    ("heading", "listed"),
    [
        ("The request", fields(PredictRequest)),
        ("Feedback and health", fields(FeedbackAnswer)),
        ("Unfamiliar rows", fields(Ood) | set(get_args(DetectorName))),
    ],
)
def test_fields_and_detectors_are_those_that_the_server_has(heading: str, listed: set[str]) -> None:
    assert {name for row in rows(section("serving.md", heading)) for name in names(row[0])} == listed


def test_every_field_of_a_prediction_is_explained() -> None:
    told = {
        heading: {name for row in rows(section("serving.md", heading)) for name in names(row[0])}
        for heading in (
            "Answers of a regression",
            "Models of the target's logarithm",
            "Answers of a classification",
        )
    }
    plain, log, classes = told.values()
    assert plain | log == fields(RegressionAnswer) and not plain & log
    common = {"model", "version", "samples", "seed", "level", "calibration", "ood", "task"}
    assert classes | common == fields(ClassificationAnswer)


def test_every_error_code_is_listed_with_its_status() -> None:
    listed: dict[int, set[str]] = {}
    for status, codes, _ in rows(section("serving.md", "Errors")):
        listed.setdefault(int(status), set()).update(names(codes))
    served = {status: set(codes) for status, codes in CODES.items()}
    served[405] = {code for code, status in STATUS.items() if status == 405}
    # Of connections, on which there is no request yet that could be answered otherwise.
    served[400] |= {"invalid_http"}
    served[431] = {"headers_too_large"}
    assert listed == served
    # And those are what the server says.
    written = "".join(p.read_text() for folder in ("service", "model_store") for p in (ROOT / folder).glob("*.py"))
    said = set(re.findall(r'(?:code=|default_code = |refuse\(\s*)"([a-z_]+)"', written))
    of_commands = {"error", "bad_config", "bad_data"}  # no request leads to these
    assert said - of_commands <= set().union(*served.values())
