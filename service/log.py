"""The server's log: one structured line an event, on standard error."""

from __future__ import annotations

import atexit
import logging
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import Any, Final, TextIO, cast

import orjson
import structlog

from model_store.printable import harmless, harmless_lines
from service.settings import Settings

_GATHER_SECONDS: Final = 0.01
_MOST_LINES: Final = 10_000


def make_logger(settings: Settings) -> structlog.typing.FilteringBoundLogger:
    """A logger of the settings' level and format; nothing global is configured."""
    render: structlog.typing.Processor
    if settings.log_format == "json":
        # Without the frames' variables, which hold what clients sent.
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        shape: list[structlog.typing.Processor] = [structlog.processors.ExceptionRenderer(frames)]
        render = structlog.processors.JSONRenderer(serializer=_json)
    elif sys.stderr.isatty():
        shape = [structlog.processors.format_exc_info, _made_harmless]
        render = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    else:
        shape = [structlog.processors.format_exc_info]
        render = _plain
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    logger = structlog.wrap_logger(
        structlog.WriteLogger(cast(TextIO, _Gathered(sys.stderr))),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *shape,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
    )
    # What is wrapped is bound anew with each line; what is bound once, is not.
    return cast(structlog.typing.FilteringBoundLogger, logger.bind())


def log_config(settings: Settings) -> dict[str, Any]:
    """For `logging.config`: warnings and errors of uvicorn and asyncio become lines like those of the server."""
    own = {"handlers": ["own"], "level": "WARNING", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"own": {"()": _Forwarding, "settings": settings}},
        "loggers": {"uvicorn": own, "asyncio": own},
    }


class _Forwarding(logging.Handler):
    """Hands what the standard library's loggers are told over to a logger of the settings' level and format."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._log = make_logger(settings)

    def emit(self, record: logging.LogRecord) -> None:
        what = record.getMessage().strip().replace("\n", "; ")
        self._log.log(record.levelno, what, logger=record.name, exc_info=record.exc_info)


class _Gathered:
    """A stream that lines of some milliseconds go to together, written by a thread of its own.

    Each writing lets go of the interpreter's lock, which a busy server's event loop then waits for.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: deque[str] = deque()
        self._some = threading.Event()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> None:
        self._lines.append(text)
        if len(self._lines) > _MOST_LINES:
            self.drain()  # whoever reads them does not keep up: then neither may those who write
        if not self._some.is_set():
            self._some.set()
            if self._thread is None:
                self._start()

    def flush(self) -> None:
        """Nothing: the thread does it, and `drain` at the end."""

    def drain(self) -> None:
        """Writes what there is, if it can be written."""
        with self._writing:
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if lines:
                # What cannot be written is lost, and what comes later may be written again.
                with suppress(OSError, ValueError):
                    self._stream.write("".join(lines))
                    self._stream.flush()

    def _start(self) -> None:
        with self._writing:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="log", daemon=True)
                self._thread.start()
                atexit.register(self.drain)

    def _work(self) -> None:
        ever = threading.Event()
        while True:
            self._some.wait()
            ever.wait(_GATHER_SECONDS)
            # Before what is written: a line that comes now is seen now or sets it again.
            self._some.clear()
            self.drain()


def _json(event: object, **_: object) -> str:
    line = orjson.dumps(event, default=repr).decode()
    # JSON leaves some characters as they are that terminals obey; written out, they mean the same to its readers.
    return line if line.isascii() else harmless(line)


def _made_harmless(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What clients and bundles say, as a terminal may show it; what is no text is shown as Python writes it."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = harmless_lines(value) if name == "exception" else harmless(value)
    return event


def _plain(_: object, __: str, event: structlog.typing.EventDict) -> str:
    """A line that people read and programs cut: time, level, what happened, and `name=value` of everything else."""
    time, level, what = event.pop("timestamp"), event.pop("level"), event.pop("event")
    trace = event.pop("exception", None)
    values = " ".join([f"{name}={_shown(value)}" for name, value in sorted(event.items())])
    return f"{time} [{level}] {harmless(what)} {values}" + (f"\n{harmless_lines(trace)}" if trace else "")


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value if value.isprintable() and " " not in value and value else repr(value)
    return repr(value)
