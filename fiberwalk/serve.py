"""`fiberwalk serve`: runs the server."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from model_store.errors import ConfigError, FiberwalkError
from model_store.shelf import is_one_models

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_OPTIONS: Final[dict[str, Any]] = {
    "log_level": "warning",
    "access_log": False,
    "server_header": False,
    # Nothing here asks who a client is, or by which scheme it came.
    "proxy_headers": False,
    "ws": "none",
    "http": "service.connections:BoundedProtocol",
    "timeout_graceful_shutdown": 30,
    # Proxies and balancers keep connections for 60 s. One that is closed under them meets a request on its way, which
    # nobody knows to be answered or not. Where connections are many the crowd has less patience.
    "timeout_keep_alive": 75,
    # Of workers alone. On a busy machine one takes longer than uvicorn's own 5 s to start, and would be ended for that.
    "timeout_worker_healthcheck": 15,
}
"""Of uvicorn, whatever the number of workers."""


def register(app: typer.Typer) -> None:
    """Adds the command to the `fiberwalk` application."""
    app.command("serve")(_command)


def serve(
    *,
    store: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
    redis_url: str | None = None,
    log_level: str | None = None,
) -> None:
    """Serves a model store until the process is told to stop; requests in flight are then still answered.

    Several workers are processes of their own that share the address; one that ends is started again. What is None
    comes from the environment (`FIBERWALK_STORE` and so on) or the defaults.

    Raises:
        ConfigError: a setting is not usable, there is no store, or the address is not free.
        FiberwalkError: one of several workers did not start.
    """
    # Imported here, so that the other commands start without the web.
    import uvicorn

    from service.app import create_app
    from service.log import log_config, make_logger
    from service.metrics import WORKERS_FOLDER
    from service.settings import load_settings, misspelt

    given = {
        "store": store,
        "host": host,
        "port": port,
        "workers": workers,
        "redis_url": redis_url,
        "log_level": log_level,
    }
    settings = load_settings(**given)
    # Where a machine reads the log, every line is JSON.
    log = make_logger(settings) if settings.log_format == "json" else None
    for variable, meant in misspelt().items():
        told = f"{variable} is no setting and is left aside; {meant} is one."
        _tell(log, "warning", told, event="setting_unknown", variable=variable, meant=meant)
    if not settings.store.is_dir():
        raise ConfigError(
            f"There is no model store at {settings.store}; build a model first, or say where with --store.",
            field="store",
        )
    if is_one_models(settings.store):
        raise ConfigError(
            f"{settings.store} is the folder of one model; name the store that it lies in.", field="store"
        )
    if settings.device == "cuda":
        # Told here, once, and not by every worker. ONNX Runtime is imported by those who need it anyway.
        from service.providers import possible_devices

        possible_devices(settings.device)
    if settings.redis_url is not None:
        from service.redis_link import make_client

        make_client(settings.redis_url.get_secret_value(), settings.redis_timeout).close()
    options = _OPTIONS | {"log_config": log_config(settings)}
    listener = _listen(settings.host, settings.port)
    with listener:
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        told = f"fiberwalk serves {settings.store} at {url}"
        _tell(log, "info", told, event="serving", store=str(settings.store), url=url)
        if settings.workers == 1:
            # As a terminal that goes away says it; nohup has it ignored.
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
                signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
            uvicorn.Server(uvicorn.Config(create_app(settings), **options)).run(sockets=[listener])
            return
        if settings.redis_url is None:
            told = (
                "Without a Redis a worker knows its own predictions alone: /feedback by request id finds none of the "
                "others', and a model's health is that of one worker. Name one with --redis-url."
            )
            _tell(log, "warning", told, event="workers_without_redis", reason=told)
        with tempfile.TemporaryDirectory(prefix="fiberwalk-workers-") as folder:
            from fiberwalk.workers import serve_side_by_side

            # Workers start from nothing but the environment.
            named = {f"FIBERWALK_{name.upper()}": str(value) for name, value in given.items() if value is not None}
            os.environ.update(named)
            os.environ[WORKERS_FOLDER] = folder
            serve_side_by_side(settings, listener, options)


def _tell(log: FilteringBoundLogger | None, level: str, told: str, event: str, **fields: str) -> None:
    """Tells a person, or a log."""
    if log is None:
        typer.echo(told, err=True)
    else:
        getattr(log, level)(event, **fields)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as e:
        raise ConfigError(f"--host {host} is no address to listen on: {e.strerror}.", field="host", got=host) from e
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by the connections. Without it the second part of an answer waits 40 ms until the client's system
        # acknowledges the first.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as e:
        listener.close()
        raise ConfigError(
            f"Cannot listen on {host}:{port} ({e.strerror}); choose another address with --host or --port.",
            field="port",
            got=str(port),
        ) from e
    return listener


def _command(
    store: Annotated[
        Path | None, typer.Option(help="Folder of the model store; default: models. Environment: FIBERWALK_STORE.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Environment: FIBERWALK_HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(help="TCP port; 0 takes a free one; default: 8000. Environment: FIBERWALK_PORT.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that answer side by side. Environment: FIBERWALK_WORKERS.")
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(help="Redis that servers share weights and monitors in. Environment: FIBERWALK_REDIS_URL."),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error. Environment: FIBERWALK_LOG_LEVEL.")
    ] = None,
) -> None:
    """Serve the models of a store over HTTP."""
    try:
        serve(store=store, host=host, port=port, workers=workers, redis_url=redis_url, log_level=log_level)
    except FiberwalkError as e:
        expected = f" (expected: {e.expected})" if e.expected else ""
        typer.echo(f"fiberwalk serve: {e.message}{expected}", err=True)
        raise typer.Exit(1) from e
