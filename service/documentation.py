"""The API's description, and the page that shows it, which loads nothing from elsewhere."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles

from service.described import schemas_of_requests
from service.formats import JSON
from service.pages import page_headers

_BACK: Final = b'<nav class="back"><a href="./">Models of this server</a></nav>'
_STYLE: Final = b"""<style>.back{font:14px sans-serif;padding:1rem 1.4rem 0}
.swagger-ui .opblock .opblock-summary-method{color:#111;text-shadow:none}
.swagger-ui .btn.execute{background:#1a5fb4;border-color:#1a5fb4}.swagger-ui .info a{color:#1a5fb4}</style>"""
"""White letters on Swagger UI's pale colours are hard to read."""
_TAGS: Final = [
    {"name": "inference", "description": "Predictions, and how unfamiliar rows are."},
    {"name": "watching", "description": "True targets, and whether a model keeps its word."},
    {"name": "models", "description": "What is served."},
    {"name": "operation", "description": "For whoever runs the server."},
]
_SCRIPT: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def document(app: FastAPI, router: APIRouter) -> None:
    """Gives an application with the routes of a router `/openapi.json` and, at `/docs`, Swagger UI."""
    app.openapi = lambda: _openapi(app, router)  # type: ignore[method-assign]

    # Relative addresses hold behind any prefix of a proxy.
    made = bytes(
        get_swagger_ui_html(
            openapi_url="openapi.json",
            title=f"{app.title}: API documentation",
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon.png",
        ).body
    )
    page = made.replace(b"<html>", b'<html lang="en">').replace(b"</head>", _STYLE + b"</head>")
    page = page.replace(b"<body>", b"<body>" + _BACK)
    headers = page_headers(_policy(page))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    app.mount("/docs", StaticFiles(directory=str(files("fastapi_offline") / "static")))


def _policy(page: bytes) -> str:
    """What Swagger UI needs: files of this server, the page's own script and no other, styles that it sets as it runs,
    pictures that its stylesheet brings, and to ask this server."""
    own = " ".join(f"'sha256-{b64encode(sha256(script).digest()).decode()}'" for script in _SCRIPT.findall(page))
    return f"script-src 'self' {own}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"


_SIZES: Final = {"integer": "int64", "number": "double"}
"""Languages that have several kinds of numbers else take 32 bits, or decimals."""
_HEADERS: Final = {
    "X-Request-ID": {
        "description": "What the request is called in the server's log; feedback names a prediction by it.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Retry-After": {"description": "Seconds after which to ask again.", "schema": {"type": "integer"}},
}


def _openapi(app: FastAPI, router: APIRouter) -> dict[str, Any]:
    """The API's description, with the request schemas and headers that the framework does not see."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            tags=_TAGS,
            # Relative to the description's own address, as the page's are: without it Swagger UI asks at the root.
            servers=[{"url": "./", "description": "This server, behind whatever prefix."}],
        )
        parts = schema["components"]
        for answer in parts["schemas"].values():
            # Later servers may say more: clients must not take what they do not know for a fault.
            answer.pop("additionalProperties", None)
            for field in answer.get("properties", {}).values():
                field.pop("default", None)  # of what is always there
        parts["schemas"] |= schemas_of_requests()
        parts["headers"] = _HEADERS
        for route in (each for each in router.routes if isinstance(each, APIRoute) and each.include_in_schema):
            for method in route.methods or ():
                _complete(schema["paths"][route.path][method.lower()], route.openapi_extra or {})
        app.openapi_schema = _plain(schema)
    return app.openapi_schema


def _complete(operation: dict[str, Any], extra: Mapping[str, Any]) -> None:
    """Adds the headers of an operation's answers, and the examples as they are: the framework drops what is null."""
    for status, response in operation["responses"].items():
        response["headers"] = {"X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"}}
        if status == "503":
            response["headers"]["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    if extra:
        operation["requestBody"] = extra["requestBody"]
        operation["responses"]["200"]["content"][JSON] |= extra["responses"]["200"]["content"][JSON]


def _plain(part: Any) -> Any:
    """A description in which alternatives of plain types, such as a text or null, are one schema of several types, and
    numbers have a size: generated clients make better types of that."""
    if isinstance(part, list):
        return [_plain(each) for each in part]
    if not isinstance(part, dict):
        return part
    found = _merged({name: _plain(each) for name, each in part.items()})
    if "prefixItems" in found:  # of one type everywhere here; for those who do not know of them
        found["items"] = found["prefixItems"][0]
    types = found.get("type")
    for kind, size in _SIZES.items():
        if types in (kind, [kind, "null"]):
            found["format"] = size
    return found


def _merged(found: dict[str, Any]) -> dict[str, Any]:
    """A schema with `anyOf`, as one of several types where that says the same."""
    each = found.get("anyOf", [])
    types = [one.get("type") for one in each]
    if not each or not all(isinstance(kind, str) for kind in types) or len(set(types)) < len(types):
        return found
    for one in each:
        one.pop("format", None)
        if "enum" in one:  # holds for all types
            if types != [one["type"], "null"]:
                return found
            one["enum"] = [*one["enum"], None]
    del found["anyOf"]
    return {"type": types} | {name: value for one in each for name, value in one.items() if name != "type"} | found
