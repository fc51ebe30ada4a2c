"""Real processes: who one is, and when it has ended."""

import asyncio
import dataclasses
import gc
import os
import signal
import sys

import psutil
import pytest
import uvloop

from services.memd.processes import ProcessEnd, Unwatched, seen_process, watch_end


@pytest.fixture
async def child():
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")
    yield process
    if process.returncode is None:
        process.kill()
        await process.wait()


async def test_the_end_of_a_process_is_told_once(child):
    ended = asyncio.Event()
    watch = watch_end(seen_process(child.pid), ended.set)
    assert isinstance(watch, ProcessEnd)
    child.send_signal(signal.SIGSTOP)
    await asyncio.sleep(0)
    assert not ended.is_set(), "who stands still may go on"
    child.kill()
    await ended.wait()
    watch.forget()


async def test_who_has_ended_or_is_another_is_not_waited_for(child):
    process = seen_process(child.pid)
    reused = dataclasses.replace(process, began_ticks=process.began_ticks - 1)
    assert watch_end(reused, pytest.fail) is Unwatched.ENDED, "its pid is another's by now"
    child.kill()
    await child.wait()
    assert watch_end(process, pytest.fail) is Unwatched.ENDED
    assert seen_process(child.pid) is None


async def test_in_another_namespace_nobody_can_tell():
    process = seen_process(os.getpid())
    assert watch_end(dataclasses.replace(process, namespace=1), pytest.fail) is Unwatched.UNSEEN
    assert seen_process(0) is None, "what the kernel says of a peer that it cannot name"


def test_services_loop_hears_of_it_and_forgets():
    async def watch() -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")
        gc.collect()  # what other tests have left closes now, not in between
        num_descriptors = psutil.Process().num_fds()
        ended = asyncio.Event()
        forgotten = watch_end(seen_process(process.pid), pytest.fail)
        forgotten.forget()
        watch_end(seen_process(process.pid), ended.set)
        process.kill()
        await ended.wait()
        assert psutil.Process().num_fds() == num_descriptors
        await process.wait()

    uvloop.run(watch())
