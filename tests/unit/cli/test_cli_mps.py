"""A deployment's MPS over a stand-in for NVIDIA's program, and a real supervisord."""

import io
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tandem.cli.deployment import Deployment, Overrides, make_run_dir, resolve
from tandem.cli.mps import environments, find_mps, start_mps, stop_clients, stop_mps
from tandem.cli.supervision import DaemonState, Supervisor, render_conf
from tandem.device.cuda.gpu import GpuFacts, GpuSearch
from tandem.errors import DeviceFaultError
from tests.support import fake_mps_control

H200 = GpuFacts("H200", (13, 0), (9, 0), 132, 1 << 37, has_mps=False)
DEAF_UNTIL_ENDED = """
import os, signal, sys
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
(Path(sys.argv[0]).parent / "deaf.pid").write_text(str(os.getpid()))
while True:
    signal.pause()
"""


def found() -> GpuSearch:
    return GpuSearch(H200)


@pytest.fixture
def environ(tmp_path) -> dict[str, str]:
    return {"PATH": f"{fake_mps_control.install(tmp_path)}"}


@pytest.fixture
def run_dir():
    with tempfile.TemporaryDirectory(prefix="t s") as name:
        make_run_dir(Path(name))
        yield Path(name)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def deployment(run_dir: Path, mode: str = "semi-pd", **environ: str) -> Deployment:
    return resolve(Overrides(run_dir=run_dir, mode=mode), environ)


def test_a_machine_without_a_gpu_or_without_the_program_has_no_mps(run_dir, environ):
    ours = deployment(run_dir)
    assert find_mps(ours, environ, lambda: GpuSearch(None, "none")) is None
    assert find_mps(ours, {"PATH": "/nonexistent"}, found) is None


def test_a_daemon_that_recovers_from_a_fault_is_there_all_the_same(run_dir, environ):
    def refused() -> GpuSearch:
        raise DeviceFaultError("cuInit: CUDA_ERROR_MPS_SERVER_NOT_READY (807)")

    assert find_mps(deployment(run_dir), environ, refused) is not None


@pytest.mark.parametrize("backend", ["cpu-affinity", "timeshare"])
def test_backends_without_mps_need_none(run_dir, environ, backend):
    configured = {"TANDEM_PREFILL_PARTITION_BACKEND": backend, "TANDEM_DECODE_PARTITION_BACKEND": backend}
    assert find_mps(deployment(run_dir, **configured), environ, found) is None


def test_both_phases_in_one_process_need_none(run_dir, environ):
    assert find_mps(deployment(run_dir, mode="colocated"), environ, found) is None


def test_the_phases_alone_are_clients(run_dir, environ):
    ours = deployment(run_dir)
    mps = find_mps(ours, environ, found)
    own = {"CUDA_MPS_PIPE_DIRECTORY": f"{run_dir}/mps", "CUDA_MPS_LOG_DIRECTORY": f"{run_dir}/logs/mps"}
    assert environments(ours, mps) == {"prefill": own, "decode": own}
    assert environments(ours, None) == {}


def test_a_percentage_is_given_at_the_start(run_dir, environ):
    configured = {
        "TANDEM_DECODE_PARTITION_BACKEND": "mps-percentage",
        "TANDEM_CONTROLLER_PREFILL_PERCENT": "30",
        "TANDEM_CONTROLLER_DECODE_PERCENT": "70",
    }
    ours = deployment(run_dir, **configured)
    given = environments(ours, find_mps(ours, environ, found))
    assert given["decode"]["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "70"
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in given["prefill"]


def test_the_environment_reaches_the_services(run_dir, environ):
    ours = deployment(run_dir)
    conf = render_conf(ours, environments(ours, find_mps(ours, environ, found)))
    programs = {part.split("]")[0]: part for part in conf.split("[program:")[1:]}
    with_mps = {name for name, program in programs.items() if f'CUDA_MPS_PIPE_DIRECTORY="{run_dir}/mps"' in program}
    assert with_mps == {"prefill", "decode", "watchdog"}, "the watchdog ends clients through the daemon"


def test_the_daemon_is_started_once_and_stopped(run_dir, environ, console):
    ours = deployment(run_dir)
    mps = find_mps(ours, environ, found)
    for _ in range(2):
        start_mps(mps, console)
        assert mps.is_running()
    assert console.file.getvalue().count("MPS control daemon in") == 1
    stop_mps(ours, mps, console)
    assert not mps.is_running()


def test_somebody_elses_daemon_is_used_and_left_running(run_dir, environ, console, tmp_path):
    ours = deployment(run_dir)
    environ |= {"CUDA_MPS_PIPE_DIRECTORY": f"{tmp_path}/theirs", "CUDA_MPS_LOG_DIRECTORY": f"{tmp_path}/log"}
    mps = find_mps(ours, environ, found)
    start_mps(mps, console)
    stop_mps(ours, mps, console)
    assert mps.is_running()


def test_a_daemon_that_does_not_start_is_no_failure(run_dir, environ, console, tmp_path):
    (tmp_path / fake_mps_control.PROGRAM).write_text("#!/bin/sh\nexit 1\n")
    start_mps(find_mps(deployment(run_dir), environ, found), console)
    assert "control.log; the phases will take turns" in console.file.getvalue()


@pytest.fixture
def supervisor(run_dir):
    ours = render_conf(deployment(run_dir), {})
    (run_dir / "deaf.py").write_text(DEAF_UNTIL_ENDED)
    program = f"\n[program:decode]\ncommand = '{sys.executable}' '%(here)s/deaf.py'\nstopwaitsecs = 60\n"
    supervisor = Supervisor(run_dir)
    supervisor.start(ours[: ours.index("\n[program:")] + program)
    yield supervisor
    if supervisor.state() is DaemonState.RUNNING:
        supervisor.request_shutdown()
    supervisor.wait_ended(60)


def test_a_busy_client_is_ended_through_the_daemon_before_any_kill(run_dir, environ, console, supervisor, monkeypatch):
    monkeypatch.setattr("tandem.cli.mps.PATIENCE_S", 0.5)
    ours = replace(deployment(run_dir), drain_timeouts_s={"decode": 0.5})
    mps = find_mps(ours, environ, found)
    start_mps(mps, console)
    pid_file, deadline_s = run_dir / "deaf.pid", time.monotonic() + 60
    while not pid_file.exists() or not pid_file.read_text():
        assert time.monotonic() < deadline_s, "the program did not start"
        time.sleep(0.02)
    pid = supervisor.processes()["decode"].pid
    fake_mps_control.connect(mps.directories.pipe, 700, pid)
    stop_clients(ours, supervisor, mps, console)
    assert supervisor.processes()["decode"].pid == 0
    assert fake_mps_control.read(mps.directories.pipe)["terminated"] == [pid]
    assert f"ended the work of pid {pid}" in console.file.getvalue()
    log = (run_dir / "logs" / "supervisord.log").read_text()
    assert "SIGKILL" not in log
