"""Where a process stands, for the log of one that does not go on."""

import asyncio
import io
import sys
import threading
import traceback


def thread_stacks() -> dict[str, list[str]]:
    """By the thread's name, the outermost frame first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        names.get(ident, str(ident)): traceback.format_stack(frame) for ident, frame in sys._current_frames().items()
    }


def task_stacks(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Of every task of `loop` that has not ended: what it is, and where it waits. From any thread."""
    return [_stack(task) for task in asyncio.all_tasks(loop)]


def _stack(task: "asyncio.Task[object]") -> str:
    text = io.StringIO()
    task.print_stack(file=text)
    return text.getvalue()
