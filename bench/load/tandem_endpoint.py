"""Tandem's gateway over gRPC."""

from collections.abc import AsyncGenerator, Sequence

from bench.load.endpoint import Tokens
from tandem.rpc.gateway_streams import TokenStreams


class TandemEndpoint:
    """See `bench.load.endpoint.Endpoint`."""

    def __init__(self, address: str) -> None:
        self._streams = TokenStreams(address)

    async def generate(self, prompt: Sequence[int], max_tokens: int) -> AsyncGenerator[Tokens, None]:
        """See `Endpoint`."""
        async for piece in self._streams.generate(prompt, max_tokens):
            yield Tokens(len(piece.token_ids), piece.token_ids, piece.num_cached_tokens, piece.queue_ms)

    async def close(self) -> None:
        """See `Endpoint`."""
        await self._streams.close()
