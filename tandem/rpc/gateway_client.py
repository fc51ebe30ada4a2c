"""The client API over gRPC for threads: values in, values out, the errors of `tandem.errors` raised."""

import random
import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import grpc

from tandem.clock import MonotonicClock
from tandem.errors import NotReadyError
from tandem.rpc import gateway_codecs as codecs
from tandem.rpc.access import Access, open_channel
from tandem.rpc.gateway_values import Answer, CallOptions, Messages, ModelInfo, Piece, Prompt, ServerStatus
from tandem.rpc.resuming import Attempts, RequestT, RetryPolicy
from tandem.rpc.status import error_from_rpc, is_from_server
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.rpc.stubs.gateway.v1 import gateway_pb2_grpc as pb_grpc

_Result = TypeVar("_Result")


class GatewayClient:
    """A connection to a gateway; safe to share between threads. `close` it.

    What generates is taken up again as `retry` says, once the server has been reached: an address at which nobody ever
    answered is an error at once.
    """

    def __init__(self, address: str, retry: RetryPolicy | None = None, access: Access | None = None) -> None:
        self._channel = open_channel(address, access)
        self._stub = pb_grpc.GatewayServiceStub(self._channel)
        self._retry = retry or RetryPolicy()
        self._clock = MonotonicClock()
        self._reached = False
        self._closed = threading.Event()

    def close(self) -> None:
        """Ends the connection and every call on it."""
        self._closed.set()
        self._channel.close()

    def generate(self, prompt: Prompt, options: CallOptions) -> Generator[Piece, None, None]:
        """Pieces of all answers as they come. Closing the generator cancels the request."""
        request = codecs.generate_request(prompt, options.named())
        return self._stream(self._stub.Generate, self._attempts(request, options), lambda response: response)

    def chat(self, messages: Messages, options: CallOptions) -> Generator[Piece, None, None]:
        """As `generate`, for a conversation."""
        request = codecs.chat_request(messages, options.named())
        return self._stream(self._stub.Chat, self._attempts(request, options), lambda response: response.piece)

    def generate_once(self, prompt: Prompt, options: CallOptions) -> tuple[Answer, ...]:
        """All answers, whole, by index. When it is cut off it begins anew."""
        attempts = self._attempts(codecs.generate_request(prompt, options.named()), options)
        while True:
            try:
                once = pb.GenerateOnceRequest(request=attempts.request)
                return codecs.answers(self._stub.GenerateOnce(once, timeout=attempts.time_left_s))
            except grpc.RpcError as failure:
                self._wait(attempts, failure)

    def tokenize(self, source: str | Messages, timeout_s: float | None) -> tuple[int, ...]:
        """The prompt that a text or a conversation becomes."""
        request = codecs.tokenize_request(source)
        return tuple(self._ask(lambda: self._stub.Tokenize(request, timeout=timeout_s)).token_ids)

    def model_info(self, timeout_s: float | None) -> ModelInfo:
        """See `ModelInfo`."""
        request = pb.GetModelInfoRequest()
        return codecs.model_info(self._ask(lambda: self._stub.GetModelInfo(request, timeout=timeout_s)))

    def abort(self, request_id: str, timeout_s: float | None) -> None:
        """NotFoundError when it is not running."""
        request = codecs.abort_request(request_id)
        self._ask(lambda: self._stub.Abort(request, timeout=timeout_s))

    def status(self, timeout_s: float | None) -> ServerStatus:
        """See `ServerStatus`."""
        request = pb.GetStatusRequest()
        return codecs.server_status(self._ask(lambda: self._stub.GetStatus(request, timeout=timeout_s)))

    def _ask(self, perform: Callable[[], _Result]) -> _Result:
        try:
            result = perform()
        except grpc.RpcError as failure:
            raise error_from_rpc(failure) from failure
        self._reached = True
        return result

    def _attempts(self, request: RequestT, options: CallOptions) -> Attempts[RequestT]:
        return Attempts(request, self._retry, options.timeout_s, clock=self._clock, draw=random.random)

    def _stream(
        self, method: Any, attempts: Attempts[RequestT], unwrap: Callable[[Any], pb.GenerateResponse]
    ) -> Generator[Piece, None, None]:
        """The first attempt begins here, not with the first piece that is asked for."""
        return self._pieces(_begin(method, attempts), method, attempts, unwrap)

    def _pieces(
        self, call: Any, method: Any, attempts: Attempts[RequestT], unwrap: Callable[[Any], pb.GenerateResponse]
    ) -> Generator[Piece, None, None]:
        while True:
            try:
                for response in map(unwrap, call):
                    self._reached = True
                    attempts.note(response)
                    yield codecs.piece(response)
                return
            except grpc.RpcError as failure:
                if attempts.complete:
                    return
                self._wait(attempts, failure)
            finally:
                call.cancel()
            call = _begin(method, attempts)

    def _wait(self, attempts: Attempts[RequestT], failure: Any) -> None:
        """Until the next attempt is due. Raises the failure's error when there is to be none."""
        self._reached = self._reached or is_from_server(failure)
        if not self._reached or self._closed.is_set():
            raise error_from_rpc(failure) from failure
        if self._closed.wait(attempts.pause_s(failure)):
            raise NotReadyError("the client was closed") from failure


def _begin(method: Any, attempts: Attempts[RequestT]) -> Any:
    return method(attempts.request, timeout=attempts.time_left_s)
