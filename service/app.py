"""The ASGI application: `uvicorn --factory service.app:create_app`."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model_store.errors import FiberwalkError, InputError, OverloadedError
from service.documentation import document
from service.linger import LingeringResponse
from service.memory import forget_frames, keep_large_apart, share_arenas
from service.observe import ObserveRequests
from service.protocol import error_body, status_of
from service.routes import router
from service.runtime import Runtime
from service.settings import Settings, load_settings

_DESCRIPTION = """Predictions with calibrated error bars from Bayesian neural networks.

Every error, of whatever status, has one shape: `{"error": {code, message, field, expected, got}}`."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """A new application; its models are loaded in the background once it runs.

    Args:
        settings: where they should not come from the environment.

    Raises:
        ConfigError: a setting is not usable.
    """
    runtime = Runtime(settings or load_settings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # What is there by now stays; looking through it for garbage again and again would hold requests up.
        gc.collect()
        gc.freeze()
        share_arenas()
        keep_large_apart()
        runtime.start()
        yield
        runtime.stop()

    app = _Application(
        title="fiberwalk",
        version=version("fiberwalk"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.runtime = runtime
    app.include_router(router)
    app.go_straight(router, runtime)
    app.add_middleware(_HeadAsGet)
    app.add_middleware(ObserveRequests, runtime=runtime)
    app.add_exception_handler(FiberwalkError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    document(app, router)
    return app


class _Application(FastAPI):
    """FastAPI, whose way to a route takes as long as a small network: requests for inference go straight to theirs."""

    _straight: Mapping[tuple[str, str], ASGIApp] = {}

    def go_straight(self, router: APIRouter, runtime: Runtime) -> None:
        """Lets requests for the inference routes of a router pass by the framework."""
        routes = [r for r in router.routes if isinstance(r, APIRoute) and "inference" in r.tags]
        self._straight = {
            (method, route.path): ObserveRequests(_Straight(route), runtime)
            for route in routes
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope.get("root_path"):
            straight = self._straight.get((scope["method"], scope["path"]))
            if straight is not None:
                scope["app"] = self
                await straight(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


class _HeadAsGet:
    """ASGI middleware: HEAD is answered as GET is, without the body. The framework's routes do not know it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def bodiless(message: Message) -> None:
            await send(dict(message, body=b"") if message["type"] == "http.response.body" else message)

        # A range is one of GET alone.
        asked = dict(scope, method="GET", headers=[h for h in scope["headers"] if h[0] != b"range"])
        try:
            await self._app(asked, receive, bodiless)
        finally:
            # Whoever counts requests by their routes looks for it here.
            scope["route"] = asked.get("route")


class _Straight:
    """A route without parameters as an ASGI application of its own."""

    def __init__(self, route: APIRoute) -> None:
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self._route
        request = Request(scope, receive, send)
        try:
            response = await self._route.endpoint(request)
        except FiberwalkError as e:
            response = await _on_error(request, e)
        await response(scope, receive, send)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FiberwalkError)
    request.state.code = error.code
    forget_frames(error)
    status = status_of(error)
    headers = None
    if error.code == "unsupported_content_encoding":
        headers = {"Accept-Encoding": "identity"}
    elif status in {408, 413}:
        # A body that was given up half-way cannot be followed by another request on the same connection.
        headers = {"Connection": "close"}
    elif isinstance(error, OverloadedError):
        headers = {"Retry-After": "1"}
    kind = LingeringResponse if getattr(request.state, "unread", False) else Response
    return kind(error_body(error), status, headers=headers, media_type="application/json")


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    request.state.code = code
    headers = dict(error.headers or {})
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"
    allowed = headers.get("Allow")
    asked = f"{request.method[:16]} {request.url.path[:120]}"
    shown = InputError(
        f"There is no {asked} here; " + (f"use {allowed}." if allowed else "/docs lists what there is."),
        code=code,
        expected=f"the method {allowed}" if allowed else "a path that /docs lists",
        got=asked,
    )
    # Nobody has read a body that came with it.
    return LingeringResponse(error_body(shown), error.status_code, headers=headers, media_type="application/json")


async def _on_invalid(request: Request, error: Exception) -> Response:
    shown = InputError("The request's path or query is not acceptable.", got=type(error).__name__)
    request.state.code = shown.code
    return Response(error_body(shown), 422, media_type="application/json")
