"""Translates between memd's gRPC methods and its store and cache."""

from __future__ import annotations  # grpc's generic types are so in its stub files only

from collections.abc import AsyncIterator
from contextlib import aclosing
from operator import attrgetter
from typing import Any, TypeAlias

import grpc

from services.memd.cache import LocalCache
from services.memd.daemon import Daemon, Storage
from services.memd.holders import LocalAttachment
from services.memd.store import LocalStore
from tandem.errors import InvalidRequestError, NotReadyError
from tandem.kv.outcomes import Withdrawal
from tandem.rpc.cache_codecs import news_to_proto, position_from_proto, run_to_proto
from tandem.rpc.memd_codecs import (
    blocks_from_proto,
    blocks_to_proto,
    fingerprint_from_proto,
    fingerprint_to_proto,
    lease_to_proto,
    prompt_from_proto,
    statistics_to_proto,
    update_from_proto,
)
from tandem.rpc.stubs.memd.v1 import cache_pb2 as cache_pb
from tandem.rpc.stubs.memd.v1 import cache_pb2_grpc as cache_pb_grpc
from tandem.rpc.stubs.memd.v1 import memd_pb2 as pb
from tandem.rpc.stubs.memd.v1 import memd_pb2_grpc as pb_grpc

SERVICE_NAMES = (
    pb.DESCRIPTOR.services_by_name["MemoryService"].full_name,
    cache_pb.DESCRIPTOR.services_by_name["CacheService"].full_name,
)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class MemoryService(pb_grpc.MemoryServiceServicer):
    """The gRPC face of memd's `LocalStore`. Every method raises NotReadyError while the model loads."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @property
    def _store(self) -> LocalStore:
        return self._daemon.storage.store

    async def Attach(self, request: pb.AttachRequest, context: Context) -> AsyncIterator[pb.AttachResponse]:  # noqa: N802
        """The stream is the attachment."""
        storage, attachment = self._attach_again(request) if request.holder_id else self._attach(request)
        try:
            yield pb.AttachResponse(attached=_attached(storage, attachment))
            async for num_blocks in _reclaims(attachment):
                yield pb.AttachResponse(reclaim=pb.Reclaim(num_blocks=num_blocks))
        finally:
            storage.store.detach(attachment)

    async def Detach(self, request: pb.DetachRequest, context: Context) -> pb.DetachResponse:  # noqa: N802
        """A holder is done."""
        self._store.leave(request.holder_id)
        return pb.DetachResponse()

    async def LeaseBlocks(self, request: pb.LeaseBlocksRequest, context: Context) -> pb.LeaseBlocksResponse:  # noqa: N802
        """Spare blocks."""
        blocks = await self._store.lease_blocks(request.holder_id, request.num_blocks)
        return pb.LeaseBlocksResponse(blocks=blocks_to_proto(blocks))

    async def ReturnBlocks(self, request: pb.ReturnBlocksRequest, context: Context) -> pb.ReturnBlocksResponse:  # noqa: N802
        """Spare blocks back."""
        await self._store.return_blocks(request.holder_id, blocks_from_proto(request.blocks))
        return pb.ReturnBlocksResponse()

    async def AcquireSequence(  # noqa: N802
        self, request: pb.AcquireSequenceRequest, context: Context
    ) -> pb.AcquireSequenceResponse:
        """Opens a lease or takes it over."""
        return lease_to_proto(
            await self._store.acquire_sequence(
                request.holder_id, request.lease_id, request.request_id, request.create, request.domain
            )
        )

    async def ClaimPrefix(self, request: pb.ClaimPrefixRequest, context: Context) -> pb.AcquireSequenceResponse:  # noqa: N802
        """Shares published blocks."""
        prompt = prompt_from_proto(request.prompt) if request.HasField("prompt") else None
        claim = self._store.claim_prefix(request.holder_id, request.lease_id, request.keys, prompt)
        return lease_to_proto(await claim)

    async def FindBlocks(self, request: pb.FindBlocksRequest, context: Context) -> pb.FindBlocksResponse:  # noqa: N802
        """Published blocks to copy from."""
        runs = await self._store.find_blocks(request.holder_id, [run.keys for run in request.runs])
        return pb.FindBlocksResponse(runs=[pb.BlockRun(blocks=blocks_to_proto(blocks)) for blocks in runs])

    async def UpdateSequences(  # noqa: N802
        self, request: pb.UpdateSequencesRequest, context: Context
    ) -> pb.UpdateSequencesResponse:
        """Extends and seals."""
        updates = [update_from_proto(update) for update in request.updates]
        lost = await self._store.update_sequences(request.holder_id, updates)
        return pb.UpdateSequencesResponse(lost_lease_ids=sorted(lost))

    async def ForkSequence(self, request: pb.ForkSequenceRequest, context: Context) -> pb.ForkSequenceResponse:  # noqa: N802
        """A second lease on the same blocks."""
        num_shared = await self._store.fork_sequence(
            request.parent_lease_id, request.child_lease_id, request.request_id, request.num_tokens
        )
        return pb.ForkSequenceResponse(num_shared_tokens=num_shared)

    async def RenewSequences(self, request: pb.RenewSequencesRequest, context: Context) -> pb.RenewSequencesResponse:  # noqa: N802
        """Keeps leases from expiring."""
        lost = await self._store.renew_sequences(request.lease_ids)
        return pb.RenewSequencesResponse(lost_lease_ids=sorted(lost))

    async def ReleaseSequences(  # noqa: N802
        self, request: pb.ReleaseSequencesRequest, context: Context
    ) -> pb.ReleaseSequencesResponse:
        """Ends leases."""
        num_freed = await self._store.release_sequences(request.lease_ids)
        return pb.ReleaseSequencesResponse(num_blocks_freed=num_freed)

    async def AbandonSequences(  # noqa: N802
        self, request: pb.AbandonSequencesRequest, context: Context
    ) -> pb.AbandonSequencesResponse:
        """Ends leases as they are let go."""
        await self._store.abandon_sequences(request.lease_ids)
        return pb.AbandonSequencesResponse()

    async def GetStatistics(self, request: pb.GetStatisticsRequest, context: Context) -> pb.GetStatisticsResponse:  # noqa: N802
        """The pool as it is now."""
        return statistics_to_proto(await self._store.statistics())

    def _attach(self, request: pb.AttachRequest) -> tuple[Storage, LocalAttachment]:
        storage = self._daemon.storage
        claim = fingerprint_from_proto(request.fingerprint)
        return storage, storage.store.attach(request.service, request.pid, claim)

    def _attach_again(self, request: pb.AttachRequest) -> tuple[Storage, LocalAttachment]:
        storage = self._daemon.storage_of(request.epoch)
        return storage, storage.store.attach_again(request.holder_id)


class CacheService(cache_pb_grpc.CacheServiceServicer):
    """The gRPC face of memd's `LocalCache`. Every method raises NotReadyError while the model loads."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @property
    def _cache(self) -> LocalCache:
        return self._daemon.storage.store.cache

    async def ListCache(self, request: cache_pb.ListCacheRequest, context: Context) -> cache_pb.ListCacheResponse:  # noqa: N802
        """What is published."""
        return cache_pb.ListCacheResponse(runs=map(run_to_proto, await self._cache.runs()))

    async def PinPrefix(self, request: cache_pb.PinPrefixRequest, context: Context) -> cache_pb.PinPrefixResponse:  # noqa: N802
        """Keeps a prompt's blocks."""
        return cache_pb.PinPrefixResponse(num_blocks=await self._cache.pin(request.keys))

    async def RemoveCache(self, request: cache_pb.RemoveCacheRequest, context: Context) -> cache_pb.RemoveCacheResponse:  # noqa: N802
        """Of a namespace, of a sharing domain, or everything."""
        withdrawal = await self._remove(request)
        return cache_pb.RemoveCacheResponse(
            num_freed_blocks=withdrawal.num_freed_blocks, num_leased_blocks=withdrawal.num_leased_blocks
        )

    async def WatchCache(  # noqa: N802
        self, request: cache_pb.WatchCacheRequest, context: Context
    ) -> AsyncIterator[cache_pb.WatchCacheResponse]:
        """Every change."""
        after = position_from_proto(request.after) if request.HasField("after") else None
        async with aclosing(self._cache.watch(after)) as watch:
            async for news in watch:
                yield news_to_proto(news)

    async def _remove(self, request: cache_pb.RemoveCacheRequest) -> Withdrawal:
        match request.WhichOneof("what"):
            case "namespace":
                return await self._cache.remove(request.namespace)
            case "domain":
                return await self._cache.remove_domain(request.domain)
            case "all" if request.all:
                return await self._cache.remove_all()
            case _:
                raise InvalidRequestError("what", "is missing; set a namespace, a domain, or all to true")


def add_to_server(daemon: Daemon, server: grpc.aio.Server) -> None:
    """Serves memd's methods."""
    pb_grpc.add_MemoryServiceServicer_to_server(MemoryService(daemon), server)
    cache_pb_grpc.add_CacheServiceServicer_to_server(CacheService(daemon), server)


def _attached(storage: Storage, attachment: LocalAttachment) -> pb.Attached:
    holding = storage.store.holding(attachment.holder_id)
    return pb.Attached(
        holder_id=attachment.holder_id,
        epoch=storage.store.current_statistics().epoch,
        fingerprint=fingerprint_to_proto(storage.store.facts.fingerprint),
        handle_socket=str(storage.handle_socket),
        model_config_json=storage.plan.model_config_json,
        weight_manifest_json=storage.plan.manifest_json,
        kv_layout_json=storage.kv_layout.to_json(),
        spare_blocks=blocks_to_proto(sorted(holding.spare, key=attrgetter("block_id"))),
        lease_ids=sorted(holding.lease_ids),
    )


async def _reclaims(attachment: LocalAttachment) -> AsyncIterator[int]:
    while True:
        try:
            yield await attachment.next_reclaim()
        except NotReadyError:
            return
