"""The server's log: one structured line an event, on standard error."""

from __future__ import annotations

import logging
import sys
from typing import cast

import structlog

from service.settings import Settings


def make_logger(settings: Settings) -> structlog.typing.FilteringBoundLogger:
    """A logger of the settings' level and format; nothing global is configured."""
    render: structlog.typing.Processor
    if settings.log_format == "json":
        shape: list[structlog.typing.Processor] = [structlog.processors.dict_tracebacks]
        render = structlog.processors.JSONRenderer()
    else:
        shape = []
        plain = structlog.dev.plain_traceback
        render = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    logger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *shape,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
    )
    return cast(structlog.typing.FilteringBoundLogger, logger)
