"""Many streams of tokens on one asyncio loop: what a load generator needs of the client API, and no more.

Sampling is fixed: greedy, and exactly `max_tokens` tokens, so that every server under comparison does equal work.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import grpc

from tandem.rpc.status import error_from_rpc
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.rpc.stubs.gateway.v1 import gateway_pb2_grpc as pb_grpc

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """Tokens that came together. In the last is set: prompt tokens whose KV was reused, the wait in the queue."""

    token_ids: tuple[int, ...]
    num_cached_tokens: int | None
    queue_ms: float | None = None


class TokenStreams:
    """A connection to a gateway on the running loop. `close` it."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub: pb_grpc.GatewayServiceAsyncStub = pb_grpc.GatewayServiceStub(self._channel)

    async def generate(self, prompt: Sequence[int], max_tokens: int) -> AsyncGenerator[TokenPiece, None]:
        """Pieces as they come; the errors of `tandem.errors`. Closing the generator cancels the request."""
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=_sampling(max_tokens))
        call = self._stub.Generate(request)
        try:
            async for response in call:
                token_ids, usage = tuple(response.token_ids), response.usage
                if response.HasField("usage"):
                    yield TokenPiece(token_ids, usage.num_cached_tokens, usage.queue_ms)
                else:
                    yield TokenPiece(token_ids, None)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Ends the connection and every stream on it."""
        await self._channel.close()


def _sampling(max_tokens: int) -> pb.SamplingParams:
    return pb.SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
