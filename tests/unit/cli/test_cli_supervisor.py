"""A real supervisord over a harmless program."""

import os
import signal
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tandem.cli.deployment import Overrides, make_run_dir, resolve
from tandem.cli.supervision import DaemonState, Supervisor, render_conf
from tandem.errors import ConfigError, NotReadyError

PROGRAM = """
[program:memd]
command = sleep 1000
"""
WITHIN_S = 60  # generous: the machine may be loaded


def conf_of(run_dir: Path) -> str:
    ours = render_conf(resolve(Overrides(run_dir=run_dir), {}), {})
    return ours[: ours.index("\n[program:")] + PROGRAM


def daemon_pid(run_dir: Path) -> int:
    return int((run_dir / "supervisord.pid").read_text())


def running(supervisor: Supervisor, besides: int = 0) -> psutil.Process:
    """The service's process, as soon as there is one other than `besides`."""
    deadline_s = time.monotonic() + WITHIN_S
    while (pid := supervisor.processes()["memd"].pid) in (0, besides):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return psutil.Process(pid)


@pytest.fixture
def run_dir():
    with tempfile.TemporaryDirectory(prefix="t s") as name:
        make_run_dir(Path(name))
        yield Path(name)


@pytest.fixture
def supervisor(run_dir):
    supervisor = Supervisor(run_dir)
    supervisor.start(conf_of(run_dir))
    yield supervisor
    if supervisor.state() is DaemonState.RUNNING:
        supervisor.request_shutdown()
    supervisor.wait_ended(WITHIN_S)


def test_nothing_runs_in_a_fresh_folder(run_dir):
    supervisor = Supervisor(run_dir)
    assert supervisor.state() is DaemonState.ABSENT
    with pytest.raises(NotReadyError, match="tandem up"):
        supervisor.processes()


def test_a_service_stops_and_starts_with_a_new_process(supervisor):
    before = running(supervisor)
    supervisor.stop_service("memd")
    supervisor.stop_service("memd")
    stopped = supervisor.processes()["memd"]
    assert (stopped.state, stopped.pid, stopped.uptime_s) == ("STOPPED", 0, 0)
    supervisor.start_service("memd")
    supervisor.start_service("memd")
    assert running(supervisor, besides=before.pid).pid != before.pid


def test_what_was_stopped_and_not_started_again_is_started(supervisor):
    before = running(supervisor)
    supervisor.start_stopped()
    assert running(supervisor).pid == before.pid
    supervisor.stop_service("memd")
    supervisor.start_stopped()
    assert running(supervisor, besides=before.pid).pid != before.pid


def test_a_service_that_is_killed_comes_back(supervisor):
    before = running(supervisor)
    before.kill()
    assert running(supervisor, besides=before.pid).is_running()


def test_the_daemon_is_no_child_of_ours_and_ends_with_its_services(supervisor, run_dir):
    daemon = psutil.Process(daemon_pid(run_dir))
    service = running(supervisor)
    assert daemon.ppid() != os.getpid()
    supervisor.request_shutdown()
    supervisor.wait_ended(WITHIN_S)
    service.wait(WITHIN_S)
    assert supervisor.state() is DaemonState.ABSENT


def test_it_starts_over_what_a_killed_one_left(supervisor, run_dir):
    service = running(supervisor)
    daemon = psutil.Process(daemon_pid(run_dir))
    daemon.send_signal(signal.SIGKILL)
    daemon.wait(WITHIN_S)
    service.kill()
    assert (run_dir / "supervisor.sock").exists()
    assert supervisor.state() is DaemonState.ABSENT
    supervisor.start(conf_of(run_dir))
    assert daemon_pid(run_dir) != daemon.pid
    assert supervisor.state() is DaemonState.RUNNING


def test_what_supervisord_says_against_its_configuration_is_told(run_dir):
    with pytest.raises(NotReadyError, match=r"did not start.*nonsense"):
        Supervisor(run_dir).start(conf_of(run_dir) + "autorestart = nonsense\n")


def test_a_full_disk_is_one_error_with_the_folder(run_dir):
    supervisor = Supervisor(run_dir)
    supervisor.conf_path.symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"run_dir: cannot write .*: No space left on device"):
        supervisor.start(conf_of(run_dir))


def test_a_configuration_that_has_gone_is_another_one(supervisor, run_dir):
    assert supervisor.is_started_with(conf_of(run_dir))
    supervisor.conf_path.unlink()
    assert not supervisor.is_started_with(conf_of(run_dir))
