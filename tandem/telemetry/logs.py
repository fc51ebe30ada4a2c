"""Logs: one JSON object a line on stderr, with timestamp, level, service, event and the event's fields.

A handler binds what belongs to the whole call (``structlog.contextvars.bound_contextvars(request_id=...)``). What
libraries send to the standard logging module comes out in the same shape. A line that cannot be written, because the
disk is full or its reader has gone, is lost, and nothing else is.
"""

import json
import logging
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

_encode = json.JSONEncoder(default=str).encode


def configure_logging(service: str, level: str) -> None:
    """Sets this process's logging up. `level`: ``debug``, ``info``, ``warning`` or ``error``; less is cut."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    render = _renderer(service)
    lines = _Lines(sys.stderr)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_names: lines,
        cache_logger_on_first_use=False,
    )
    _configure_standard_logging(threshold, render)


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


def _configure_standard_logging(threshold: int, render: Processor) -> None:
    renderers = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, render]
    bound: list[Processor] = [structlog.contextvars.merge_contextvars]
    handler = _StderrHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=bound, processors=renderers))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(threshold)


def _renderer(service: str) -> Processor:
    """The whole line in one step: each request has two lines, and a processor a field costs more than the line."""

    def render(logger: Any, method: str, event: EventDict) -> str:
        if "exc_info" in event:
            event = structlog.processors.format_exc_info(logger, method, event)
        leading = {
            "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "level": method,
            "service": service,
            "event": event["event"],
        }
        return _encode({**leading, **event, **leading})

    return render
