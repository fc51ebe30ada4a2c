"""Turns between processes, one of which is killed in the middle of its own."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tandem.clock import MonotonicClock
from tandem.device.partition import Applied
from tandem.device.timeshare.backend import Pauses, TimeshareBackend
from tandem.device.timeshare.seat import Seat
from tandem.device.whole import WholeDeviceBackend
from tandem.errors import DeviceError
from tandem.types import Phase, Split

ROOT = Path(__file__).parents[4]
HOLDER = """
import sys, time
from pathlib import Path
from tandem.clock import MonotonicClock
from tandem.device.timeshare.seat import Seat
from tandem.types import Phase
seat = Seat(Path(sys.argv[1]), Phase(sys.argv[2]), MonotonicClock())
seat.wait()
print("holds", flush=True)
time.sleep(600)
"""
WORKER = """
import fcntl, os, sys
from pathlib import Path
from tandem.clock import MonotonicClock
from tandem.device.timeshare.backend import Pauses, TimeshareBackend
from tandem.device.timeshare.seat import Seat
from tandem.device.whole import WholeDeviceBackend
from tandem.types import Phase, Split
run_dir, phase, num_turns = Path(sys.argv[1]), Phase(sys.argv[2]), int(sys.argv[3])
clock = MonotonicClock()
backend = TimeshareBackend(Seat(run_dir, phase, clock), lambda: None, clock, WholeDeviceBackend(), Pauses.BETWEEN_STEPS)
backend.apply(phase, Split(50, 50))
device = os.open(run_dir / "device", os.O_RDWR | os.O_CREAT)
for _ in range(num_turns):
    with backend.turn():
        fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
        until_s = clock.now() + 0.0005
        while clock.now() < until_s:
            pass
        fcntl.flock(device, fcntl.LOCK_UN)
print("done")
"""


@contextmanager
def process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


@pytest.fixture
def seat(tmp_path) -> Iterator[Callable[[Phase], Seat]]:
    made: list[Seat] = []

    def make(phase: Phase) -> Seat:
        made.append(Seat(tmp_path, phase, MonotonicClock()))
        return made[-1]

    yield make
    for each in made:
        each.close()


def waiting_thread(seat: Seat) -> threading.Thread:
    thread = threading.Thread(target=seat.wait, daemon=True)
    thread.start()
    return thread


def backend_of(seat: Seat, synchronise: Callable[[], None] = lambda: None) -> TimeshareBackend:
    return TimeshareBackend(seat, synchronise, MonotonicClock(), WholeDeviceBackend(), Pauses.BETWEEN_STEPS)


def test_one_that_is_alone_never_waits(seat):
    alone = seat(Phase.DECODE)
    for _ in range(100):
        alone.wait()
        alone.leave(1.0, 50)


def test_the_other_waits_until_the_turn_ends(seat):
    prefill, decode = seat(Phase.PREFILL), seat(Phase.DECODE)
    prefill.wait()
    waiting = waiting_thread(decode)
    waiting.join(0.2)
    assert waiting.is_alive()
    prefill.leave(0.2, 50)
    waiting.join(30)
    assert not waiting.is_alive()
    decode.leave(0.0, 50)


def test_a_turn_ends_with_the_one_who_is_killed_in_it(seat, tmp_path):
    decode = seat(Phase.DECODE)
    with process(HOLDER, tmp_path, "prefill") as holder:
        assert holder.stdout.readline() == "holds\n"
        waiting = waiting_thread(decode)
        waiting.join(0.2)
        assert waiting.is_alive()
        os.kill(holder.pid, signal.SIGKILL)
        waiting.join(30)
    assert not waiting.is_alive()


def test_one_that_comes_back_after_its_death_takes_its_seat_again(seat, tmp_path):
    with process(HOLDER, tmp_path, "prefill") as holder:
        assert holder.stdout.readline() == "holds\n"
    prefill, decode = seat(Phase.PREFILL), seat(Phase.DECODE)
    for _ in range(3):
        for each in (prefill, decode):
            each.wait()
            each.leave(0.001, 50)


def test_a_seat_is_one_processs(seat, tmp_path):
    seat(Phase.PREFILL)
    with pytest.raises(DeviceError, match="another process takes prefill's turns"):
        seat(Phase.PREFILL)


def test_a_place_where_nothing_can_be_made(tmp_path):
    with pytest.raises(DeviceError, match=r"cannot take turns in .*No such file"):
        Seat(tmp_path / "none", Phase.PREFILL, MonotonicClock())


def test_two_processes_never_have_the_device_at_once(tmp_path):
    with process(WORKER, tmp_path, "prefill", 300) as prefill, process(WORKER, tmp_path, "decode", 300) as decode:
        for each in (prefill, decode):
            out, err = each.communicate(timeout=120)
            assert (each.returncode, out) == (0, "done\n"), err


class TestBackend:
    def test_the_device_is_at_rest_when_the_turn_ends(self, seat):
        prefill, decode = seat(Phase.PREFILL), seat(Phase.DECODE)
        waiting: list[threading.Thread] = []

        def synchronise() -> None:
            waiting.append(waiting_thread(decode))
            waiting[0].join(0.1)
            assert waiting[0].is_alive()

        backend = backend_of(prefill, synchronise)
        with backend.turn():
            pass
        waiting[0].join(30)
        assert not waiting[0].is_alive()

    def test_a_step_that_fails_gives_the_turn_up(self, seat):
        prefill, decode = seat(Phase.PREFILL), seat(Phase.DECODE)
        backend = backend_of(prefill)
        with pytest.raises(RuntimeError, match="step"), backend.turn():
            raise RuntimeError("step")
        decode.wait()

    def test_a_split_is_a_ratio(self, seat):
        backend = backend_of(seat(Phase.PREFILL))
        outcome = backend.apply(Phase.PREFILL, Split(60, 40))
        assert outcome == Applied("turns, prefill to decode as 60 to 40")


def test_the_lock_of_the_accounts_is_not_kept(seat, tmp_path):
    seat(Phase.PREFILL).wait()
    with (tmp_path / "turns").open("rb+") as table:
        fcntl.flock(table, fcntl.LOCK_EX | fcntl.LOCK_NB)
