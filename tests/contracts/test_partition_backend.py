"""What every `PartitionBackend` promises. Each case runs in a process of its own, which it may bind as it likes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tandem.device.partition_backends import PARTITION_BACKENDS

ROOT = Path(__file__).parents[2]
PRELUDE = """
import os, threading
from concurrent.futures import ThreadPoolExecutor
from tandem.device.partition import Applied, RestartRequired
from tandem.device.partition_backends import make_partition_backend
from tandem.types import Phase, Split
backend = make_partition_backend({name!r})
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

pytestmark = pytest.mark.parametrize("name", list(PARTITION_BACKENDS))
needs_two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


def run(name: str, body: str) -> str:
    script = PRELUDE.format(name=name) + body
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_it_has_the_name_it_is_registered_under(name):
    assert run(name, "print(backend.name)").strip() == name


def test_apply_says_what_was_done(name):
    body = """
for phase in Phase:
    outcome = backend.apply(phase, Split(50, 50))
    assert isinstance(outcome, Applied | RestartRequired)
    assert outcome.detail
"""
    run(name, body)


def test_apply_again_with_every_split_and_back(name):
    body = """
details = [backend.apply(Phase.DECODE, Split(100 - y, y)).detail for y in (50, 1, 99, 10, 50)]
assert details[0] == details[-1], details
"""
    run(name, body)


class TestCpuAffinity:
    """What is to be seen of a split where a share is a set of cores."""

    @needs_two_cores
    def test_every_thread_of_the_process_is_bound(self, name):
        body = (
            PARKED_THREAD
            + """
allowed = os.sched_getaffinity(0)
backend.apply(Phase.PREFILL, Split(50, 50))
sets = [os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")]
release.set()
assert len(sets) >= 2
assert all(cores == sets[0] for cores in sets), sets
assert sets[0] < allowed
"""
        )
        run(name, body)

    @needs_two_cores
    def test_the_phases_are_disjoint_and_the_full_share_is_everything(self, name):
        body = """
allowed = os.sched_getaffinity(0)
def cores(phase, split):
    backend.apply(phase, split)
    return os.sched_getaffinity(0)
assert not cores(Phase.PREFILL, Split(50, 50)) & cores(Phase.DECODE, Split(50, 50))
assert cores(Phase.DECODE, Split(100, 100)) == allowed
"""
        run(name, body)

    def test_the_computing_thread_has_as_many_threads_as_cores(self, name):
        body = """
import torch
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
        run(name, body)

    def test_cores_that_are_not_to_be_had(self, name):
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
        run(name, body)
