"""The client API over gRPC for asyncio; as `tandem.rpc.gateway_client` in everything else."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc

from tandem.clock import MonotonicClock
from tandem.errors import NotReadyError
from tandem.rpc import gateway_codecs as codecs
from tandem.rpc.access import Access, open_async_channel
from tandem.rpc.cancelling import raise_if_cancelled
from tandem.rpc.gateway_values import Answer, CallOptions, Messages, ModelInfo, Piece, Prompt, ServerStatus
from tandem.rpc.resuming import Attempts, RequestT, RetryPolicy
from tandem.rpc.status import error_from_rpc, is_from_server
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.rpc.stubs.gateway.v1 import gateway_pb2_grpc as pb_grpc

CLOSED = "the client was closed"

_Result = TypeVar("_Result")


class AsyncGatewayClient:
    """A connection to a gateway on the running loop. `close` it. See `GatewayClient`."""

    def __init__(self, address: str, retry: RetryPolicy | None = None, access: Access | None = None) -> None:
        self._channel = open_async_channel(address, access)
        self._stub: pb_grpc.GatewayServiceAsyncStub = pb_grpc.GatewayServiceStub(self._channel)
        self._retry = retry or RetryPolicy()
        self._clock = MonotonicClock()
        self._reached = False
        self._closed = asyncio.Event()

    async def close(self) -> None:
        """Ends the connection and every call on it: NotReadyError for whoever waits for one."""
        self._closed.set()
        await self._channel.close()

    def generate(self, prompt: Prompt, options: CallOptions) -> AsyncGenerator[Piece, None]:
        """Pieces of all answers as they come. Closing the generator cancels the request."""
        request = codecs.generate_request(prompt, options.named())
        return self._pieces(self._stub.Generate, self._attempts(request, options), lambda response: response)

    def chat(self, messages: Messages, options: CallOptions) -> AsyncGenerator[Piece, None]:
        """As `generate`, for a conversation."""
        request = codecs.chat_request(messages, options.named())
        return self._pieces(self._stub.Chat, self._attempts(request, options), lambda response: response.piece)

    async def generate_once(self, prompt: Prompt, options: CallOptions) -> tuple[Answer, ...]:
        """All answers, whole, by index. When it is cut off it begins anew."""
        attempts = self._attempts(codecs.generate_request(prompt, options.named()), options)
        while True:
            try:
                once = pb.GenerateOnceRequest(request=attempts.request)
                with self._closing_named():
                    return codecs.answers(await self._stub.GenerateOnce(once, timeout=attempts.time_left_s))
            except grpc.aio.AioRpcError as failure:
                await self._wait(attempts, failure)

    async def tokenize(self, source: str | Messages, timeout_s: float | None) -> tuple[int, ...]:
        """The prompt that a text or a conversation becomes."""
        response = await self._ask(self._stub.Tokenize(codecs.tokenize_request(source), timeout=timeout_s))
        return tuple(response.token_ids)

    async def model_info(self, timeout_s: float | None) -> ModelInfo:
        """See `ModelInfo`."""
        return codecs.model_info(await self._ask(self._stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=timeout_s)))

    async def abort(self, request_id: str, timeout_s: float | None) -> None:
        """NotFoundError when it is not running."""
        await self._ask(self._stub.Abort(codecs.abort_request(request_id), timeout=timeout_s))

    async def status(self, timeout_s: float | None) -> ServerStatus:
        """See `ServerStatus`."""
        return codecs.server_status(await self._ask(self._stub.GetStatus(pb.GetStatusRequest(), timeout=timeout_s)))

    async def _ask(self, call: Awaitable[_Result]) -> _Result:
        try:
            with self._closing_named():
                result = await call
        except grpc.aio.AioRpcError as failure:
            raise error_from_rpc(failure) from failure
        self._reached = True
        return result

    def _attempts(self, request: RequestT, options: CallOptions) -> Attempts[RequestT]:
        return Attempts(request, self._retry, options.timeout_s, clock=self._clock, draw=random.random)

    async def _pieces(
        self, method: Any, attempts: Attempts[RequestT], unwrap: Callable[[Any], pb.GenerateResponse]
    ) -> AsyncGenerator[Piece, None]:
        while True:
            call = method(attempts.request, timeout=attempts.time_left_s)
            try:
                with self._closing_named():
                    async for message in call:
                        response = unwrap(message)
                        self._reached = True
                        attempts.note(response)
                        yield codecs.piece(response)
                return
            except grpc.aio.AioRpcError as failure:
                if attempts.complete:
                    return
                await self._wait(attempts, failure)
            finally:
                call.cancel()

    async def _wait(self, attempts: Attempts[RequestT], failure: grpc.aio.AioRpcError) -> None:
        """Until the next attempt is due. Raises the failure's error when there is to be none."""
        self._reached = self._reached or is_from_server(failure)
        if not self._reached:
            raise error_from_rpc(failure) from failure
        try:
            async with asyncio.timeout(attempts.pause_s(failure)):
                await self._closed.wait()
        except TimeoutError:
            return
        raise NotReadyError(CLOSED) from failure

    @contextmanager
    def _closing_named(self) -> Iterator[None]:
        """To grpc, a call that `close` has ended is a cancelled one, as if its task had been cancelled."""
        try:
            yield
        except asyncio.CancelledError:
            raise_if_cancelled()
            if self._closed.is_set():
                raise NotReadyError(CLOSED) from None
            raise
