"""HTTP by itself: uvicorn and an application that reads each body and answers as many bytes as it is told to.

python -m benchmarks.serving.bare BYTES PORT
"""

from __future__ import annotations

import sys

import uvicorn
from starlette.types import Receive, Scope, Send


def main() -> None:
    """Serves until it is ended."""
    length, port = map(int, sys.argv[1:])
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % length)]

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            more = (await receive()).get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(length)})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False, lifespan="off")


if __name__ == "__main__":
    main()
