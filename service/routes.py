"""The HTTP routes. Whatever computes or reads files runs in worker threads, never on the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from model_store.errors import FiberwalkError, InputError
from service import catalog, examples
from service.described import ERRORS, UNKNOWN, UNREADABLE, binary, body_of, text
from service.formats import JSON, WRITERS, Body, answer_type, to_json
from service.inference import Inference
from service.inputs import brief
from service.pages import page_headers
from service.request_schemas import FeedbackById, FeedbackWithInputs, OodRequest, PredictRequest
from service.runtime import Runtime
from service.schemas import (
    FeedbackAnswer,
    Liveness,
    ModelDetail,
    ModelHealth,
    ModelList,
    OodAnswer,
    PredictAnswer,
    Readiness,
)
from service.together import Steps

T = TypeVar("T")
# Operations are called as their functions are, and so are those of generated clients.
router = APIRouter(generate_unique_id_function=lambda route: route.name)

Head = dict[bytes, bytes]
"""A request's headers, their names in lower case."""

_SENT_UNASKED: Final = frozenset({"", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"})
"""Media types of what a browser sends to another site without asking it first."""


@router.post(
    "/predict",
    summary="Predict, with error bars",
    tags=["inference"],
    response_model=None,
    responses={200: {"model": PredictAnswer}, **ERRORS},
    openapi_extra=body_of(PredictRequest, asked=examples.PREDICT, answered=examples.PREDICTED),
)
async def predict(request: Request) -> Response:
    """The predictive distribution of every row, averaged over posterior samples, in the target's own units.

    The same request gets the same answer, on every server that has the same bundle, but for the last digits where it
    goes through the network together with others.
    """
    return await _computed(request, Inference.predict)


@router.post(
    "/ood",
    summary="Score how far rows lie from the training data",
    tags=["inference"],
    response_model=None,
    responses={200: {"model": OodAnswer}, **ERRORS},
    openapi_extra=body_of(OodRequest, asked=examples.OOD, answered=examples.SCORED),
)
async def ood(request: Request) -> Response:
    """How unfamiliar every row is, by each detector and by all together: score, conformal p-value, and a flag at the
    false alarm rate asked.

    P-values are held against scores of the default number of samples; other numbers give noisier or finer scores.
    """
    return await _computed(request, Inference.ood)


@router.post(
    "/feedback",
    summary="Tell the true targets of earlier predictions",
    tags=["watching"],
    response_model=None,
    responses={200: {"model": FeedbackAnswer}, **ERRORS},
    openapi_extra=body_of(
        FeedbackById, FeedbackWithInputs, asked=examples.FEEDBACK, answered=examples.TAKEN, rows_alone=False
    ),
)
async def feedback(request: Request) -> Response:
    """Takes targets by the X-Request-ID of a prediction, or with its inputs again, and says how well the model does.

    A prediction is kept until its targets came, or until newer ones need its room; where servers share a Redis, each
    knows what the others predicted, and targets of one prediction count once.
    """
    return await _computed(request, Inference.feedback)


@router.get(
    "/models/{name}/health",
    summary="Does the model keep its word?",
    tags=["watching"],
    response_model=None,
    responses={200: {"model": ModelHealth}, **UNKNOWN},
)
async def model_health(request: Request, name: str) -> Response:
    """Coverage, NLL and ECE over the latest rows whose targets are known, and whether calibration has broken."""
    return _json(await _reading(lambda: to_json(_runtime(request).feedback.health(name))))


@router.get(
    "/models",
    summary="List the models",
    tags=["models"],
    response_model=None,
    responses={200: {"model": ModelList}, **UNREADABLE},
)
async def list_models(request: Request) -> Response:
    """Every model of the store, with its versions and aliases."""
    return _json(await _reading(lambda: _dumped(ModelList(models=catalog.summaries(_runtime(request).models)))))


@router.get(
    "/models/{name}",
    summary="Describe a model",
    tags=["models"],
    response_model=None,
    responses={200: {"model": ModelDetail}, **UNKNOWN},
)
async def describe_model(request: Request, name: str) -> Response:
    """What a version takes and predicts, its card, and its figures. NAME, NAME@VERSION or NAME@ALIAS."""
    return _json(await _reading(lambda: _dumped(catalog.detail(_runtime(request).models, name))))


@router.get(
    "/models/{name}/files/{file}",
    summary="A picture or the card of a model",
    tags=["models"],
    response_class=Response,
    responses={
        200: {"content": {"image/png": binary("A picture."), "text/markdown": text("The card, in UTF-8.")}},
        **UNKNOWN,
    },
)
async def model_file(request: Request, name: str, file: str) -> Response:
    """One of the files that the model's description lists."""
    content, kind = await _reading(lambda: catalog.file(_runtime(request).models, name, file))
    return Response(content, media_type=kind, headers={"X-Content-Type-Options": "nosniff"})


@router.get(
    "/models/{name}/report",
    summary="The report of a model's build, to be read",
    tags=["models"],
    response_class=Response,
    responses={200: {"content": {"text/html": text("The page.")}}, **UNKNOWN},
)
async def model_report(request: Request, name: str) -> Response:
    """One page: what the model takes and answers, its figures, how it was calibrated, with pictures."""
    content = await _reading(lambda: catalog.report(_runtime(request).models, name))
    # It was written elsewhere: nothing in it may run or fetch anything.
    allowed = "img-src data:; style-src 'unsafe-inline'; sandbox"
    return HTMLResponse(content, headers=page_headers(allowed, framed=True))


@router.get("/healthz", summary="Is the process alive?", tags=["operation"])
async def healthz() -> Liveness:
    """Answers as long as the process does, whatever is loaded."""
    return Liveness(status="ok")


@router.get(
    "/readyz",
    summary="Should requests be sent here?",
    tags=["operation"],
    response_model=None,
    responses={
        200: {"model": Readiness, "description": "Send them."},
        500: ERRORS[500],
        503: {"model": Readiness, "description": "Send them elsewhere for now."},
    },
)
async def readyz(request: Request) -> Response:
    """200 once every model is loaded and warmed, or has taken two minutes; versions that do not verify or are still to
    be loaded are listed, the others go on serving.

    A store without any model is ready too, and lists none: the first one is taken up as it comes. 503 while the store
    cannot be read, has lost all its models or does not answer; what is loaded goes on serving.
    """
    models = _runtime(request).models
    state = models.state
    body = to_json({"status": state, "models": models.loaded(), "problems": models.problems()})
    return _json(body, 200 if state == "ready" else 503)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    tags=["operation"],
    response_class=Response,
    responses={200: {"content": {"text/plain": text("Prometheus' text format.")}}, 500: ERRORS[500]},
)
async def metrics(request: Request) -> Response:
    """All series in Prometheus' text format."""
    text = await _reading(_runtime(request).metrics.text)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/", include_in_schema=False)
async def start(request: Request) -> HTMLResponse:
    summaries = await _reading(lambda: catalog.summaries(_runtime(request).models))
    return HTMLResponse(catalog.page(summaries), headers=page_headers("style-src 'unsafe-inline'"))


def _runtime(request: Request) -> Runtime:
    return cast(Runtime, request.app.state.runtime)


async def _computed(request: Request, answer: Callable[[Inference, Body, dict[str, Any]], Steps]) -> Response:
    """The answer to a request's body, once it is its turn."""
    runtime = _runtime(request)
    # Looking each name up in the framework's headers takes longer than all of this.
    head = dict(request.scope["headers"])
    try:
        _refuse_other_sites(head)
        _refuse_compressed(head)
        data = await runtime.bodies.read(request.receive, head.get(b"content-length", b""))
    except FiberwalkError:
        request.state.unread = True
        raise
    try:
        query = tuple(request.query_params.multi_items()) if request.scope["query_string"] else ()
        body = Body(data, _media_type(head), query)
        kind = answer_type(",".join([_text(value) for name, value in request.scope["headers"] if name == b"accept"]))
        content = await runtime.scheduler.answer(
            lambda: answer(runtime.inference, body, request.scope["state"]), WRITERS[kind], request.receive
        )
    finally:
        runtime.bodies.release(data)
    return Response(content, media_type=kind)


def _refuse_other_sites(head: Head) -> None:
    """Pages of other sites must not make their visitors' browsers tell targets: what is posted as text, browsers send
    without asking whether it is wanted."""
    site, origin = head.get(b"sec-fetch-site"), head.get(b"origin")
    if site == b"cross-site":
        raise _of_another_site("Sec-Fetch-Site", "same-origin, same-site or none", _text(site))
    # Browsers tell the site to none but HTTPS and the machine itself; elsewhere they tell a page's origin alone. Behind
    # a proxy that names another host, that of our own page is foreign too, and nothing tells it from others but what
    # it sends: JSON or bytes, which a browser sends for a page of another site only once it was allowed to. Text and
    # forms it sends unasked.
    if site is None and origin is not None and _media_type(head) in _SENT_UNASKED:
        host = _text(head.get(b"host", b""))
        if _text(origin).partition("://")[2].lower() != host.lower():
            raise _of_another_site("Origin", f"an origin of the host {brief(host)}, or application/json", _text(origin))


def _of_another_site(header: str, expected: str, got: str) -> InputError:
    return InputError(
        "A browser sends this for a page of another site; ask from your own server, or from a page of this one.",
        code="cross_site",
        field=header,
        expected=expected,
        got=got[:80],
    )


def _media_type(head: Head) -> str:
    """What a body is, as the client says it, without parameters and in lower case; empty where it says nothing."""
    return _text(head.get(b"content-type", b"")).partition(";")[0].strip().lower()


def _text(value: bytes) -> str:
    return value.decode("latin-1")  # as HTTP's headers are


def _refuse_compressed(head: Head) -> None:
    coding = _text(head.get(b"content-encoding", b""))
    if coding.strip().lower() not in {"", "identity"}:
        raise InputError(
            "The body is compressed, which is not taken here; send it as it is, without Content-Encoding.",
            code="unsupported_content_encoding",
            field="Content-Encoding",
            expected="identity, or no Content-Encoding",
            got=brief(coding),
        )


async def _reading(call: Callable[[], T]) -> T:
    return await to_thread.run_sync(call)


def _dumped(content: BaseModel) -> bytes:
    return to_json(content.model_dump(mode="json"))


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type=JSON)
