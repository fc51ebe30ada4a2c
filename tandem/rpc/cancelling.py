"""Ending tasks that work over gRPC.

A call whose peer ends in the same moment can swallow its task's cancellation: grpc.aio's own task that opens a stream
does, and the call then raises why the peer is gone. Whoever takes that for an answer goes on, and would be waited for
without end.
"""

import asyncio
from typing import Any

AGAIN_S = 1.0


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancels them, again each second, until all have ended; what they raise is theirs."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)  # so that nothing that was raised counts as unheard


def raise_if_cancelled() -> None:
    """CancelledError, when the running task was cancelled and something kept that from it."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
