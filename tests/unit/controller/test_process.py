"""`python -m services.controller.main` as a process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.rpc.controller_client import ControllerClient
from tandem.types import Split
from tests.support.health import wait_until_serving
from tests.support.sockets import short_run_dir

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 60


@pytest.fixture
def run_dir():
    with short_run_dir() as path:
        yield path


@pytest.fixture
def start(run_dir):
    started = []

    def start(*flags: str, **environ: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "services.controller.main", "--run-dir", str(run_dir), *flags]
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environ}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_ends_with_0_on_a_signal(start, run_dir, number):
    process = start("--decode-percent", "70")
    wait_until_serving(f"unix:{run_dir}/controller.sock", "controller", TIMEOUT_S)
    assert psutil.Process(process.pid).cmdline()[0].startswith("tandem-controller")
    with ControllerClient(f"unix:{run_dir}/controller.sock") as client:
        assert client.status().decision.split == Split(50, 70)
    process.send_signal(number)
    _, logs = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    events = [json.loads(line) for line in logs.splitlines()]
    names = [event["event"] for event in events]
    assert (names[0], names[-1]) == ("service.starting", "service.stopped")
    assert "split.decided" in names
    assert events[0]["config"]["decode_percent"] == 70
    assert not (run_dir / "controller.sock").exists()


def test_it_ends_while_links_are_open(start, run_dir):
    process = start()
    wait_until_serving(f"unix:{run_dir}/controller.sock", "controller", TIMEOUT_S)
    with grpc.insecure_channel(f"unix:{run_dir}/controller.sock") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        next(watch)
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0


def test_after_kill_9_it_starts_again_in_the_same_place(start, run_dir):
    first = start()
    wait_until_serving(f"unix:{run_dir}/controller.sock", "controller", TIMEOUT_S)
    first.kill()
    first.wait()
    assert (run_dir / "controller.sock").exists()
    start()
    wait_until_serving(f"unix:{run_dir}/controller.sock", "controller", TIMEOUT_S)


def test_a_second_one_in_the_same_place_is_refused(start, run_dir):
    start()
    wait_until_serving(f"unix:{run_dir}/controller.sock", "controller", TIMEOUT_S)
    second = start()
    _, logs = second.communicate(timeout=TIMEOUT_S)
    assert second.returncode == 1
    (failed,) = [e for e in map(json.loads, logs.splitlines()) if e["event"] == "service.failed"]
    assert (failed["error"], "in use" in failed["message"]) == ("ConfigError", True)


@pytest.mark.parametrize(
    ("flags", "environ", "name"),
    [
        (["--prefil-percent", "1"], {}, "--prefil-percent"),
        ([], {"TANDEM_CONTROLLER_PLANER": "static"}, "TANDEM_CONTROLLER_PLANER"),
        (["--planner", "oracle"], {}, "controller.planner"),
    ],
)
def test_a_bad_configuration_ends_it_with_the_key_and_no_trace(start, flags, environ, name):
    process = start(*flags, **environ)
    _, text = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 2
    assert text.startswith("tandem-controller: " + name)
    assert "Traceback" not in text


def test_help(start):
    process = start("--help")
    text, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert "--window-requests" in text
