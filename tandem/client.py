"""Tandem's Python client.

::

    from tandem.client import Client

    with Client("localhost:50051") as client:
        for piece in client.generate("Once upon a time", max_tokens=64, seed=7):
            print(piece.text_delta, end="", flush=True)

Sampling parameters are keyword arguments: temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty,
frequency_penalty, max_tokens, min_tokens, stop, stop_token_ids, ignore_eos, n, seed, logprobs, logit_bias. What is
left out, or None, is the server's to choose.

`AsyncClient` has the same methods for asyncio.

A prompt with documents that other prompts had, in whatever order, has its first token sooner with
``reuse=Reuse(segments=[document, ...])``: their KV is reused approximately, and the answer may differ from the one
without. `Usage` says what was reused.

A server that ends, is restarted or loses the connection in the middle of an answer costs a pause: the client takes the
request up again with the tokens that it has, and the answer goes on as if nothing had happened, sampled ones too. It
gives up after `RetryPolicy.give_up_s` without a message. An address at which nobody ever answered fails at once.
`generate_once` begins its answers anew, and calls that generate nothing are tried again for a second or two.

Every method raises the errors of `tandem.errors`: `InvalidRequestError` names the field that cannot be served,
`QueueFullError` says when to try again, `NotReadyError` that the server is away, loading or shutting down,
`DeadlineError` that `timeout_s` has passed.
"""

from collections.abc import AsyncGenerator, Generator, Mapping
from types import TracebackType
from typing import Self

from tandem.rpc.access import Access
from tandem.rpc.gateway_async_client import AsyncGatewayClient
from tandem.rpc.gateway_client import GatewayClient
from tandem.rpc.gateway_values import (
    Answer,
    CallOptions,
    Messages,
    ModelInfo,
    Piece,
    Prompt,
    ReplicaStatus,
    Reuse,
    SamplingValue,
    SegmentUsage,
    ServerStatus,
    TokenLogprob,
    Usage,
)
from tandem.rpc.resuming import RetryPolicy
from tandem.rpc.tls import TlsFiles
from tandem.types import Span

__all__ = [
    "Access",
    "Answer",
    "AsyncClient",
    "Client",
    "ModelInfo",
    "Piece",
    "ReplicaStatus",
    "RetryPolicy",
    "Reuse",
    "SegmentUsage",
    "ServerStatus",
    "Span",
    "TlsFiles",
    "TokenLogprob",
    "Usage",
]

QUERY_TIMEOUT_S = 30.0  # of calls that generate nothing


class Client:
    """A connection to a gateway at ``host:port`` or ``unix:/path``; threads may share it.

    Connecting happens with the first call. `close` it, or use it as a context manager.
    """

    def __init__(self, address: str, retry: RetryPolicy | None = None, access: Access | None = None) -> None:
        """`retry`: how long what was cut off is taken up again; ``RetryPolicy(give_up_s=0)``: never.

        `access`: an API key, TLS. ConfigError: a file of it cannot be read.
        """
        self._gateway = GatewayClient(address, retry, access)

    def generate(
        self,
        prompt: Prompt,
        *,
        request_id: str = "",
        priority: int = 0,
        cache_salt: str = "",
        timeout_s: float | None = None,
        reuse: Reuse | None = None,
        **sampling: SamplingValue,
    ) -> Generator[Piece, None, None]:
        """Streams the answers to a text or to token ids; with ``n`` above 1 their pieces come mixed.

        Closing the generator cancels the request. A higher `priority` is served first. What was computed for a prompt
        is reused for those that begin alike and have the same `cache_salt`. `reuse` lets parts of the prompt be reused
        wherever they stood before, approximately.
        """
        return self._gateway.generate(
            prompt, CallOptions(_given(sampling), request_id, priority, cache_salt, timeout_s, reuse)
        )

    def generate_once(
        self,
        prompt: Prompt,
        *,
        request_id: str = "",
        priority: int = 0,
        cache_salt: str = "",
        timeout_s: float | None = None,
        reuse: Reuse | None = None,
        **sampling: SamplingValue,
    ) -> tuple[Answer, ...]:
        """As `generate`, whole answers instead of pieces; as many as ``n``."""
        return self._gateway.generate_once(
            prompt, CallOptions(_given(sampling), request_id, priority, cache_salt, timeout_s, reuse)
        )

    def chat(
        self,
        messages: Messages,
        *,
        request_id: str = "",
        priority: int = 0,
        cache_salt: str = "",
        timeout_s: float | None = None,
        reuse: Reuse | None = None,
        **sampling: SamplingValue,
    ) -> Generator[Piece, None, None]:
        """Streams the answer to a conversation: ``[{"role": "user", "content": "Hello"}]``."""
        return self._gateway.chat(
            messages, CallOptions(_given(sampling), request_id, priority, cache_salt, timeout_s, reuse)
        )

    def tokenize(self, source: str | Messages) -> tuple[int, ...]:
        """The token ids of the prompt that a text or a conversation becomes."""
        return self._gateway.tokenize(source, QUERY_TIMEOUT_S)

    def model_info(self) -> ModelInfo:
        """The model that is served, and its limits."""
        return self._gateway.model_info(QUERY_TIMEOUT_S)

    def abort(self, request_id: str) -> None:
        """Ends a running request: its stream closes with `FinishReason.ABORT`. NotFoundError when it is not running."""
        self._gateway.abort(request_id, QUERY_TIMEOUT_S)

    def status(self) -> ServerStatus:
        """The queue, the phases and the rates."""
        return self._gateway.status(QUERY_TIMEOUT_S)

    def close(self) -> None:
        """Ends the connection and every call on it."""
        self._gateway.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """As `Client`, on the running loop. A stream begins with the first piece that is asked for."""

    def __init__(self, address: str, retry: RetryPolicy | None = None, access: Access | None = None) -> None:
        """`retry`: how long what was cut off is taken up again; ``RetryPolicy(give_up_s=0)``: never.

        `access`: an API key, TLS. ConfigError: a file of it cannot be read.
        """
        self._gateway = AsyncGatewayClient(address, retry, access)

    def generate(
        self,
        prompt: Prompt,
        *,
        request_id: str = "",
        priority: int = 0,
        cache_salt: str = "",
        timeout_s: float | None = None,
        reuse: Reuse | None = None,
        **sampling: SamplingValue,
    ) -> AsyncGenerator[Piece, None]:
        """Streams the answers to a text or to token ids; with ``n`` above 1 their pieces come mixed.

        Closing the generator cancels the request. A higher `priority` is served first. What was computed for a prompt
        is reused for those that begin alike and have the same `cache_salt`. `reuse` lets parts of the prompt be reused
        wherever they stood before, approximately.
        """
        return self._gateway.generate(
            prompt, CallOptions(_given(sampling), request_id, priority, cache_salt, timeout_s, reuse)
        )

    async def generate_once(
        self,
        prompt: Prompt,
        *,
        request_id: str = "",
        priority: int = 0,
        cache_salt: str = "",
        timeout_s: float | None = None,
        reuse: Reuse | None = None,
        **sampling: SamplingValue,
    ) -> tuple[Answer, ...]:
        """As `generate`, whole answers instead of pieces; as many as ``n``."""
        return await self._gateway.generate_once(
            prompt, CallOptions(_given(sampling), request_id, priority, cache_salt, timeout_s, reuse)
        )

    def chat(
        self,
        messages: Messages,
        *,
        request_id: str = "",
        priority: int = 0,
        cache_salt: str = "",
        timeout_s: float | None = None,
        reuse: Reuse | None = None,
        **sampling: SamplingValue,
    ) -> AsyncGenerator[Piece, None]:
        """Streams the answer to a conversation: ``[{"role": "user", "content": "Hello"}]``."""
        return self._gateway.chat(
            messages, CallOptions(_given(sampling), request_id, priority, cache_salt, timeout_s, reuse)
        )

    async def tokenize(self, source: str | Messages) -> tuple[int, ...]:
        """The token ids of the prompt that a text or a conversation becomes."""
        return await self._gateway.tokenize(source, QUERY_TIMEOUT_S)

    async def model_info(self) -> ModelInfo:
        """The model that is served, and its limits."""
        return await self._gateway.model_info(QUERY_TIMEOUT_S)

    async def abort(self, request_id: str) -> None:
        """Ends a running request: its stream closes with `FinishReason.ABORT`. NotFoundError when it is not running."""
        await self._gateway.abort(request_id, QUERY_TIMEOUT_S)

    async def status(self) -> ServerStatus:
        """The queue, the phases and the rates."""
        return await self._gateway.status(QUERY_TIMEOUT_S)

    async def close(self) -> None:
        """Ends the connection and every call on it."""
        await self._gateway.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _given(sampling: Mapping[str, SamplingValue]) -> dict[str, SamplingValue]:
    return {name: value for name, value in sampling.items() if value is not None}
