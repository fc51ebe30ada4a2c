"""How a service's process ends, seen from outside."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = """
import os, signal, sys
from tandem.config.settings import DecodeConfig
from tandem.errors import ModelFormatError
from tandem.rpc.server import run_service

async def amain(stop):
    {body}

sys.exit(run_service("decode", DecodeConfig(), amain))
"""


def run(body: str) -> tuple[int, list[dict]]:
    command = [sys.executable, "-c", SCRIPT.format(body=body)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == ""
    return ended.returncode, [json.loads(line) for line in ended.stderr.splitlines()]


@pytest.mark.parametrize("status", [0, 75])
def test_the_status_of_the_service_is_that_of_the_process(status):
    code, events = run(f"return {status}")
    assert code == status
    assert [event["event"] for event in events] == ["service.starting", "service.stopped"]
    assert events[-1]["status"] == status
    assert all(event["service"] == "decode" for event in events)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_set_the_event(name):
    code, _ = run(f"os.kill(os.getpid(), signal.{name}); await stop.wait(); return 7")
    assert code == 7


def test_an_error_of_ours_is_one_event_without_a_trace():
    code, events = run("raise ModelFormatError('model.gguf: truncated')")
    failed = events[1]
    assert code == 1
    assert (failed["event"], failed["error"]) == ("service.failed", "ModelFormatError")
    assert failed["message"] == "model.gguf: truncated"
    assert "exception" not in failed


def test_any_other_exception_is_one_event_with_its_trace():
    code, events = run("raise ZeroDivisionError('odd')")
    assert code == 1
    assert events[1]["event"] == "service.crashed"
    assert "ZeroDivisionError: odd" in events[1]["exception"]
