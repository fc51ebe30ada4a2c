"""A cancellation that a gRPC call has swallowed ends its task all the same."""

import asyncio
from collections.abc import Callable

import grpc

from tandem.rpc import cancelling
from tandem.rpc.cancelling import end_tasks
from tandem.rpc.reconnect import Reconnector

LIMIT_S = 10.0


async def swallow_once() -> None:
    """Takes the first cancellation for something else."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()


async def gone_peer(_: Callable[[], None]) -> None:
    """A session that is cancelled as its peer ends, as grpc.aio tells of it: by the peer's end."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "gone") from None


async def begun(task: "asyncio.Task[None]") -> "asyncio.Task[None]":
    """It waits for the first time."""
    await asyncio.sleep(0)
    return task


async def test_a_task_that_goes_on_is_cancelled_again(monkeypatch):
    monkeypatch.setattr(cancelling, "AGAIN_S", 0.01)
    stubborn = await begun(asyncio.create_task(swallow_once()))
    async with asyncio.timeout(LIMIT_S):
        await end_tasks(stubborn, await begun(asyncio.create_task(asyncio.Event().wait())))
    assert stubborn.cancelled()


async def test_what_a_task_raises_at_its_end_is_its_own():
    async def fail() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("at the end")

    failing = await begun(asyncio.create_task(fail()))
    await end_tasks(failing)
    assert isinstance(failing.exception(), ValueError)
    await end_tasks()


async def test_a_reconnector_does_not_take_its_end_for_the_peers():
    task = await begun(asyncio.create_task(Reconnector("peer", gone_peer).run()))
    task.cancel()
    await asyncio.wait([task], timeout=LIMIT_S)  # a time-out's own cancellation would be swallowed as well
    assert task.cancelled()
