import io
import json
import logging
from datetime import UTC, datetime

import pytest
import structlog

from tandem.telemetry.logs import configure_logging


@pytest.fixture
def logged(monkeypatch):
    stderr = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    monkeypatch.setattr("sys.stderr", stderr)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    configure_logging("memd", "info")
    yield lambda: [json.loads(line) for line in stderr.buffer.getvalue().splitlines()]
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def test_an_event_is_one_json_line_with_its_fields(logged):
    structlog.get_logger().info("lease.released", lease_id=7, num_blocks=3)
    (event,) = logged()
    assert list(event)[:4] == ["timestamp", "level", "service", "event"]
    assert (event["level"], event["service"], event["event"]) == ("info", "memd", "lease.released")
    assert (event["lease_id"], event["num_blocks"]) == (7, 3)
    assert datetime.fromisoformat(event["timestamp"]).tzinfo == UTC


def test_what_is_below_the_level_is_cut(logged):
    structlog.get_logger().debug("step.done")
    logging.getLogger("asyncio").debug("noise")
    assert logged() == []


def test_the_request_id_is_bound_for_a_whole_call(logged):
    log = structlog.get_logger()
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        log.info("request.started")
    log.info("idle")
    first, second = logged()
    assert first["request_id"] == "r-1"
    assert "request_id" not in second


def test_standard_logging_has_the_same_shape(logged):
    logging.getLogger("asyncio").warning("slow callback %s", "x")
    (event,) = logged()
    assert (event["level"], event["service"], event["event"]) == ("warning", "memd", "slow callback x")


def test_exceptions_stay_on_one_line(logged):
    try:
        raise ValueError("two\nlines")
    except ValueError:
        structlog.get_logger().exception("service.crashed")
    (event,) = logged()
    assert event["level"] == "error"
    assert "ValueError: two\nlines" in event["exception"]


def test_what_leads_is_the_lines_own_whatever_the_fields(logged):
    structlog.get_logger().warning("peer.away", service="other", level="none", timestamp=0, peer="memd")
    (event,) = logged()
    assert (event["service"], event["level"], event["peer"]) == ("memd", "warning", "memd")
    assert isinstance(event["timestamp"], str)


def test_values_that_json_does_not_know_are_written_as_text(logged, tmp_path):
    structlog.get_logger().info("file.read", path=tmp_path)
    assert logged()[0]["path"] == str(tmp_path)


def test_text_outside_ascii_and_broken_text(logged):
    structlog.get_logger().info("request.refused", field="größe")
    structlog.get_logger().info("request.refused", field="\udc80")
    first, second = logged()
    assert first["field"] == "größe"
    assert second["field"]
