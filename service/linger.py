"""Answers to requests whose bodies were not read to their end."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_MOST_BYTES: Final = 2**29
_MOST_SECONDS: Final = 20.0
_IDLE_SECONDS: Final = 2.0
"""After so long without a byte no more are waited for."""


class LingeringResponse(Response):
    """A response that is sent at once, but ended only when the client has sent its body, within bounds.

    Usual clients read no answer before they have sent everything, and a connection that is closed under them takes the
    answer with it.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_MOST_SECONDS):
                await _discard(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    left = _MOST_BYTES
    while left > 0:
        message = await asyncio.wait_for(receive(), _IDLE_SECONDS)
        if not message.get("more_body"):  # the end, or the client has gone
            return
        left -= len(message["body"])
