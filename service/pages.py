"""What the pages of this server may do in a browser."""

from __future__ import annotations

_NEVER = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def page_headers(allowed: str) -> dict[str, str]:
    """Headers of a page that may run and fetch what is `allowed` (directives of a Content-Security-Policy) and nothing
    else, that no other page may show within itself, and whose type is not guessed."""
    return {
        "Content-Security-Policy": f"default-src 'none'; {allowed}; {_NEVER}",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
