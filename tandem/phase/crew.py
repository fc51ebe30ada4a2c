"""The background tasks of a phase: the first that fails ends it."""

import asyncio
from collections.abc import Coroutine


class Crew:
    """Holds its tasks until they end; made on the running loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        """Runs `work` beside the others."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def failure(self) -> None:
        """Waits until a task has failed and raises what it raised."""
        await asyncio.shield(self._failure)

    async def cancel(self) -> None:
        """Ends all tasks and waits for them."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._failure.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._failure.done():
            self._failure.set_exception(error)
