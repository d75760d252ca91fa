"""The API's description, and the page that shows it, which loads nothing from elsewhere."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from service.pages import page_headers
from service.schemas import FeedbackRequest, OodRequest, PredictRequest

_BACK: Final = b'<nav class="back"><a href="./">Models of this server</a></nav>'
_STYLE: Final = b"""<style>.back{font:14px sans-serif;padding:1rem 1.4rem 0}
.swagger-ui .opblock .opblock-summary-method{color:#111;text-shadow:none}
.swagger-ui .btn.execute{background:#1a5fb4;border-color:#1a5fb4}.swagger-ui .info a{color:#1a5fb4}</style>"""
"""White letters on Swagger UI's pale colours are hard to read."""
_SCRIPT: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def document(app: FastAPI) -> None:
    """Gives an application `/openapi.json` and, at `/docs`, Swagger UI."""
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]

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


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The API's description, with the request schemas that the framework does not see."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = schema["components"]["schemas"]
        for request in (PredictRequest, OodRequest, FeedbackRequest):
            schemas[request.__name__] = request.model_json_schema(ref_template="#/components/schemas/{model}")
        app.openapi_schema = schema
    return app.openapi_schema
