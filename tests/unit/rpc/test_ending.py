"""What a process says that does not end, and that nothing keeps one that has stopped."""

import asyncio
import subprocess
import sys
from pathlib import Path

from structlog.testing import capture_logs

from tandem.rpc.ending import EndWatch

ROOT = Path(__file__).parents[3]
KEPT = """
import atexit, sys, threading
from tandem.rpc.ending import end_process

atexit.register(print, "the interpreter ends")
threading.Thread(target=threading.Event().wait).start()  # the interpreter's own end would wait for it
print("said")
end_process(7)
"""


def test_a_process_that_has_stopped_waits_for_none_of_its_threads():
    ended = subprocess.run([sys.executable, "-c", KEPT], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (7, b"said\n")


async def test_who_is_late_says_where_its_tasks_and_threads_stand():
    async def forgotten() -> None:
        await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(forgotten())
    watch = EndWatch(0.0)
    with capture_logs() as logs:
        watch.begin()
        watch.begin()
        while not logs:
            await asyncio.sleep(0.01)
    task.cancel()
    (event,) = logs
    assert event["event"] == "service.late"
    assert any("forgotten" in stack for stack in event["tasks"])
    assert "MainThread" in event["threads"]
