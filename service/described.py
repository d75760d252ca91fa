"""What the API's description says of a route beyond what the framework sees of it: bodies that are parsed by hand, in
every format that they may come in, and errors."""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service import examples
from service.formats import JSON, MSGPACK, NPY, OCTETS
from service.protocol import STATUS
from service.request_schemas import FeedbackById, FeedbackWithInputs, OodRequest, PredictRequest
from service.schemas import ErrorAnswer

REFERENCES: Final = "#/components/schemas/{model}"
_REQUESTS: Final[list[type[BaseModel]]] = [PredictRequest, OodRequest, FeedbackById, FeedbackWithInputs]

_PACKED = (
    "The same object as in JSON. `inputs` may also be an object of `dtype` (such as `<f4`), `shape` and `data`, the "
    "array's bytes in row-major order."
)
_PACKED_ANSWER = (
    "Where `Accept` names it: the same object as in JSON, and the same numbers, in which each array of numbers is an "
    "object of `dtype` (`<f8`), `shape` and `data`, its bytes in row-major order."
)
_ROWS_ALONE = (
    "A `.npy` file of the rows alone, of shape (rows, columns) or (rows, *shape of a row), of float32, float64 or "
    "integers. The other fields go into the query."
)
_REQUEST_ID: Final = {
    "name": "X-Request-ID",
    "in": "header",
    "description": "What the request is called in the server's log, in the answer's `X-Request-ID`, and in feedback: "
    "1 to 128 letters, digits, `.`, `_`, `:` and `-`. Without one, or with another, the server makes one. A later "
    "prediction of the same id takes the earlier one's place.",
    "schema": {"type": "string"},
}


def body_of(
    *requests: type[BaseModel], asked: dict[str, Any], answered: dict[str, Any], rows_alone: bool = True
) -> dict[str, Any]:
    """OpenAPI of a request body that is parsed by hand, with worked examples on both sides.

    Args:
        requests: what it may be.
        asked: examples of it, by what they show.
        answered: examples of answers.
        rows_alone: whether it may also be rows without more, with the other fields in the query.
    """
    references = [{"$ref": REFERENCES.format(model=request.__name__)} for request in requests]
    content: dict[str, Any] = {
        JSON: {"schema": references[0] if len(references) == 1 else {"anyOf": references}, "examples": asked},
        MSGPACK: binary(_PACKED),
    }
    parameters: list[dict[str, Any]] = [_REQUEST_ID]
    if rows_alone:
        content |= {NPY: binary(_ROWS_ALONE), OCTETS: binary(_ROWS_ALONE)}
        fields = requests[0].model_json_schema()["properties"]
        parameters += [_parameter(name, schema) for name, schema in fields.items() if name != "inputs"]
    return {
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"content": {JSON: {"examples": answered}, MSGPACK: binary(_PACKED_ANSWER)}}},
        "parameters": parameters,
    }


def schemas_of_requests() -> dict[str, Any]:
    """The schemas of all requests that the framework does not see, by name."""
    _, found = models_json_schema([(each, "validation") for each in _REQUESTS], ref_template=REFERENCES)
    schemas: dict[str, Any] = found["$defs"]
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            _tell_default(field)
    return schemas


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A field as a part of the query, where it is left out rather than null."""
    _tell_default(schema)
    given = [each for each in schema.pop("anyOf", []) if each != {"type": "null"}]
    return {
        "name": name,
        "in": "query",
        "description": f"With a `.npy` body alone. {schema.pop('description')}",
        "schema": schema | (given[0] if given else {}),
    }


def _tell_default(schema: dict[str, Any]) -> None:
    """Puts a field's default into words. What a schema names, Swagger UI and generated clients send, in the query with
    JSON bodies too; or they want to be given every field that has one."""
    default = schema.pop("default", None)
    if default is not None:
        schema["description"] += f" Default: {json.dumps(default)}."


def binary(description: str) -> dict[str, Any]:
    """OpenAPI of bytes."""
    return {"schema": {"type": "string", "format": "binary", "description": description}}


def text(description: str) -> dict[str, Any]:
    """OpenAPI of a text."""
    return {"schema": {"type": "string", "description": description}}


CODES: Final[dict[int, list[str]]] = {
    **{status: [code for code, its in STATUS.items() if its == status] for status in (400, 403, 404, 408, 413, 415)},
    422: [
        *("missing_field", "unknown_field", "repeated_field", "wrong_type", "not_finite", "out_of_range"),
        *("model_required", "bad_model", "bad_samples", "too_many_samples", "bad_seed", "bad_level", "bad_quantiles"),
        *("bad_return", "bad_empty_sets", "bad_false_alarm_rate", "empty_batch", "too_many_rows", "too_many_values"),
        *("wrong_width", "unknown_column", "missing_column", "unknown_category"),
        *("bad_dtype", "bad_shape", "wrong_size", "wrong_length", "unknown_class", "not_positive", "bad_input"),
    ],
    500: ["internal_error"],
    503: ["overloaded", "store_error", "damaged_bundle", "incompatible_bundle", "external_data", "no_device"],
}
"""What `code` of an error may be, by status."""
CODES[404] += ["unknown_model", "invalid_name"]

Responses = dict[int | str, dict[str, Any]]
ERRORS: Final[Responses] = {
    status: {
        "model": ErrorAnswer,
        "description": f"{told} `code` is one of: {', '.join(CODES[status])}.",
        "content": {JSON: {"examples": examples.ERROR}},
    }
    for status, told in {
        400: "The body cannot be read, or is not an object.",
        403: "A browser sends it for a page of another site.",
        404: "There is no such model, version, alias, file or prediction.",
        408: "The body did not come to its end in time.",
        413: "The body is larger than the server accepts, or holds more values.",
        415: "The body is of a media type that is not taken, or compressed.",
        422: "A value is not acceptable; the error names it.",
        500: "The server failed on this request; its log says why, by the request's `X-Request-ID`.",
        503: "It does not verify or takes long to load, the store cannot be read, or too many requests wait. Where it "
        "is worth asking again, `Retry-After` says when.",
    }.items()
}
UNKNOWN: Final[Responses] = {status: ERRORS[status] for status in (404, 422, 500, 503)}
"""The errors of a route with a model's name in it."""
UNREADABLE: Final[Responses] = {status: ERRORS[status] for status in (500, 503)}
"""The errors of a route that reads the store."""
