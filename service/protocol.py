"""Requests field by field, and the errors that go back.

They are parsed here and not by the framework, so that every error has one shape and says what was expected.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from model_store.errors import FiberwalkError, InputError, InvalidNameError, UnknownModelError
from service.formats import Body, content_of
from service.inputs import NumericRows, brief, number, refuse

MAX_SEED: Final = 2**63 - 1
DEFAULT_LEVEL: Final = 0.9
MAX_REFERENCE: Final = 160
MAX_QUANTILES: Final = 100

STATUS: Final = {
    "invalid_json": 400,
    "invalid_msgpack": 400,
    "invalid_npy": 400,
    "not_an_object": 400,
    "empty_body": 400,
    "cross_site": 403,
    "not_found": 404,
    "unknown_request": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "unsupported_content_encoding": 415,
}
"""Of a request's errors by code; others have 422."""


@dataclass(frozen=True)
class InferenceRequest:
    """A request for predictions or scores, its inputs not yet held against a model.

    Attributes:
        inputs: at least one row, as the request gave it.
        model: NAME, NAME@VERSION or NAME@ALIAS; None is the only model there is.
        samples: S; None is the default.
        seed: of the draw of posterior samples.
        level: probability mass of the interval or prediction set.
        quantiles: of the target, that are wanted too.
        draws: whether what every sample says is wanted too.
        empty_sets: whether a prediction set may be empty.
        ood: whether a prediction says too how unfamiliar rows are.
        false_alarm_rate: share of familiar rows that may be flagged; None is the model's own.
    """

    inputs: list[Any] | NumericRows
    model: str | None
    samples: int | None
    seed: int
    level: float
    quantiles: tuple[float, ...] = ()
    draws: bool = False
    empty_sets: bool = False
    ood: bool = False
    false_alarm_rate: float | None = None


def parse(body: Body, *, max_rows: int, predicts: bool) -> InferenceRequest:
    """Reads a request.

    Args:
        body: what came.
        max_rows: most rows accepted.
        predicts: whether this is a request for predictions, which has some fields more.

    Raises:
        InputError: the first thing that is wrong.
    """
    content = content_of(body, rows_alone=True)
    own = ["level", "quantiles", "return", "empty_sets", "ood"] if predicts else []
    _refuse_unknown(content, ["inputs", "model", "samples", "seed", *own, "false_alarm_rate"])
    rate = content.get("false_alarm_rate")
    if predicts and rate is not None and not _flag(content, "ood"):
        message = "A prediction flags rows only where that is asked for; add ood: true, or leave the rate out."
        refuse("bad_false_alarm_rate", message, "false_alarm_rate", "no rate, or ood: true beside it", rate)
    return _inference(content, max_rows)


@dataclass(frozen=True)
class FeedbackRequest:
    """Targets of rows that were predicted before, named by that request's id, or given again.

    Attributes:
        targets: one a row, not yet held against a model.
        request_id: of the prediction; None where `rows` are given again.
        rows: the request for predictions anew; None where there is an id.
    """

    targets: list[Any]
    request_id: str | None
    rows: InferenceRequest | None


def parse_feedback(body: Body, *, max_rows: int) -> FeedbackRequest:
    """Reads a feedback; arguments and errors as of `parse`."""
    content = content_of(body, rows_alone=False)
    again = ["inputs", "model", "samples", "seed"]
    _refuse_unknown(content, ["targets", "request_id", *again])
    expected = "an array with the true target of every row"
    if "targets" not in content:
        _lacks("targets", expected)
    if not isinstance(content["targets"], list):
        refuse("wrong_type", "targets must be an array.", "targets", expected, content["targets"])
    request_id = content.get("request_id")
    if request_id is None:
        if content.get("inputs") is None:
            raise InputError(
                "The request does not say which rows the targets are of; name their prediction's request_id, or give "
                "the rows again as inputs.",
                code="missing_field",
                field="inputs",
                expected="a request_id, or inputs",
                got="neither",
            )
        rows = _inference(content, max_rows)
        # Before the rows wait for the network, and the targets with them.
        check_length(content["targets"], len(rows.inputs))
        return FeedbackRequest(content["targets"], None, rows)
    if not isinstance(request_id, str):
        refuse("wrong_type", "request_id must be a string.", "request_id", "an X-Request-ID", request_id)
    for field in again:
        if content.get(field) is not None:
            refuse(
                "unknown_field",
                f"With a request_id, {field} is known already; leave it out.",
                field,
                "targets and request_id alone",
                content[field],
            )
    return FeedbackRequest(content["targets"], request_id, None)


def check_length(targets: list[Any], rows: int) -> None:
    """Raises InputError where targets are not as many as rows."""
    if len(targets) != rows:
        raise InputError(
            "There must be one target for every row.",
            code="wrong_length",
            field="targets",
            expected=f"{rows} targets",
            got=f"{len(targets)} targets",
        )


def status_of(error: FiberwalkError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, UnknownModelError | InvalidNameError):
        return 404
    if isinstance(error, InputError):
        return STATUS.get(error.code, 422)
    return 503


def error_body(error: FiberwalkError) -> bytes:
    """`{"error": {code, message, field, expected, got}}`, in ASCII, whatever the values are."""
    return json.dumps({"error": error.as_dict()}).encode()


def _refuse_unknown(content: dict[str, Any], known: list[str]) -> None:
    for field in content:
        if field not in known:
            raise InputError(
                f"The request has a field {brief(field)} that is not known; leave it out.",
                code="unknown_field",
                field=field[:80],
                expected="the fields " + ", ".join(known),
                got=brief(field),
            )


def _lacks(field: str, expected: str) -> NoReturn:
    raise InputError(
        f"The request lacks the field {field}.",
        code="missing_field",
        field=field,
        expected=expected,
        got=f"no {field}",
    )


def _inference(content: dict[str, Any], max_rows: int) -> InferenceRequest:
    return InferenceRequest(
        inputs=_inputs(content, max_rows),
        model=_model(content.get("model")),
        samples=_samples(content.get("samples")),
        seed=_seed(content.get("seed")),
        level=_level(content.get("level")),
        quantiles=_quantiles(content.get("quantiles")),
        draws=_draws(content.get("return")),
        empty_sets=_flag(content, "empty_sets"),
        ood=_flag(content, "ood"),
        false_alarm_rate=_rate(content.get("false_alarm_rate")),
    )


def _inputs(content: dict[str, Any], max_rows: int) -> list[Any] | NumericRows:
    expected = "an array of rows, each an array of values in the model's column order or an object by column name"
    if "inputs" not in content:
        _lacks("inputs", expected)
    inputs = content["inputs"]
    if not isinstance(inputs, list | NumericRows):
        refuse("wrong_type", "inputs must be an array of rows.", "inputs", expected, inputs)
    if not len(inputs):
        refuse("empty_batch", "inputs holds no row; send at least one.", "inputs", f"1 to {max_rows} rows", [])
    if len(inputs) > max_rows:
        raise InputError(
            f"inputs holds {len(inputs)} rows; split them into several requests.",
            code="too_many_rows",
            field="inputs",
            expected=f"at most {max_rows} rows",
            got=f"{len(inputs)} rows",
        )
    return inputs


def _model(value: Any) -> str | None:
    if value is None:
        return None
    expected = "NAME, NAME@VERSION or NAME@ALIAS"
    if not isinstance(value, str):
        refuse("wrong_type", "model must be a string.", "model", expected, value)
    if len(value) > MAX_REFERENCE:
        refuse("bad_model", "model is longer than any model's name.", "model", expected, value)
    return value


def _samples(value: Any) -> int | None:
    if value is None:
        return None
    found = _whole(value, "samples", "a whole number from 1 on")
    if found < 1:
        refuse("bad_samples", "samples must be at least 1.", "samples", "a whole number from 1 on", value)
    return found


def _seed(value: Any) -> int:
    if value is None:
        return 0
    expected = f"a whole number from 0 to {MAX_SEED}"
    found = _whole(value, "seed", expected)
    if not 0 <= found <= MAX_SEED:
        refuse("bad_seed", "seed is out of range.", "seed", expected, value)
    return found


def _whole(value: Any, field: str, expected: str) -> int:
    """A whole number; languages that know one kind of number write it as 7.0 too, which JSON's schemas call whole."""
    # A larger float may stand for many numbers, and which was meant is not known.
    if type(value) is not int and not (type(value) is float and value.is_integer() and abs(value) < 2**53):
        refuse("wrong_type", f"{field} must be a whole number.", field, expected, value)
    return int(value)


def _share(value: Any, field: str, code: str, what: str, expected: str = "a number above 0 and below 1") -> float:
    found = number(value, field, what)
    if not 0.0 < found < 1.0:
        refuse(code, f"{what} must lie between 0 and 1.", field, expected, value)
    return found


def _level(value: Any) -> float:
    return DEFAULT_LEVEL if value is None else _share(value, "level", "bad_level", "level")


def _rate(value: Any) -> float | None:
    name = "false_alarm_rate"
    return None if value is None else _share(value, name, f"bad_{name}", name)


def _flag(content: dict[str, Any], field: str) -> bool:
    value = content.get(field)
    if value is not None and not isinstance(value, bool):
        refuse("wrong_type", f"{field} must be true or false.", field, "true or false", value)
    return bool(value)


def _quantiles(value: Any) -> tuple[float, ...]:
    if value is None:
        return ()
    expected = f"1 to {MAX_QUANTILES} numbers above 0 and below 1"
    if not isinstance(value, list):
        refuse("wrong_type", "quantiles must be an array of numbers.", "quantiles", expected, value)
    if not 1 <= len(value) <= MAX_QUANTILES:
        refuse("bad_quantiles", "quantiles holds none, or too many.", "quantiles", expected, value)
    each = enumerate(value)
    return tuple(_share(v, f"quantiles[{i}]", "bad_quantiles", "A quantile", expected) for i, v in each)


def _draws(value: Any) -> bool:
    if value is None:
        return False
    expected = '["samples"]'
    if not isinstance(value, list):
        refuse("wrong_type", "return must be an array of names.", "return", expected, value)
    for i, each in enumerate(value):
        if each != "samples":
            refuse("bad_return", "There is nothing of this name to return.", f"return[{i}]", '"samples"', each)
    return bool(value)
