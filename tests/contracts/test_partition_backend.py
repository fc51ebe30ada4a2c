"""What every `PartitionBackend` promises. A backend that binds its process has one for each case."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from tandem.device.partition_backends import PARTITION_BACKENDS

ROOT = Path(__file__).parents[2]
BINDS_ITS_PROCESS = {"cpu-affinity", "cpu-cadence", "timeshare"}
PRELUDE = """
import os, threading
from pathlib import Path
from concurrent.futures import ThreadPoolExecutor
from tandem.device.partition import Applied, RestartRequired
from tandem.types import Phase, Split
from tests.support.partition_backends import make_backend
def make(phase):
    return make_backend({name!r}, phase, Path({run_dir!r}))
"""
PARKED_THREAD = """
started, release = threading.Event(), threading.Event()
def park():
    started.set()
    release.wait()
parked = threading.Thread(target=park, daemon=True)
parked.start()
started.wait()
"""

each_backend = pytest.mark.parametrize("name", list(PARTITION_BACKENDS))
needs_two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


@pytest.fixture
def run(tmp_path) -> Callable[..., str]:
    """Runs statements, which make their backends with `make`; what they printed."""

    def run(name: str, body: str) -> str:
        script = PRELUDE.format(name=name, run_dir=str(tmp_path)) + body
        if name not in BINDS_ITS_PROCESS:
            with redirect_stdout(StringIO()) as printed:
                exec(script, {})
            return printed.getvalue()
        ended = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run


@each_backend
def test_it_has_the_name_it_is_registered_under(run, name):
    assert run(name, "print(make(Phase.DECODE).name)").splitlines()[-1] == name


@each_backend
def test_apply_says_what_was_done(run, name):
    body = """
for phase in Phase:
    outcome = make(phase).apply(phase, Split(50, 50))
    assert isinstance(outcome, Applied | RestartRequired)
    assert outcome.detail
"""
    run(name, body)


@each_backend
def test_apply_again_with_every_split_and_back(run, name):
    body = """
backend = make(Phase.DECODE)
details = [backend.apply(Phase.DECODE, Split(100 - y, y)).detail for y in (50, 1, 99, 10, 50)]
assert details[0] == details[-1], details
"""
    run(name, body)


@each_backend
def test_the_splits_on_offer_are_applied_at_once_and_ascend(run, name):
    body = """
backends = {phase: make(phase) for phase in Phase}
splits = backends[Phase.DECODE].splits
assert list(splits) == sorted(set(splits), key=lambda split: split.prefill_percent)
assert backends[Phase.PREFILL].splits == splits
for phase, backend in backends.items():
    details = [backend.apply(phase, split) for split in splits]
    assert all(isinstance(outcome, Applied) for outcome in details), details
    assert len({outcome.detail for outcome in details}) == len(splits), details
"""
    run(name, body)


@pytest.mark.parametrize("name", ["cpu-cadence", "mps-green", "timeshare"])
def test_five_splits_at_least_are_on_offer(run, name):
    run(name, "assert len(make(Phase.PREFILL).splits) >= 5")


@each_backend
def test_a_long_step_may_pause_where_phases_wait_for_each_other(run, name):
    body = """
backend = make(Phase.PREFILL)
backend.apply(Phase.PREFILL, Split(20, 80))
for _ in range(3):
    with backend.turn():
        if backend.pause is not None:
            backend.pause()
"""
    run(name, body)


@each_backend
def test_shares_above_a_hundred_together_and_the_whole_device(run, name):
    body = """
for phase in Phase:
    backend = make(phase)
    for split in (Split(60, 60), Split(100, 50), Split(100, 100)):
        assert isinstance(backend.apply(phase, split), Applied | RestartRequired)
"""
    run(name, body)


@each_backend
def test_steps_have_their_turns_before_a_split_and_after_on_the_thread_that_computes(run, name):
    body = """
backend = make(Phase.PREFILL)
peer = make(Phase.DECODE)
def step():
    with backend.turn():
        return "computed"
pool = ThreadPoolExecutor(1)
assert pool.submit(step).result() == "computed"
pool.submit(backend.apply, Phase.PREFILL, Split(30, 70)).result()
assert [pool.submit(step).result() for _ in range(3)] == ["computed"] * 3
"""
    run(name, body)


@each_backend
def test_a_step_that_fails_ends_its_turn_and_says_why(run, name):
    body = """
backend = make(Phase.PREFILL)
for _ in range(2):
    try:
        with backend.turn():
            raise RuntimeError("the step")
    except RuntimeError as error:
        assert str(error) == "the step"
    else:
        raise AssertionError("swallowed")
"""
    run(name, body)


class TestCpuAffinity:
    """What is to be seen of a split where a share is a set of cores."""

    @needs_two_cores
    def test_every_thread_of_the_process_is_bound(self, run):
        body = (
            PARKED_THREAD
            + """
allowed = os.sched_getaffinity(0)
backend = make(Phase.PREFILL)
backend.apply(Phase.PREFILL, Split(50, 50))
sets = [os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")]
release.set()
assert len(sets) >= 2
assert all(cores == sets[0] for cores in sets), sets
assert sets[0] < allowed
"""
        )
        run("cpu-affinity", body)

    @needs_two_cores
    def test_the_phases_are_disjoint_and_the_full_share_is_everything(self, run):
        body = """
allowed = os.sched_getaffinity(0)
backend = make(Phase.DECODE)
def cores(phase, split):
    backend.apply(phase, split)
    return os.sched_getaffinity(0)
assert not cores(Phase.PREFILL, Split(50, 50)) & cores(Phase.DECODE, Split(50, 50))
assert cores(Phase.DECODE, Split(100, 100)) == allowed
"""
        run("cpu-affinity", body)

    def test_the_computing_thread_has_as_many_threads_as_cores(self, run):
        body = """
import torch
backend = make(Phase.DECODE)
pool = ThreadPoolExecutor(1)
a = torch.ones(512, 512)
for split in (Split(100, 100), Split(1, 1), Split(100, 100)):
    outcome = pool.submit(backend.apply, Phase.DECODE, split).result()
    pool.submit(torch.mm, a, a).result()
    threads = pool.submit(torch.get_num_threads).result()
    assert threads <= len(os.sched_getaffinity(0))
    assert outcome.detail.endswith(f"threads {threads}"), (outcome, threads)
    if split == Split(1, 1):
        assert threads == 1
"""
        run("cpu-affinity", body)

    def test_cores_that_are_not_to_be_had(self, run):
        body = """
from tandem.device.cpu.affinity import CpuAffinityBackend
from tandem.errors import DeviceError
try:
    CpuAffinityBackend([4000]).apply(Phase.DECODE, Split(50, 50))
except DeviceError as error:
    assert "4000" in str(error)
else:
    raise AssertionError("no DeviceError")
"""
        run("cpu-affinity", body)


class TestMpsGreen:
    """What is to be seen of a split where a share is a set of SMs: each driver is a process's own."""

    def test_each_phase_has_sms_of_its_own(self, run):
        body = """
from tandem.device.partition_backends import make_partition_backend
from tests.support.partition_backends import GpuProcess
def sms(phase, split):
    gpu = GpuProcess()
    make_partition_backend("mps-green", gpu.site([phase], Path("."))).apply(phase, split)
    return gpu.sms
for x in range(1, 100):
    prefill, decode = (sms(phase, Split(x, 100 - x)) for phase in Phase)
    assert prefill and decode and not prefill & decode, x
assert len(sms(Phase.DECODE, Split(50, 100))) == 132
"""
        run("mps-green", body)
