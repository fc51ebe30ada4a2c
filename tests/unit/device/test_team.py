"""Where threads run that compute together: each attempt in a process of its own, for what is bound stays bound."""

import subprocess
import sys
from textwrap import dedent

import pytest

from kernels.native.levels import NativeUnavailableError, choose_level
from tandem.device.cpu.cores import available_cores

needs_two_cores = pytest.mark.skipif(available_cores() < 2, reason="needs two cores")
PRELUDE = """
import os
from pathlib import Path
import torch
from kernels.native.team import place_team
from tandem.device.cpu.cores import CoreShare
from tandem.device.cpu.team import leave_team, use_share

first, second = sorted(os.sched_getaffinity(0))[:2]

def work():
    torch.set_num_threads(2)
    torch.ones(300, 300) @ torch.ones(300, 300)
    torch.ones(1 << 20).exp_()

def cores_of_threads():
    return {int(task.name): os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir()}
"""


def run(body: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + dedent(body)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def native() -> None:
    try:
        choose_level()
    except NativeUnavailableError as error:
        pytest.skip(f"needs the native library: {error}")


@needs_two_cores
@pytest.mark.usefixtures("native")
def test_each_thread_has_a_core_and_the_caller_the_first():
    run("""
    work()
    use_share(CoreShare((second, first), 2), place_team)
    assert os.sched_getaffinity(0) == {second}
    assert {first} in cores_of_threads().values()
    """)


@needs_two_cores
@pytest.mark.usefixtures("native")
def test_threads_are_put_elsewhere_and_back():
    run("""
    for cores in ((first, second), (second,), (second, first)):
        use_share(CoreShare(cores, len(cores)), place_team)
        assert os.sched_getaffinity(0) == {cores[0]}
        assert torch.get_num_threads() == len(cores)
    assert {first} in cores_of_threads().values()
    """)


@needs_two_cores
@pytest.mark.usefixtures("native")
def test_cores_that_are_not_there_are_told():
    run("""
    assert not place_team((first, 1023))
    assert not place_team((first, -1))
    assert not place_team((first, 1 << 20))
    assert not place_team(())
    """)


@needs_two_cores
def test_without_the_library_the_kernel_may_put_them_on_any_of_the_cores():
    run("""
    work()
    use_share(CoreShare((second,), 1), leave_team)
    assert os.sched_getaffinity(0) == {second}
    use_share(CoreShare((second, first), 2), leave_team)
    assert all(cores == {first, second} for cores in cores_of_threads().values())
    """)


@needs_two_cores
def test_fewer_threads_than_cores_are_not_placed():
    run("""
    use_share(CoreShare((first, second), 1), lambda cores: 1 / 0)
    assert os.sched_getaffinity(0) == {first, second}
    """)


def test_cores_that_are_not_there_are_an_error_without_the_library():
    run("""
    from tandem.errors import DeviceError
    try:
        use_share(CoreShare((1 << 12,), 1), leave_team)
    except DeviceError as error:
        assert "4096" in str(error)
    else:
        raise AssertionError("no error")
    """)
