"""What the pages of this server may do in a browser."""

from __future__ import annotations


def page_headers(allowed: str, *, framed: bool = False) -> dict[str, str]:
    """Headers of a page that may run and fetch what is `allowed` (directives of a Content-Security-Policy) and nothing
    else, and whose type is not guessed; unless `framed`, no other page may show it within itself."""
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    headers = {"X-Content-Type-Options": "nosniff"}
    if not framed:
        policy += "; frame-ancestors 'none'"
        headers["X-Frame-Options"] = "DENY"
    return headers | {"Content-Security-Policy": policy}
