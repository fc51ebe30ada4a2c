import os
import subprocess
import sys

import pytest

from tandem.device.cuda.mps import MpsControl, MpsDirectories
from tandem.errors import DeviceError
from tests.support import fake_mps_control

CLIENT = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", flush=True)
signal.sigwait([signal.SIGUSR1])
print("the work was ended")
"""


@pytest.fixture
def directories(tmp_path) -> MpsDirectories:
    return MpsDirectories(tmp_path / "pipe", tmp_path / "log")


@pytest.fixture
def control(directories, tmp_path) -> MpsControl:
    program = fake_mps_control.install(tmp_path) / fake_mps_control.PROGRAM
    return MpsControl(directories, os.environ, str(program))


def test_it_runs_from_its_start_to_its_stop(control):
    assert not control.is_running()
    control.start()
    assert control.is_running()
    control.stop()
    assert not control.is_running()


def test_its_directories_are_made_for_this_user_alone(control, directories):
    control.start()
    assert {folder.stat().st_mode & 0o777 for folder in (directories.pipe, directories.log)} == {0o700}


def test_clients_meet_it_by_the_environment(directories, tmp_path):
    assert directories.environment() == {
        "CUDA_MPS_PIPE_DIRECTORY": f"{tmp_path}/pipe",
        "CUDA_MPS_LOG_DIRECTORY": f"{tmp_path}/log",
    }


def test_a_daemon_that_does_not_start_says_where_to_look(control):
    control.start()
    with pytest.raises(DeviceError, match=r"log/control.log"):
        control.start()


def test_servers_and_their_clients(control, directories):
    control.start()
    assert control.server_pids() == ()
    fake_mps_control.connect(directories.pipe, 700, 41, 42)
    assert control.server_pids() == (700,)
    assert control.client_pids(700) == (41, 42)


def test_an_unknown_server_has_no_clients_whatever_is_said_of_it(control):
    control.start()
    assert control.client_pids(701) == ()


def test_a_client_is_ended_through_its_own_server(control, directories):
    control.start()
    with subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout.readline() == "ready\n"
        fake_mps_control.connect(directories.pipe, 700)
        fake_mps_control.connect(directories.pipe, 701, client.pid)
        assert control.end_client(client.pid)
        assert client.stdout.readline() == "the work was ended\n"
    assert fake_mps_control.read(directories.pipe)["terminated"] == [client.pid]


def test_who_is_no_client_is_left_alone(control, directories):
    control.start()
    fake_mps_control.connect(directories.pipe, 700, 41)
    assert not control.end_client(os.getpid())
    assert fake_mps_control.read(directories.pipe)["terminated"] == []


def test_a_daemon_that_is_not_there_is_told_of(control, directories):
    directories.pipe.mkdir()
    with pytest.raises(DeviceError, match="get_server_list: Cannot find MPS control daemon"):
        control.end_client(1)


def test_a_machine_without_the_program(directories, tmp_path):
    control = MpsControl(directories, os.environ, str(tmp_path / "none"))
    assert not control.is_running()
    with pytest.raises(DeviceError, match=r"MPS: .*No such file"):
        control.stop()
