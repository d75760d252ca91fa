"""What browsers may do here for the pages that they show, of this site and of others."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256

import httpx
import pytest

from tests.service.test_requests import refused

# ---- pages of other sites


@pytest.mark.parametrize("path", ["/predict", "/ood", "/feedback"])
def test_a_page_of_another_site_may_post_nothing(client: httpx.Client, path: str) -> None:
    content = {"model": "sine", "inputs": [[1, 2]]}
    own = client.post(path, json=content, headers={"Sec-Fetch-Site": "same-origin"})
    other = client.post(path, json=content, headers={"Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"})
    assert own.status_code != 403 and other.status_code == 403
    assert other.json()["error"]["code"] == "cross_site"


@pytest.mark.parametrize(
    ("origin", "kind", "site", "taken"),
    [
        # A page of another site, to a plain address where browsers do not tell the site.
        ("http://evil.example", "text/plain", None, False),
        ("http://evil.example", "Text/Plain; charset=utf-8", None, False),
        ("http://evil.example", "application/x-www-form-urlencoded", None, False),
        ("http://evil.example", "multipart/form-data; boundary=x", None, False),
        ("http://evil.example", None, None, False),
        ("null", "text/plain", None, False),
        ("http://models.example:9000", "text/plain", None, False),
        ("http://evil.example", "text/plain", "cross-site", False),
        ("http://models.example", "application/json", "cross-site", False),
        # One of this site.
        ("http://models.example", "text/plain", None, True),
        ("https://Models.example", "text/plain", None, True),
        ("https://models.example", None, "same-origin", True),
        # This site behind a proxy that names another host: what a browser would have asked for, or told the site of.
        ("http://proxied.example", "application/json", None, True),
        ("https://proxied.example", "text/plain", "same-origin", True),
        # No page at all.
        (None, "text/plain", None, True),
        (None, None, None, True),
    ],
)
def test_where_browsers_do_not_tell_the_site_the_origin_does(
    client: httpx.Client, origin: str | None, kind: str | None, site: str | None, taken: bool
) -> None:
    told = {"Host": "models.example", "Origin": origin, "Content-Type": kind, "Sec-Fetch-Site": site}
    headers = {name: value for name, value in told.items() if value is not None}
    content = json.dumps({"model": "sine", "inputs": [[1, 2]]})
    answer = client.post("/predict", content=content, headers=headers)
    assert (answer.status_code == 200) is taken
    if not taken:
        error = refused(answer, 403)
        assert error["code"] == "cross_site" and error["field"] in {"Origin", "Sec-Fetch-Site"}


# ---- our own pages


def directives(client: httpx.Client, path: str) -> tuple[str, dict[str, list[str]]]:
    """A page, and what its policy allows."""
    page = client.get(path)
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert (page.headers["x-content-type-options"], page.headers["x-frame-options"]) == ("nosniff", "DENY")
    parts = (part.split() for part in page.headers["content-security-policy"].split(";"))
    found = {name: values for name, *values in parts}
    for name in ("default-src", "base-uri", "form-action", "frame-ancestors"):
        assert found.pop(name) == ["'none'"]
    return page.text, found


def test_the_start_page_may_run_and_fetch_nothing(client: httpx.Client) -> None:
    page, allowed = directives(client, "/")
    assert allowed == {"style-src": ["'unsafe-inline'"]}
    assert "<script" not in page and " src=" not in page and "<link" not in page


def test_the_documentation_runs_its_own_scripts_alone(client: httpx.Client) -> None:
    page, allowed = directives(client, "/docs")
    assert set(allowed) == {"script-src", "style-src", "img-src", "connect-src"}
    assert {value for values in allowed.values() for value in values if not value.startswith("'")} == {"data:"}
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert "SwaggerUIBundle" in script
    assert allowed["script-src"] == ["'self'", f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"]
    # Nothing else in it would have to be allowed.
    assert not re.search(r"\son\w+=|javascript:", page)
