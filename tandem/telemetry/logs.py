"""Logs: one JSON object a line on stderr, with timestamp, level, service, event and the event's fields.

A handler binds what belongs to the whole call (``structlog.contextvars.bound_contextvars(request_id=...)``). What
libraries send to the standard logging module comes out in the same shape. A line that cannot be written, because the
disk is full or its reader has gone, is lost, and nothing else is.
"""

import logging
import sys
import threading
from contextlib import suppress
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

_LEADING = ("timestamp", "level", "service", "event")


def configure_logging(service: str, level: str) -> None:
    """Sets this process's logging up. `level`: ``debug``, ``info``, ``warning`` or ``error``; less is cut."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _service_binder(service),
    ]
    rendering: list[Processor] = [
        structlog.processors.format_exc_info,
        _leading_fields_first,
        structlog.processors.JSONRenderer(default=str),
    ]
    lines = _Lines(sys.stderr)
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_names: lines,
        cache_logger_on_first_use=False,
    )
    _configure_standard_logging(threshold, shared, rendering)


class _Lines:
    """Where events go, rendered: past the standard module, whose records cost more than all the rest of a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def msg(self, line: str) -> None:
        """Writes it, or loses it."""
        with self._lock, suppress(OSError, ValueError):  # full, gone, or closed
            self._stream.write(line + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = exception = msg


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Loses what cannot be written. The standard one prints a traceback of it, to where there is no room either."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging names it
        """Inside the handling of the exception that a line has met."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


def _configure_standard_logging(threshold: int, shared: list[Processor], rendering: list[Processor]) -> None:
    renderers = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering]
    handler = _StderrHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=renderers))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(threshold)


def _service_binder(service: str) -> Processor:
    def bind(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    return bind


def _leading_fields_first(_logger: Any, _method: str, event: EventDict) -> EventDict:
    return {key: event[key] for key in _LEADING if key in event} | dict(event)
