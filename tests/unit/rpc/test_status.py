"""Every error over a real server and back: the client raises what the handler raised."""

import asyncio

import grpc
import pytest
import structlog
from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tandem import errors
from tandem.rpc.status import StatusInterceptor, error_from_rpc, status_of

SAMPLES = [
    (errors.TandemError("x"), grpc.StatusCode.INTERNAL),
    (errors.ConfigError("memd.block_size", "got 0"), grpc.StatusCode.INVALID_ARGUMENT),
    (errors.InvalidRequestError("sampling.top_p", "got 2; expected (0, 1]"), grpc.StatusCode.INVALID_ARGUMENT),
    (errors.DuplicateRequestError("x"), grpc.StatusCode.ALREADY_EXISTS),
    (errors.NotFoundError("x"), grpc.StatusCode.NOT_FOUND),
    (errors.UnauthenticatedError("x"), grpc.StatusCode.UNAUTHENTICATED),
    (errors.QueueFullError("256 requests wait", 1.25), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.SlowReaderError("x"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.DeadlineError("x"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.NotReadyError("x"), grpc.StatusCode.UNAVAILABLE),
    (errors.SequenceFailedError("x"), grpc.StatusCode.INTERNAL),
    (errors.ModelError("x"), grpc.StatusCode.INTERNAL),
    (errors.ModelNotFoundError("x"), grpc.StatusCode.INTERNAL),
    (errors.ModelFormatError("x"), grpc.StatusCode.INTERNAL),
    (errors.UnsupportedModelError("x"), grpc.StatusCode.INTERNAL),
    (errors.StorageError("x"), grpc.StatusCode.INTERNAL),
    (errors.FingerprintMismatchError("dtype: a, b"), grpc.StatusCode.FAILED_PRECONDITION),
    (errors.StorageLostError("epoch 1, not 2"), grpc.StatusCode.FAILED_PRECONDITION),
    (errors.StaleBlockError("x"), grpc.StatusCode.ABORTED),
    (errors.PinQuotaError("9 of 8 blocks"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.LeaseError("x"), grpc.StatusCode.FAILED_PRECONDITION),
    (errors.LedgerCorruptError("x"), grpc.StatusCode.DATA_LOSS),
    (errors.DeviceError("größe"), grpc.StatusCode.INTERNAL),
    (errors.DeviceFaultError("illegal address"), grpc.StatusCode.INTERNAL),
]
KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream", "writer"]


class Thrower(grpc.GenericRpcHandler):
    """Methods of all kinds; each raises `error`, the streaming ones after one message."""

    def __init__(self) -> None:
        self.error: Exception = errors.TandemError("unset")
        self.closed = asyncio.Event()  # by the end of `write_on`

    def service(self, handler_call_details):
        kind = handler_call_details.method.rpartition("/")[2]
        if kind == "writer":
            return grpc.unary_stream_rpc_method_handler(self.write)
        if kind == "endless":
            return grpc.unary_stream_rpc_method_handler(self.write_on)
        answer = self.answer_stream if kind.endswith("stream") else self.answer
        return getattr(grpc, f"{kind}_rpc_method_handler")(answer)

    async def answer(self, request, context):
        raise self.error

    async def answer_stream(self, request, context):
        yield b"first"
        raise self.error

    async def write_on(self, request, context):
        try:
            while True:
                yield b"x" * 10_000
        finally:
            self.closed.set()

    async def write(self, request, context):
        await context.write(b"first")
        raise self.error


@pytest.fixture
async def thrower():
    handler = Thrower()
    server = grpc.aio.server(handlers=[handler], interceptors=[StatusInterceptor()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        handler.channel = channel
        handler.port = port
        yield handler
    await server.stop(0)


async def fail(thrower: Thrower, kind: str = "unary_unary") -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        if kind == "unary_unary":
            await thrower.channel.unary_unary("/t/unary_unary")(b"")
        elif kind == "stream_unary":
            await thrower.channel.stream_unary("/t/stream_unary")()
        else:
            # No request is sent on the stream of requests: a write that meets the call's end would hide its status.
            opened = thrower.channel.stream_stream if kind == "stream_stream" else thrower.channel.unary_stream
            call = opened(f"/t/{kind}")(*([] if kind == "stream_stream" else [b""]))
            assert await call.read() == b"first"
            await call.read()
    return raised.value


def every_class() -> set[type[errors.TandemError]]:
    found = {errors.TandemError}
    while (more := found | {sub for kind in found for sub in kind.__subclasses__()}) != found:
        found = more
    return {kind for kind in found if kind.__module__ == "tandem.errors"}


def test_the_samples_are_complete():
    assert {type(error) for error, _ in SAMPLES} == every_class()


@pytest.mark.parametrize(("error", "code"), SAMPLES, ids=lambda value: type(value).__name__)
async def test_the_client_raises_what_the_handler_raised(thrower, error, code):
    thrower.error = error
    failure = await fail(thrower)
    assert failure.code() is code is status_of(error)
    back = error_from_rpc(failure)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_method_is_mapped(thrower, kind):
    thrower.error = errors.NotFoundError(kind)
    assert isinstance(error_from_rpc(await fail(thrower, kind)), errors.NotFoundError)


async def test_the_sync_client_sees_the_same(thrower):
    def call() -> bytes:
        with grpc.insecure_channel(f"127.0.0.1:{thrower.port}") as channel:
            return channel.unary_unary("/t/unary_unary")(b"", timeout=10)

    thrower.error = errors.QueueFullError("full", 2.0)
    with pytest.raises(grpc.RpcError) as raised:
        await asyncio.to_thread(call)
    back = error_from_rpc(raised.value)
    assert isinstance(back, errors.QueueFullError)
    assert back.retry_delay_s == 2.0


def details_of(failure: grpc.aio.AioRpcError, kind):
    packed: list[any_pb2.Any] = list(rpc_status.from_call(failure).details)
    found = []
    for each in packed:
        detail = kind()
        if each.Unpack(detail):
            found.append(detail)
    return found


async def test_error_info_names_class_and_domain(thrower):
    thrower.error = errors.StaleBlockError("x")
    (info,) = details_of(await fail(thrower), error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("StaleBlockError", "tandem")


async def test_bad_request_names_the_field(thrower):
    thrower.error = errors.InvalidRequestError("sampling.top_p", "got 2")
    (detail,) = details_of(await fail(thrower), error_details_pb2.BadRequest)
    (violation,) = detail.field_violations
    assert (violation.field, violation.description) == ("sampling.top_p", "got 2")


async def test_a_full_queue_says_when_to_try_again(thrower):
    thrower.error = errors.QueueFullError("full", 0.5)
    (detail,) = details_of(await fail(thrower), error_details_pb2.RetryInfo)
    assert detail.retry_delay.ToMilliseconds() == 500


async def test_a_subclass_goes_as_its_nearest_base(thrower):
    class OddLeaseError(errors.LeaseError):
        pass

    thrower.error = OddLeaseError("x")
    assert type(error_from_rpc(await fail(thrower))) is errors.LeaseError


async def test_a_client_that_goes_while_it_is_written_to_is_no_crash(thrower):
    with structlog.testing.capture_logs() as logs:
        call = thrower.channel.unary_stream("/t/endless")(b"")
        assert await call.read()
        call.cancel()
        await asyncio.wait_for(thrower.closed.wait(), 20)
    assert logs == []


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unexpected_exception_is_internal_and_keeps_its_text_to_itself(thrower, kind):
    thrower.error = RuntimeError("secret prompt")
    failure = await fail(thrower, kind)
    assert failure.code() is grpc.StatusCode.INTERNAL
    assert "RuntimeError" in failure.details()
    assert "secret" not in str(failure)


@pytest.mark.parametrize("text", ["x" * 100_000, "ü" * 100_000, "😀" * 100_000, "lone \udc80", ""])
async def test_messages_that_trailers_cannot_hold(thrower, text):
    thrower.error = errors.InvalidRequestError("prompt.text", text)
    failure = await fail(thrower)
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    back = error_from_rpc(failure)
    assert isinstance(back, errors.InvalidRequestError)
    assert back.field == "prompt.text"


async def test_a_peer_that_is_away_is_not_ready():
    async with grpc.aio.insecure_channel("unix:/nonexistent/tandem.sock") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary("/t/x")(b"")
    error = error_from_rpc(raised.value)
    assert type(error) is errors.NotReadyError
    assert str(error).startswith("UNAVAILABLE: unix:/nonexistent/tandem.sock: ")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineError),
        (grpc.StatusCode.CANCELLED, errors.NotReadyError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.TandemError),
    ],
)
def test_failures_without_our_details(code, kind):
    error = error_from_rpc(grpc.aio.AioRpcError(code, details="why"))
    assert type(error) is kind
    assert str(error) == f"{code.name}: why"


def test_details_that_are_garbage_are_left_out():
    metadata = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff"))
    failure = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, None, metadata, "gone")
    assert type(error_from_rpc(failure)) is errors.NotReadyError
