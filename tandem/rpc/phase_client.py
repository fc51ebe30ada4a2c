"""The gateway's end of a phase's Run stream: kept open, opened again when it breaks, and its losses named."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.errors import NotReadyError
from tandem.rpc.cancelling import end_tasks
from tandem.rpc.codecs import (
    command_to_decode,
    command_to_prefill,
    decode_result_from_proto,
    prefill_result_from_proto,
)
from tandem.rpc.peer_channel import peer_channel
from tandem.rpc.phase_commands import PhaseCommands
from tandem.rpc.reconnect import CHANNEL_OPTIONS, KEEPALIVE_OPTIONS, Reconnector
from tandem.rpc.stubs.decode.v1.decode_pb2_grpc import DecodeServiceStub
from tandem.rpc.stubs.prefill.v1.prefill_pb2_grpc import PrefillServiceStub
from tandem.types import (
    AbortSequence,
    DecodeResult,
    FinishReason,
    Phase,
    PhaseCommand,
    PrefillResult,
    SequenceSpec,
    Submit,
)

PhaseResult = PrefillResult | DecodeResult

_CHANNEL_OPTIONS = (
    *CHANNEL_OPTIONS,
    *KEEPALIVE_OPTIONS,
    ("grpc.use_local_subchannel_pool", 1),  # a new session never meets the process of the one before
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)

_log = structlog.get_logger()


class PhaseListener(Protocol):
    """Called on the event loop, between awaits of the client, in the order in which things happened."""

    def phase_connected(self, phase: Phase) -> None:
        """The stream is open: sequences may be submitted."""
        ...

    def phase_result(self, result: PhaseResult) -> None:
        """One message of the phase."""
        ...

    def phase_lost(self, phase: Phase, lease_ids: frozenset[int]) -> None:
        """The stream broke; the phase had these and has said nothing of their end. `submit` is refused from now."""
        ...


@dataclass(frozen=True, slots=True)
class _Wire:
    """What differs between the phases' streams."""

    open: Callable[[grpc.aio.Channel, AsyncIterator[Any]], Any]
    encode: Callable[[PhaseCommand], Any]
    decode: Callable[[Any], PhaseResult]


_WIRES = {
    Phase.PREFILL: _Wire(
        lambda channel, commands: PrefillServiceStub(channel).Run(commands),
        command_to_prefill,
        prefill_result_from_proto,
    ),
    Phase.DECODE: _Wire(
        lambda channel, commands: DecodeServiceStub(channel).Run(commands),
        command_to_decode,
        decode_result_from_proto,
    ),
}


def ended_lease_ids(result: PhaseResult) -> Iterable[int]:
    """The leases that the phase has no more after this message."""
    yield from (dropped.lease_id for dropped in result.dropped)
    if isinstance(result, PrefillResult):
        yield from (entry.output.lease_id for entry in result.prefilled)
    else:
        yield from (output.lease_id for output in result.outputs if output.finish_reason is not FinishReason.NONE)


class PhaseClient:
    """One phase at one address. A phase counts as connected while it says SERVING and its stream is open."""

    def __init__(self, phase: Phase, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._phase = phase
        self._address = address
        self._credentials = credentials
        self._wire = _WIRES[phase]
        self._commands: PhaseCommands | None = None  # of the open stream
        self._in_flight: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether `submit` is allowed."""
        return self._commands is not None

    def start(self, listener: PhaseListener) -> None:
        """Connects, and stays at it until `close`."""
        self._reconnector = Reconnector(self._phase, lambda connected: self._session(listener, connected))
        self._task = asyncio.get_running_loop().create_task(self._reconnector.run())

    async def close(self) -> None:
        """Ends the stream; the listener hears of the loss."""
        if self._task is not None:
            await end_tasks(self._task)

    def submit(self, sequence: SequenceSpec) -> None:
        """Hands a sequence over. NotReadyError while the phase is away."""
        if self._commands is None:
            raise NotReadyError(f"{self._phase} is away")
        self._in_flight.add(sequence.lease_id)
        self._commands.put(Submit(sequence))

    def abort(self, lease_id: int) -> None:
        """Asks for a sequence back; nothing to do when the phase is away."""
        if self._commands is not None:
            self._commands.put(AbortSequence(lease_id))

    async def _session(self, listener: PhaseListener, connected: Callable[[], None]) -> None:
        async with peer_channel(self._address, _CHANNEL_OPTIONS, self._credentials) as channel:
            if await _serving(channel):
                await self._stream(channel, listener, connected)

    async def _stream(self, channel: grpc.aio.Channel, listener: PhaseListener, connected: Callable[[], None]) -> None:
        commands = PhaseCommands(self._wire.encode)
        call = self._wire.open(channel, commands.messages())
        try:
            await call.wait_for_connection()
            self._commands = commands
            connected()
            listener.phase_connected(self._phase)
            async for message in call:
                commands.takes_more = message.takes_more
                self._receive(self._wire.decode(message), listener)
        finally:
            commands.close()  # grpc's writing task outlives a call that the peer ended
            call.cancel()
            self._lose(listener)

    def _receive(self, result: PhaseResult, listener: PhaseListener) -> None:
        self._in_flight.difference_update(ended_lease_ids(result))
        listener.phase_result(result)

    def _lose(self, listener: PhaseListener) -> None:
        if self._commands is None:
            return
        lost, self._in_flight, self._commands = frozenset(self._in_flight), set(), None
        _log.warning("phase.lost", phase=self._phase, address=self._address, num_sequences=len(lost))
        listener.phase_lost(self._phase, lost)


async def _serving(channel: grpc.aio.Channel) -> bool:
    """Waits until the phase says SERVING; False when it ends the watch instead."""
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    try:
        async for answer in watch:
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return True
    finally:
        watch.cancel()
    return False
