"""Errors on the wire: one table from `tandem.errors` to gRPC status codes, and the way back.

Every failed call carries a ``google.rpc.Status`` whose `ErrorInfo` names the class of the error (reason) under the
domain ``tandem``; `BadRequest` names the field or key, `RetryInfo` the delay after which a full queue is worth
another try. `error_from_rpc` reads them, so that a client raises what the local implementation would have raised.
"""

from __future__ import annotations  # grpc's generic types are so in its stub files only

import inspect
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, Protocol, TypeVar, cast

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tandem import errors

DOMAIN = "tandem"
# Trailers must stay under 8 KiB. They hold the text three times: once with three bytes for each that is not ASCII
# (the status message), twice in base64 (the details).
MAX_TEXT_BYTES = 1000
MAX_FIELD_BYTES = 200

_CODES: dict[type[errors.TandemError], grpc.StatusCode] = {
    errors.TandemError: grpc.StatusCode.INTERNAL,
    errors.ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DuplicateRequestError: grpc.StatusCode.ALREADY_EXISTS,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.QueueFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.SlowReaderError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.NotReadyError: grpc.StatusCode.UNAVAILABLE,
    errors.SequenceFailedError: grpc.StatusCode.INTERNAL,
    errors.ModelError: grpc.StatusCode.INTERNAL,
    errors.ModelNotFoundError: grpc.StatusCode.INTERNAL,
    errors.ModelFormatError: grpc.StatusCode.INTERNAL,
    errors.UnsupportedModelError: grpc.StatusCode.INTERNAL,
    errors.StorageError: grpc.StatusCode.INTERNAL,
    errors.FingerprintMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StorageLostError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StaleBlockError: grpc.StatusCode.ABORTED,
    errors.PinQuotaError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.LeaseError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LedgerCorruptError: grpc.StatusCode.DATA_LOSS,
    errors.DeviceError: grpc.StatusCode.INTERNAL,
    errors.DeviceFaultError: grpc.StatusCode.INTERNAL,
}
_CLASSES = {error_class.__name__: error_class for error_class in _CODES}

# What gRPC itself says, without our details: a peer that is away, ends the call, or is too slow.
_TRANSPORT: dict[grpc.StatusCode, type[errors.TandemError]] = {
    grpc.StatusCode.UNAVAILABLE: errors.NotReadyError,
    grpc.StatusCode.CANCELLED: errors.NotReadyError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineError,
}

_LAST_ATTEMPT = re.compile(r"failed to connect to all addresses; last error: (?:[A-Z_]+: )?(?P<failure>.+)", re.DOTALL)

_Detail = TypeVar("_Detail", bound=message.Message)
_log = structlog.get_logger()


class RpcFailure(Protocol):
    """What the failures of grpc's sync and asyncio clients have in common."""

    def code(self) -> grpc.StatusCode:
        """The status code."""
        ...

    def details(self) -> str | None:
        """The status message."""
        ...

    def trailing_metadata(self) -> Any:
        """Key and value pairs, or None."""
        ...


def status_of(error: errors.TandemError) -> grpc.StatusCode:
    """The code of the error's class, or of its nearest base in the table."""
    return next(_CODES[base] for base in type(error).__mro__ if base in _CODES)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: errors.TandemError) -> NoReturn:
    """Ends the call with the error's code, message and details. Always raises (grpc's AbortError)."""
    status = rpc_status.to_status(_to_proto(error))
    await context.abort(status.code, status.details, trailing_metadata=status.trailing_metadata)
    raise AssertionError("context.abort returned")


def error_from_rpc(failure: RpcFailure) -> errors.TandemError:
    """The error that the servicer raised; for a failure of the transport the error that fits its code."""
    status = _rich_status(failure)
    if status is not None:
        return _from_proto(status)
    return _TRANSPORT.get(failure.code(), errors.TandemError)(transport_text(failure))


def is_from_server(failure: RpcFailure) -> bool:
    """Whether a servicer raised it; otherwise it is the transport's."""
    return _rich_status(failure) is not None


def transport_text(failure: RpcFailure) -> str:
    """The code and what gRPC says; of attempts to connect the last one's failure alone."""
    details = failure.details() or "no details"
    attempt = _LAST_ATTEMPT.match(details)
    return f"{failure.code().name}: {attempt['failure'] if attempt else details}"


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Ends a call whose handler raises: a TandemError by the table, anything else as INTERNAL, and logged."""

    def __init__(self) -> None:
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}  # by method

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the method's behaviour, whichever of the four kinds it is."""
        method = handler_call_details.method
        if (guarded := self._guarded.get(method)) is not None:
            return guarded
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return self._guarded.setdefault(method, _guarded(handler, method))


def _guarded(handler: Any, method: str) -> grpc.RpcMethodHandler[Any, Any]:
    kind = "_".join("stream" if s else "unary" for s in (handler.request_streaming, handler.response_streaming))
    guard = _guard_generator if inspect.isasyncgenfunction(getattr(handler, kind)) else _guard_coroutine
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    guarded = make(
        guard(getattr(handler, kind), method),
        request_deserializer=_deserializer(handler),
        response_serializer=handler.response_serializer,
    )
    return cast("grpc.RpcMethodHandler[Any, Any]", guarded)


def _deserializer(handler: Any) -> Callable[[bytes], Any] | None:
    """One that returns what it raises: out of a deserializer it would become an UNKNOWN with a trace in the log."""
    deserialize: Callable[[bytes], Any] | None = handler.request_deserializer
    if deserialize is None or handler.request_streaming:
        return deserialize

    def tried(data: bytes) -> Any:
        try:
            return deserialize(data)
        except message.DecodeError as error:
            return error

    return tried


def _readable(request: Any) -> Any:
    if isinstance(request, message.DecodeError):
        raise errors.InvalidRequestError("request", f"cannot be read: {request}")
    return request


def _guard_coroutine(behaviour: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
    async def guarded(request: Any, context: Any) -> Any:
        try:
            return await behaviour(_readable(request), context)
        except Exception as error:
            await _end(context, method, error)

    return guarded


def _guard_generator(
    behaviour: Callable[..., AsyncGenerator[Any, None]], method: str
) -> Callable[..., Awaitable[None]]:
    async def guarded(request: Any, context: Any) -> None:  # writes: a generator would be one more for each message
        try:
            async with aclosing(behaviour(_readable(request), context)) as responses:
                async for response in responses:
                    await context.write(response)
        except Exception as error:
            await _end(context, method, error)

    return guarded


async def _end(context: Any, method: str, error: Exception) -> NoReturn:
    if isinstance(error, grpc.aio.BaseError):  # grpc's own: aborted already, or the client has gone
        raise error
    if isinstance(error, errors.TandemError):
        await abort(context, error)
    _log.error("rpc.crashed", method=method, exc_info=error)
    await abort(context, errors.TandemError(f"internal error in {method}: {type(error).__name__}"))


def _to_proto(error: errors.TandemError) -> status_pb2.Status:
    status = status_pb2.Status(code=_code_number(status_of(error)), message=_clean(str(error)))
    for detail in _details(error):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _details(error: errors.TandemError) -> list[message.Message]:
    details: list[message.Message] = [error_details_pb2.ErrorInfo(reason=_reason(error), domain=DOMAIN)]
    if isinstance(error, errors.InvalidRequestError):
        details.append(_bad_request(error.field, error.problem))
    elif isinstance(error, errors.ConfigError):
        details.append(_bad_request(error.key, str(error).removeprefix(f"{error.key}: ")))
    elif isinstance(error, errors.QueueFullError):
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_delay_s)))
    return details


def _reason(error: errors.TandemError) -> str:
    return next(base for base in type(error).__mro__ if base in _CODES).__name__


def _bad_request(field: str, problem: str) -> error_details_pb2.BadRequest:
    violation = error_details_pb2.BadRequest.FieldViolation(
        field=_clean(field, MAX_FIELD_BYTES), description=_clean(problem)
    )
    return error_details_pb2.BadRequest(field_violations=[violation])


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration


def _clean(text: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Encodable (lone surrogates are not) and short enough for a trailer."""
    return text.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")


def _code_number(code: grpc.StatusCode) -> int:
    number: int = code_pb2.Code.Value(code.name)
    return number


def _rich_status(failure: RpcFailure) -> status_pb2.Status | None:
    try:
        return cast("status_pb2.Status | None", rpc_status.from_call(failure))
    except (ValueError, message.DecodeError):
        return None


def _from_proto(status: status_pb2.Status) -> errors.TandemError:
    info = _detail(status, error_details_pb2.ErrorInfo)
    error_class = _CLASSES.get(info.reason, errors.TandemError)
    if error_class in (errors.InvalidRequestError, errors.ConfigError):
        return error_class(*_violation(status))
    if error_class is errors.QueueFullError:
        delay = _detail(status, error_details_pb2.RetryInfo).retry_delay
        return errors.QueueFullError(status.message, delay.ToMilliseconds() / 1000)
    return error_class(status.message)


def _violation(status: status_pb2.Status) -> tuple[str, str]:
    violations = _detail(status, error_details_pb2.BadRequest).field_violations
    return (violations[0].field, violations[0].description) if violations else ("request", status.message)


def _detail(status: status_pb2.Status, kind: type[_Detail]) -> _Detail:
    """The first detail of that kind, or an empty one."""
    detail = kind()
    next((packed for packed in status.details if packed.Unpack(detail)), None)
    return detail
