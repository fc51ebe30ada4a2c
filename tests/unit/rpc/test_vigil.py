"""Who counts as hung."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import pytest

from tandem.rpc import health_probe, probe_vigil
from tandem.rpc.guard import end_hung, facts_of_listener, sight_of
from tandem.rpc.vigil import ProcessFacts, Sight, Vigil
from tests.support import fake_mps_control
from tests.support.sockets import short_run_dir

ROUND_S = 4.0
SERVICE = """
import asyncio, sys
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

async def main():
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("it", health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(f"unix:{sys.argv[1]}")
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


def process(pid=7, *, is_traced=False, waited_s=0.0) -> ProcessFacts:
    return ProcessFacts(pid, is_traced, waited_s)


def served(pid=7) -> Vigil:
    vigil = Vigil()
    vigil.look(Sight.SERVING, process(pid), 0.0, ROUND_S)
    return vigil


def silent(vigil: Vigil, now_s: float, facts: ProcessFacts | None = None) -> float:
    return vigil.look(Sight.SILENT, facts or process(), now_s, ROUND_S)


def test_silence_adds_up_and_an_answer_ends_it():
    vigil = served()
    assert [silent(vigil, now_s) for now_s in (2.0, 4.0, 6.0)] == [2.0, 4.0, 6.0]
    assert vigil.look(Sight.ANSWERING, process(), 8.0, ROUND_S) == 0.0
    assert silent(vigil, 10.0) == 2.0


def test_a_round_counts_for_no_more_than_it_was_to_last():
    assert silent(served(), 1000.0) == ROUND_S


def test_what_never_served_may_be_starting():
    vigil = Vigil()
    vigil.look(Sight.ANSWERING, process(), 0.0, ROUND_S)
    assert silent(vigil, 2.0) == 0.0


def test_another_process_has_a_vigil_of_its_own():
    vigil = served()
    silent(vigil, 2.0)
    assert silent(vigil, 4.0, process(8)) == 0.0
    assert silent(vigil, 6.0, process(8)) == 0.0, "nor has it served"
    assert vigil.look(Sight.ABSENT, None, 8.0, ROUND_S) == 0.0
    assert not vigil.has_served


def test_under_a_debugger_silence_does_not_count():
    assert silent(served(), 2.0, process(is_traced=True)) == 0.0


def test_waiting_for_a_processor_is_no_hang():
    vigil = served()
    assert silent(vigil, 2.0, process(waited_s=1.5)) == 0.0
    assert silent(vigil, 4.0, process(waited_s=1.6)) == 2.0, "it had its turn"


@pytest.fixture
def service():
    """A health server of its own process, which has said SERVING once."""
    with short_run_dir() as run_dir:
        path = run_dir / "x.sock"
        process = subprocess.Popen([sys.executable, "-c", SERVICE, str(path)])
        while health_probe.probe(f"unix:{path}", "it") != "SERVING":
            assert process.poll() is None
            time.sleep(0.02)
        yield process, path
        process.kill()
        process.wait()


def test_a_stopped_service_is_silent_and_its_listener_is_known(service):
    process, path = service
    assert sight_of(path, "it", 5.0) is Sight.SERVING
    assert sight_of(path, "other", 5.0) is Sight.ANSWERING
    process.send_signal(signal.SIGSTOP)
    assert sight_of(path, "it", 0.3) is Sight.SILENT
    assert facts_of_listener(path).pid == process.pid
    end_hung("it", process.pid, 9.0, {})
    assert process.wait(30) == -signal.SIGKILL
    assert sight_of(path, "it", 5.0) is Sight.ABSENT
    assert facts_of_listener(path) is None


def test_probes_of_a_container_end_what_hangs(service, monkeypatch, tmp_path):
    process, path = service
    monkeypatch.setattr(probe_vigil.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(health_probe, "probe", partial(health_probe.probe, deadline_s=0.3))
    probe = [f"unix:{path}", "it", "0.5"]
    assert health_probe.main(probe) == 0
    process.send_signal(signal.SIGSTOP)
    deadline_s = time.monotonic() + 60
    while process.poll() is None:
        assert health_probe.main(probe) == 1
        assert time.monotonic() < deadline_s
    assert process.returncode == -signal.SIGKILL


def test_a_client_of_mps_loses_its_work_before_its_life(tmp_path):
    environ = {"PATH": f"{fake_mps_control.install(tmp_path)}", "CUDA_MPS_PIPE_DIRECTORY": f"{tmp_path}/pipe"}
    environ["CUDA_MPS_LOG_DIRECTORY"] = f"{tmp_path}/log"
    from tandem.device.cuda.mps import client_control

    client_control(environ).start()
    client = subprocess.Popen(
        ["/bin/sh", "-c", "trap '' USR1; echo; while :; do read x; done"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    client.stdout.readline()
    fake_mps_control.connect(tmp_path / "pipe", 700, client.pid)
    end_hung("decode", client.pid, 9.0, environ)
    assert client.wait(30) == -signal.SIGKILL
    assert fake_mps_control.read(tmp_path / "pipe")["terminated"] == [client.pid]


def test_a_debugger_is_seen(tmp_path):
    with short_run_dir() as run_dir, socket.socket(socket.AF_UNIX) as listener:
        path = run_dir / "x.sock"
        listener.bind(str(path))
        listener.listen()
        folder = tmp_path / str(os.getpid())
        folder.mkdir()
        (folder / "status").write_text("Name:\tx\nTracerPid:\t12\n")
        (folder / "schedstat").write_text("5000000000 2500000000 7\n")
        assert facts_of_listener(path, tmp_path) == ProcessFacts(os.getpid(), is_traced=True, waited_s=2.5)
