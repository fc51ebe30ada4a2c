"""Steps that stand still, and those that only seem to."""

import asyncio
import json
import os
import subprocess
import sys
import threading

import pytest

from tandem.clock import ManualClock, MonotonicClock
from tandem.phase.stepper import Stepper
from tandem.phase.watchdog import Progress, StillnessMeter, Watchdog
from tests.support import fake_mps_control

STUCK = """
import asyncio, os, signal, sys, threading
from functools import partial
from pathlib import Path
from tandem.clock import MonotonicClock
from tandem.device.cuda.mps import client_control
from tandem.phase import watchdog
from tandem.telemetry.logs import configure_logging
from tests.support import fake_mps_control

def stuck(progress):
    with progress.step():
        threading.Event().wait()

def become_a_client(control):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    control.start()
    fake_mps_control.connect(control.directories.pipe, 700, os.getpid())

configure_logging("decode", "info")
watchdog.GRACE_S = 0.1
control = client_control(os.environ)
if control:
    become_a_client(control)
progress = watchdog.Progress()
threading.Thread(target=stuck, args=[progress], name="step", daemon=True).start()
end = partial(watchdog.end_stuck_process, 75, os.environ)
asyncio.run(watchdog.Watchdog(progress, 0.3, MonotonicClock(), end).run())
"""


def meter() -> StillnessMeter:
    return StillnessMeter(limit_s=10.0, longest_look_s=2.0)


def test_a_step_without_a_sign_of_life_stands_still():
    still = meter()
    assert [still.look(0, True, now_s) for now_s in range(13)] == [False] * 10 + [True] * 3


def test_a_long_step_with_signs_of_life_does_not():
    still = meter()
    assert not any(still.look(now_s // 9, True, float(now_s)) for now_s in range(100))


def test_an_idle_process_does_not():
    still = meter()
    assert not any(still.look(0, False, float(now_s)) for now_s in range(100))


def test_time_in_which_nobody_could_look_does_not_count():
    still = meter()
    still.look(0, True, 0.0)
    assert not still.look(0, True, 10_000.0), "stopped, or the machine asleep"
    assert still.still_s == 2.0


def test_waiting_for_the_peers_turn_is_no_work():
    progress = Progress()
    seen = []
    with progress.step():
        progress.signing(lambda: seen.append(progress.is_working))()
        assert (seen, progress.is_working, progress.num_signs) == ([False], True, 1)
        progress.signing(None)()
    assert (progress.is_working, progress.num_signs) == (False, 3)


async def test_the_thread_ends_what_stands_still_once_and_stops_with_its_task():
    progress, clock, ended = Progress(), ManualClock(), threading.Semaphore(0)
    watchdog = Watchdog(progress, 0.06, MonotonicClock(), ended.release)
    task = asyncio.ensure_future(watchdog.run())
    with progress.step():
        assert await asyncio.to_thread(ended.acquire, timeout=30)
    idle = asyncio.ensure_future(Watchdog(Progress(), 60.0, clock, ended.release).run())
    await asyncio.sleep(0)
    for each in (task, idle):
        each.cancel()
    await asyncio.gather(task, idle, return_exceptions=True)
    assert not ended.acquire(blocking=False)


async def test_a_step_that_fails_is_not_under_way_any_more():
    class Runner:
        def execute(self, rows, draws):
            raise ValueError("bad")

    progress = Progress()
    stepper = Stepper(Runner(), work=progress.step)
    with pytest.raises(ValueError, match="bad"):
        await stepper.step([])
    assert not progress.is_working
    stepper.close()


@pytest.mark.parametrize("has_mps", [False, True])
def test_a_stuck_process_says_where_it_stands_and_asks_for_another(tmp_path, has_mps):
    pipe = tmp_path / "pipe"
    environ = {**os.environ}
    if has_mps:
        environ |= {"PATH": f"{fake_mps_control.install(tmp_path)}", "CUDA_MPS_PIPE_DIRECTORY": str(pipe)}
        environ |= {"CUDA_MPS_LOG_DIRECTORY": str(tmp_path / "log")}
    done = subprocess.run(
        [sys.executable, "-c", STUCK], env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 75, done.stderr
    (event,) = (json.loads(line) for line in done.stderr.splitlines() if "step.stuck" in line)
    assert any("in stuck" in line for line in event["stacks"]["step"])
    if has_mps:
        assert len(fake_mps_control.read(pipe)["terminated"]) == 1
