"""The container health check against servers of grpc's own health service."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tandem.rpc.health_probe import main, probe

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def address(tmp_path):
    """A server with one service that serves and one that does not."""
    servicer = health.HealthServicer()
    servicer.set("ready", SERVING)
    servicer.set("waiting", NOT_SERVING)
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"unix:{tmp_path / 'h.sock'}"
    server.add_insecure_port(address)
    server.start()
    yield address
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("service_name", "status", "seen"),
    [("ready", 0, "SERVING"), ("waiting", 1, "NOT_SERVING"), ("unknown", 1, "NOT_FOUND")],
)
def test_only_serving_is_success(address, capsys, service_name, status, seen):
    assert main([address, service_name]) == status
    assert capsys.readouterr().out == f"{seen}\n"


def test_nobody_there_is_a_failure(tmp_path, capsys):
    assert main([f"unix:{tmp_path / 'none.sock'}", "ready"]) == 1
    assert capsys.readouterr().out == "UNAVAILABLE\n"


def test_a_server_that_does_not_answer_is_given_up(tmp_path):
    path = tmp_path / "mute.sock"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(os.fspath(path))
        mute.listen()
        assert probe(f"unix:{path}", "ready", deadline_s=0.2) in {"DEADLINE_EXCEEDED", "UNAVAILABLE"}


def test_missing_arguments_are_a_failure(capsys):
    assert main(["only-an-address"]) == 1
    assert "usage" in capsys.readouterr().out


def test_it_runs_as_a_command(address):
    def command(service_name: str) -> int:
        arguments = [sys.executable, "-m", "tandem.rpc.health_probe", address, service_name]
        return subprocess.run(arguments, check=False).returncode

    assert (command("ready"), command("waiting")) == (0, 1)
