"""memd from another process: the `MemoryStore` over gRPC, and the attachment that makes this process a holder."""

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeAlias, TypeVar

import grpc

from tandem.errors import DeadlineError, NotReadyError
from tandem.kv.layout import KvLayout
from tandem.kv.store import Holding, PromptTokens, SequenceLease, SequenceUpdate, StorageStatistics
from tandem.model.config import ModelConfig, WeightManifest
from tandem.rpc.handles_client import receive_segments
from tandem.rpc.memd_codecs import (
    blocks_from_proto,
    blocks_to_proto,
    fingerprint_from_proto,
    fingerprint_to_proto,
    lease_from_proto,
    prompt_to_proto,
    statistics_from_proto,
    update_to_proto,
)
from tandem.rpc.peer_channel import peer_channel
from tandem.rpc.reconnect import CONNECT_TIMEOUT_OPTION, KEEPALIVE_OPTIONS
from tandem.rpc.segments import ReceivedSegment, close_segments
from tandem.rpc.status import error_from_rpc
from tandem.rpc.stubs.memd.v1 import memd_pb2 as pb
from tandem.rpc.stubs.memd.v1 import memd_pb2_grpc as pb_grpc
from tandem.types import Block, Fingerprint

CALL_TIMEOUT_S = 10.0
FAREWELL_TIMEOUT_S = 1.0  # a memd that has not heard it by then sees the process end
MAX_MESSAGE_BYTES = 16 << 20
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    *KEEPALIVE_OPTIONS,
    # memd is on this machine and soon back, and sequences may wait for it: gRPC would wait longer each time.
    ("grpc.initial_reconnect_backoff_ms", 50),
    CONNECT_TIMEOUT_OPTION,
    ("grpc.max_reconnect_backoff_ms", 200),
)

_Answer = TypeVar("_Answer")
_AttachCall: TypeAlias = "grpc.aio.UnaryStreamCall[pb.AttachRequest, pb.AttachResponse]"


class Attachment:
    """This process as a holder. It ends by `detach`, and then the spare blocks are memd's again; or with memd or the
    connection.

    Then `attach_again` goes on with the same blocks and leases, in this memd or the one that comes next.
    """

    def __init__(
        self,
        attached: pb.Attached,
        segments: Mapping[str, ReceivedSegment],
        call: _AttachCall,
        stub: "pb_grpc.MemoryServiceAsyncStub",
    ) -> None:
        self.holder_id: int = attached.holder_id
        self.epoch: int = attached.epoch
        self.fingerprint = fingerprint_from_proto(attached.fingerprint)
        self.model_config = ModelConfig.from_json(attached.model_config_json)
        self.manifest = WeightManifest.from_json(attached.weight_manifest_json)
        self.kv_layout = KvLayout.from_json(attached.kv_layout_json)
        self.holding = Holding(frozenset(blocks_from_proto(attached.spare_blocks)), frozenset(attached.lease_ids))
        self.segments = segments
        self.ended = asyncio.Event()
        self._call = call
        self._stub = stub
        self._reclaims: asyncio.Queue[int] = asyncio.Queue()
        self._watch = asyncio.create_task(self._read())

    async def next_reclaim(self) -> int:
        """How many blocks memd asks back. NotReadyError when the attachment has ended."""
        reclaim = asyncio.ensure_future(self._reclaims.get())
        ended = asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait([reclaim, ended], return_when=asyncio.FIRST_COMPLETED)
            if reclaim.done():
                return reclaim.result()
            raise NotReadyError("the attachment to memd has ended")
        finally:
            reclaim.cancel()
            ended.cancel()

    async def attach_again(self) -> "Attachment":
        """The same holder's next attachment, without segments: they stay mapped. For when this one has ended.

        NotReadyError: memd is away, or starting. StorageLostError: it has other storage, or has given this holder up.
        There is no deadline: a call that was given up could still be answered, and its end would end the holder.
        """
        call = self._stub.Attach(pb.AttachRequest(holder_id=self.holder_id, epoch=self.epoch))
        try:
            return Attachment(await _first_event(call), {}, call, self._stub)
        except BaseException:
            call.cancel()
            raise

    async def detach(self) -> None:
        """Ends the attachment and closes the segments' descriptors; mappings stay. May be called again.

        Who detaches while it is attached is no holder any more.
        """
        if not self.ended.is_set():
            await _say_farewell(self._stub, self.holder_id)
        self._call.cancel()
        await asyncio.wait([self._watch])  # awaited itself, it would take a cancellation of this one for its own
        close_segments(self.segments.values())
        self.segments = {}

    async def _read(self) -> None:
        try:
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                while isinstance(response := await self._call.read(), pb.AttachResponse):
                    if response.HasField("reclaim"):
                        self._reclaims.put_nowait(response.reclaim.num_blocks)
        finally:
            self.ended.set()


class MemdClient:
    """`MemoryStore` over gRPC. Made on the running loop. Every call raises NotReadyError while memd is away.

    A holder's calls have no deadline: one that was given up could still be carried out, and the holder not know of it.
    """

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._channel = peer_channel(address, CHANNEL_OPTIONS, credentials)
        self._stub: pb_grpc.MemoryServiceAsyncStub = pb_grpc.MemoryServiceStub(self._channel)

    async def attach(self, service: str, pid: int, fingerprint: Fingerprint) -> Attachment:
        """Makes this process a holder. NotReadyError: away or loading. FingerprintMismatchError, DeviceError."""
        request = pb.AttachRequest(service=service, pid=pid, fingerprint=fingerprint_to_proto(fingerprint))
        call = self._stub.Attach(request)
        try:
            attached = await _first_event_in_time(call)
            return Attachment(attached, await self._segments(attached), call, self._stub)
        except BaseException:
            call.cancel()
            raise

    async def _segments(self, attached: pb.Attached) -> Mapping[str, ReceivedSegment]:
        """As `receive_segments`; who does not get them is no holder."""
        try:
            return await receive_segments(attached.handle_socket, attached.holder_id)
        except BaseException:
            await _say_farewell(self._stub, attached.holder_id)
            raise

    async def close(self) -> None:
        """Ends the channel, and every attachment made over it."""
        await self._channel.close()

    async def lease_blocks(self, holder_id: int, num_blocks: int) -> tuple[Block, ...]:
        """See `MemoryStore`."""
        request = pb.LeaseBlocksRequest(holder_id=holder_id, num_blocks=num_blocks)
        response = await answer_of(self._stub.LeaseBlocks(request))
        return blocks_from_proto(response.blocks)

    async def return_blocks(self, holder_id: int, blocks: Sequence[Block]) -> None:
        """See `MemoryStore`."""
        request = pb.ReturnBlocksRequest(holder_id=holder_id, blocks=blocks_to_proto(blocks))
        await answer_of(self._stub.ReturnBlocks(request))

    async def acquire_sequence(
        self, holder_id: int, lease_id: int, request_id: str, create: bool, domain: bytes = b""
    ) -> SequenceLease:
        """See `MemoryStore`."""
        request = pb.AcquireSequenceRequest(
            holder_id=holder_id, lease_id=lease_id, request_id=request_id, create=create, domain=domain
        )
        response = await answer_of(self._stub.AcquireSequence(request))
        return lease_from_proto(lease_id, response)

    async def claim_prefix(
        self, holder_id: int, lease_id: int, keys: Sequence[bytes], prompt: PromptTokens | None = None
    ) -> SequenceLease:
        """See `MemoryStore`."""
        request = pb.ClaimPrefixRequest(
            holder_id=holder_id, lease_id=lease_id, keys=keys, prompt=prompt_to_proto(prompt) if prompt else None
        )
        response = await answer_of(self._stub.ClaimPrefix(request))
        return lease_from_proto(lease_id, response)

    async def find_blocks(self, holder_id: int, runs: Sequence[Sequence[bytes]]) -> tuple[tuple[Block, ...], ...]:
        """See `MemoryStore`."""
        request = pb.FindBlocksRequest(holder_id=holder_id, runs=[pb.KeyRun(keys=keys) for keys in runs])
        response = await answer_of(self._stub.FindBlocks(request))
        return tuple(blocks_from_proto(run.blocks) for run in response.runs)

    async def update_sequences(self, holder_id: int, updates: Sequence[SequenceUpdate]) -> frozenset[int]:
        """See `MemoryStore`."""
        messages = [update_to_proto(update) for update in updates]
        request = pb.UpdateSequencesRequest(holder_id=holder_id, updates=messages)
        response = await answer_of(self._stub.UpdateSequences(request))
        return frozenset(response.lost_lease_ids)

    async def fork_sequence(self, parent_lease_id: int, child_lease_id: int, request_id: str, num_tokens: int) -> int:
        """See `MemoryStore`."""
        request = pb.ForkSequenceRequest(
            parent_lease_id=parent_lease_id,
            child_lease_id=child_lease_id,
            request_id=request_id,
            num_tokens=num_tokens,
        )
        response = await answer_of(self._stub.ForkSequence(request, timeout=CALL_TIMEOUT_S))
        return int(response.num_shared_tokens)

    async def renew_sequences(self, lease_ids: Sequence[int]) -> frozenset[int]:
        """See `MemoryStore`."""
        request = pb.RenewSequencesRequest(lease_ids=lease_ids)
        response = await answer_of(self._stub.RenewSequences(request, timeout=CALL_TIMEOUT_S))
        return frozenset(response.lost_lease_ids)

    async def release_sequences(self, lease_ids: Sequence[int]) -> int:
        """See `MemoryStore`."""
        request = pb.ReleaseSequencesRequest(lease_ids=lease_ids)
        response = await answer_of(self._stub.ReleaseSequences(request, timeout=CALL_TIMEOUT_S))
        return int(response.num_blocks_freed)

    async def abandon_sequences(self, lease_ids: Sequence[int]) -> None:
        """See `MemoryStore`."""
        request = pb.AbandonSequencesRequest(lease_ids=lease_ids)
        await answer_of(self._stub.AbandonSequences(request, timeout=CALL_TIMEOUT_S))

    async def statistics(self) -> StorageStatistics:
        """See `MemoryStore`."""
        return statistics_from_proto(
            await answer_of(self._stub.GetStatistics(pb.GetStatisticsRequest(), timeout=CALL_TIMEOUT_S))
        )


async def answer_of(call: Awaitable[_Answer]) -> _Answer:
    """What the call answers, or the error that memd raised; a memd that does not answer is away."""
    try:
        return await call
    except grpc.aio.AioRpcError as failure:
        error = error_from_rpc(failure)
        raise NotReadyError(f"memd: {error}") if isinstance(error, DeadlineError) else error from failure


async def _say_farewell(stub: "pb_grpc.MemoryServiceAsyncStub", holder_id: int) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError):
        await stub.Detach(pb.DetachRequest(holder_id=holder_id), timeout=FAREWELL_TIMEOUT_S)


async def _first_event_in_time(call: _AttachCall) -> pb.Attached:
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            return await _first_event(call)
    except TimeoutError:
        raise NotReadyError(f"memd did not answer within {CALL_TIMEOUT_S:g} s") from None


async def _first_event(call: _AttachCall) -> pb.Attached:
    response = await answer_of(call.read())
    if not isinstance(response, pb.AttachResponse) or not response.HasField("attached"):
        raise NotReadyError("memd ended the attachment at once")
    return response.attached
