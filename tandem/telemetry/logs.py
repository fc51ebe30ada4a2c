"""Logs: one JSON object a line on stderr, with timestamp, level, service, event and the event's fields.

A handler binds what belongs to the whole call (``structlog.contextvars.bound_contextvars(request_id=...)``). What
libraries send to the standard logging module comes out in the same shape.
"""

import logging
import sys
from typing import Any

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
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    _configure_standard_logging(threshold, shared)


def _configure_standard_logging(threshold: int, shared: list[Processor]) -> None:
    renderers: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        _leading_fields_first,
        structlog.processors.JSONRenderer(default=str),
    ]
    handler = logging.StreamHandler(sys.stderr)
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
