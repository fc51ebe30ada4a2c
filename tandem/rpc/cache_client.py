"""memd's cache from another process: the `CacheStore` over gRPC."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc

from tandem.errors import NotReadyError
from tandem.kv.cache_store import CacheNews, CachePosition
from tandem.kv.cached_runs import CachedRun
from tandem.kv.outcomes import Withdrawal
from tandem.rpc.access import Access, open_async_channel
from tandem.rpc.cache_codecs import news_from_proto, position_to_proto, run_from_proto
from tandem.rpc.memd_client import CALL_TIMEOUT_S, CHANNEL_OPTIONS, answer_of
from tandem.rpc.peer_channel import peer_channel
from tandem.rpc.status import error_from_rpc
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as gateway_pb
from tandem.rpc.stubs.gateway.v1 import gateway_pb2_grpc as gateway_pb_grpc
from tandem.rpc.stubs.memd.v1 import cache_pb2 as pb
from tandem.rpc.stubs.memd.v1 import cache_pb2_grpc as pb_grpc


@dataclass(frozen=True, slots=True)
class PromptKeys:
    """Where memd keeps a prompt's KV, if it does: a key for each whole block."""

    namespace: bytes
    keys: tuple[bytes, ...]


async def prompt_keys(
    gateway: str, token_ids: Sequence[int], cache_salt: str, access: Access, *, tenant: str = ""
) -> PromptKeys:
    """As the gateway at that address names them, for requests with that salt of that caller, or of a `tenant`.

    InvalidRequestError, NotReadyError, UnauthenticatedError. ConfigError: the gateway has nothing kept.
    """
    prompt = gateway_pb.TokenIds(ids=token_ids)
    request = gateway_pb.GetCacheKeysRequest(token_ids=prompt, cache_salt=cache_salt, tenant=tenant)
    async with open_async_channel(gateway, access) as channel:
        stub: gateway_pb_grpc.GatewayServiceAsyncStub = gateway_pb_grpc.GatewayServiceStub(channel)
        try:
            response = await stub.GetCacheKeys(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as failure:
            raise error_from_rpc(failure) from failure
    return PromptKeys(response.namespace, tuple(response.keys))


class CacheClient:
    """`CacheStore` over gRPC. Made on the running loop. Every call raises NotReadyError while memd is away."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._channel = peer_channel(address, CHANNEL_OPTIONS, credentials)
        self._stub: pb_grpc.CacheServiceAsyncStub = pb_grpc.CacheServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the channel, and every watch over it."""
        await self._channel.close()

    async def runs(self) -> tuple[CachedRun, ...]:
        """See `CacheStore`."""
        response = await answer_of(self._stub.ListCache(pb.ListCacheRequest(), timeout=CALL_TIMEOUT_S))
        return tuple(map(run_from_proto, response.runs))

    async def pin(self, keys: Sequence[bytes]) -> int:
        """See `CacheStore`."""
        response = await answer_of(self._stub.PinPrefix(pb.PinPrefixRequest(keys=keys), timeout=CALL_TIMEOUT_S))
        return int(response.num_blocks)

    async def remove(self, namespace: bytes) -> Withdrawal:
        """See `CacheStore`."""
        return await self._remove(pb.RemoveCacheRequest(namespace=namespace))

    async def remove_domain(self, domain: bytes) -> Withdrawal:
        """See `CacheStore`."""
        return await self._remove(pb.RemoveCacheRequest(domain=domain))

    async def remove_all(self) -> Withdrawal:
        """See `CacheStore`."""
        return await self._remove(pb.RemoveCacheRequest(all=True))

    async def watch(self, after: CachePosition | None) -> AsyncGenerator[CacheNews, None]:
        """See `CacheStore`. NotReadyError when memd ends."""
        request = pb.WatchCacheRequest(after=None if after is None else position_to_proto(after))
        call = self._stub.WatchCache(request)
        try:
            while isinstance(response := await call.read(), pb.WatchCacheResponse):
                yield news_from_proto(response)
        except grpc.aio.AioRpcError as failure:
            raise error_from_rpc(failure) from failure
        finally:
            call.cancel()
        raise NotReadyError("memd has ended")

    async def _remove(self, request: pb.RemoveCacheRequest) -> Withdrawal:
        response = await answer_of(self._stub.RemoveCache(request, timeout=CALL_TIMEOUT_S))
        return Withdrawal(response.num_freed_blocks, response.num_leased_blocks)
