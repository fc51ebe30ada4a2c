"""Clients of the controller: a phase's link, the gateway's observations, and the command line's questions.

Nobody waits for the controller. What is reported while it is away or behind is dropped beyond a bound; its last
split stays in force.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import grpc

from tandem.device.partition import Applied, RestartRequired
from tandem.partition.status import ControllerStatus, DecisionRecord, PhaseHello, ShareApplied
from tandem.rpc.cancelling import end_tasks
from tandem.rpc.controller_codecs import (
    applied_to_proto,
    hello_to_proto,
    observations_to_proto,
    split_from_proto,
    split_to_proto,
    status_from_proto,
    step_to_proto,
)
from tandem.rpc.history_codecs import record_from_proto
from tandem.rpc.peer_channel import peer_channel
from tandem.rpc.reconnect import CHANNEL_OPTIONS, KEEPALIVE_OPTIONS, Reconnector
from tandem.rpc.status import error_from_rpc
from tandem.rpc.stubs.controller.v1 import controller_pb2 as pb
from tandem.rpc.stubs.controller.v1 import controller_pb2_grpc as pb_grpc
from tandem.types import Phase, RequestObservation, Split, StepStatistics

PEER = "controller"
MAX_UNSENT_STEPS = 256
GATHER_S = 0.1  # what is told waits for more so long: a message for each step or request costs two processes a wake-up
MAX_UNSENT_OBSERVATIONS = 1024
MAX_OBSERVATIONS = 256  # in one message
CALL_TIMEOUT_S = 5.0


class ControllerLink:
    """A phase's link: steps and applied shares go up, splits come down. Used on one asyncio loop."""

    def __init__(self, address: str, phase: Phase, pid: int, backend_name: str, splits: tuple[Split, ...] = ()) -> None:
        """`splits`: those that the backend can apply without a restart."""
        self._address = address
        self._hello = PhaseHello(phase, pid, backend_name, splits)
        self._assigned: dict[int, Split] = {}  # the newest assignment, until it is answered
        self._reconnector = Reconnector(PEER, self._session)
        self._unsent = _Unsent()
        self._pending: tuple[int, Split] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether the controller has answered on the present stream."""
        return self._reconnector.is_connected

    def report_step(self, step: StepStatistics) -> None:
        """Tells of one step, soon; dropped while the controller is away, or behind by many steps."""
        if self.is_connected:
            self._unsent.add_step(step)

    def report_applied(self, decision_id: int, outcome: Applied | RestartRequired, apply_ms: float) -> None:
        """Answers the assignment that `pending` gave out; dropped when the controller has gone meanwhile.

        What is in force is told to every controller that comes.
        """
        split = self._assigned.pop(decision_id, None)
        if split is not None and isinstance(outcome, Applied):
            self._hello = replace(self._hello, in_force=split)
        if self.is_connected:
            restart = isinstance(outcome, RestartRequired)
            applied = ShareApplied(decision_id, restart, outcome.detail, apply_ms)
            self._unsent.add_applied(applied)

    def pending(self) -> tuple[int, Split] | None:
        """The newest assignment, (decision_id, split), once; None when there is none that is new."""
        pending, self._pending = self._pending, None
        return pending

    async def start(self) -> None:
        """Starts connecting in the background; returns at once."""
        self._task = asyncio.create_task(self._reconnector.run())

    async def close(self) -> None:
        """Ends the link."""
        await _end(self._task)

    async def _session(self, connected: Callable[[], None]) -> None:
        self._unsent = _Unsent()
        async with grpc.aio.insecure_channel(self._address, options=(*CHANNEL_OPTIONS, *KEEPALIVE_OPTIONS)) as channel:
            call = _stub(channel).Link()
            sender = asyncio.create_task(self._send(call))
            try:
                async for response in call:
                    connected()
                    self._pending = (response.decision_id, split_from_proto(response.split))
                    self._assigned = dict([self._pending])
            finally:
                await _end(sender)
                call.cancel()

    async def _send(self, call: Any) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # told to the reader as well
            await call.write(pb.LinkRequest(hello=hello_to_proto(self._hello)))
            while True:
                for report in await self._unsent.take():
                    await call.write(report)


class _Unsent:
    """What a link has not sent yet, in order. Steps wait `GATHER_S` for one another, an applied share for nothing."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._reports: list[pb.LinkRequest] = []
        self._any = asyncio.Event()
        self._urgent = asyncio.Event()

    def __len__(self) -> int:
        return self._num_steps

    def add_step(self, step: StepStatistics) -> None:
        """Dropped when there are too many."""
        if self._num_steps >= MAX_UNSENT_STEPS:
            return
        if not self._reports or not self._reports[-1].HasField("steps"):
            self._reports.append(pb.LinkRequest(steps=pb.StepBatch()))
        self._reports[-1].steps.steps.append(step_to_proto(step))
        self._num_steps += 1
        self._any.set()

    def add_applied(self, applied: ShareApplied) -> None:
        """Comes after the steps before it."""
        self._reports.append(pb.LinkRequest(applied=applied_to_proto(applied)))
        self._any.set()
        self._urgent.set()

    async def take(self) -> list[pb.LinkRequest]:
        """Waits until there is something to send."""
        await self._any.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(GATHER_S):
                await self._urgent.wait()
        reports, self._reports, self._num_steps = self._reports, [], 0
        self._any.clear()
        self._urgent.clear()
        return reports


class ObservationSender:
    """The gateway's stream of observations. Used on one asyncio loop."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._address = address
        self._credentials = credentials
        self._reconnector = Reconnector(PEER, self._session)
        self._unsent: deque[RequestObservation] = deque(maxlen=MAX_UNSENT_OBSERVATIONS)
        self._has_unsent = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def observe(self, observation: RequestObservation) -> None:
        """Tells of one request, soon; while the controller is away the newest are kept for it."""
        self._unsent.append(observation)
        self._has_unsent.set()

    async def start(self) -> None:
        """Starts connecting in the background; returns at once."""
        self._task = asyncio.create_task(self._reconnector.run())

    async def close(self) -> None:
        """Ends the stream; what is unsent is dropped."""
        await _end(self._task)

    async def _session(self, connected: Callable[[], None]) -> None:
        options = (*CHANNEL_OPTIONS, *KEEPALIVE_OPTIONS)
        async with peer_channel(self._address, options, self._credentials) as channel:
            call = _stub(channel).Observe()
            await call.wait_for_connection()
            connected()
            sender = asyncio.create_task(self._send(call))
            try:
                await call
            finally:
                await _end(sender)
                call.cancel()

    async def _send(self, call: Any) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # told to whoever awaits the call as well
            while True:
                await self._has_unsent.wait()
                await asyncio.sleep(GATHER_S)
                while self._unsent:
                    await call.write(observations_to_proto(self._take()))
                self._has_unsent.clear()

    def _take(self) -> list[RequestObservation]:
        """The oldest of what is unsent, as many as go in one message."""
        return [self._unsent.popleft() for _ in range(min(len(self._unsent), MAX_OBSERVATIONS))]


class ControllerClient:
    """Questions and orders from the command line; synchronous. Failures raise the errors of `tandem.errors`."""

    def __init__(self, address: str, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = pb_grpc.ControllerServiceStub(self._channel)
        self._timeout_s = timeout_s

    def status(self) -> ControllerStatus:
        """The split in force and what it rests on. NotReadyError while the controller is away."""
        try:
            return status_from_proto(self._stub.GetStatus(pb.GetStatusRequest(), timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error

    def set_split(self, split: Split) -> int:
        """Fixes the split by hand; the decision's id. InvalidRequestError for shares outside (0, 100]."""
        request = pb.SetSplitRequest(split=split_to_proto(split))
        try:
            return self._stub.SetSplit(request, timeout=self._timeout_s).decision_id
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error

    def history(self) -> tuple[DecisionRecord, ...]:
        """The newest decisions, oldest first. NotReadyError while the controller is away."""
        try:
            response = self._stub.GetHistory(pb.GetHistoryRequest(), timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        return tuple(record_from_proto(record) for record in response.decisions)

    def set_paused(self, is_paused: bool) -> None:
        """Pauses or resumes the planner. NotReadyError while the controller is away."""
        try:
            self._stub.SetPaused(pb.SetPausedRequest(is_paused=is_paused), timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error

    def close(self) -> None:
        """Frees the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _stub(channel: grpc.aio.Channel) -> "pb_grpc.ControllerServiceAsyncStub":
    return pb_grpc.ControllerServiceStub(channel)


async def _end(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        await end_tasks(task)
