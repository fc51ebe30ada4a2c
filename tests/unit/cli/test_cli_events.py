import json

import pytest

from tandem.cli.events import TAIL_BYTES, last_error, last_event, last_lines, parse_line


def line(event: str, level: str = "info", **fields: object) -> str:
    return json.dumps({"timestamp": "2030-01-02T03:04:05.678901Z", "level": level, "event": event, **fields}) + "\n"


def test_an_event_is_its_name_and_its_own_fields():
    event = parse_line(line("model.loaded", service="memd", load_s=1.5, name="a model", dtype="bf16"))
    assert event.summary() == 'model.loaded load_s=1.5 name="a model" dtype=bf16'
    assert event.level == "info"


def test_the_reason_of_an_end_is_the_errors_text():
    failed = parse_line(line("service.failed", "error", error="ConfigError", message="port: in use"))
    assert failed.reason() == "port: in use"
    assert parse_line(line("memd.lost", "error", exit_status=75)).reason() == "memd.lost exit_status=75"


def test_the_brief_form_leaves_whole_records_out():
    event = parse_line(line("service.starting", config={"port": 1}, names=["a"], pid=7))
    assert event.brief() == "service.starting pid=7"


def test_an_event_is_older_than_a_process_started_later():
    event = parse_line(line("a"))
    assert not event.is_before(1893553445)
    assert event.is_before(1893553446)
    assert not parse_line("no time").is_before(1e10)


@pytest.mark.parametrize("text", ["Traceback (most recent call last):", "[1, 2]", '{"no": 1}', '{"event":', "7", ""])
def test_a_line_that_is_no_event_is_shown_as_it_is(text):
    assert parse_line(text + "\n").summary() == text


def test_the_last_error_is_found_behind_later_lines(tmp_path):
    log = tmp_path / "memd.log"
    log.write_text(line("a", "error", n=1) + line("b", "error", n=2) + line("service.stopped"))
    assert last_error(log).summary() == "b n=2"
    assert last_event(log).name == "service.stopped"


def test_without_an_error_the_last_line_is_what_there_is(tmp_path):
    log = tmp_path / "memd.log"
    log.write_text(line("a") + "ModuleNotFoundError: No module named 'x'\n\n")
    assert last_error(log).name == "ModuleNotFoundError: No module named 'x'"


def test_a_log_that_is_not_there_holds_nothing(tmp_path):
    assert last_lines(tmp_path / "none", 5) == []
    assert last_error(tmp_path / "none") is None
    assert last_event(tmp_path / "none") is None


def test_only_whole_lines_of_a_long_log_are_read(tmp_path):
    log = tmp_path / "memd.log"
    log.write_text("x" * TAIL_BYTES + "\nlast\n")
    assert last_lines(log, 10) == ["last"]
