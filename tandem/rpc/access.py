"""What a client shows to a gateway, and how its connection is protected."""

from __future__ import annotations  # grpc's generic types are so in its stub files only

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc

from tandem.errors import ConfigError
from tandem.rpc.gateway_channel import CHANNEL_OPTIONS
from tandem.rpc.tls import TlsFiles, channel_credentials


@dataclass(frozen=True, slots=True)
class Access:
    """An API key, where the gateway wants one, and TLS, where its port has it. A key goes where the address leads:
    give it to plain text on this machine alone. ConfigError: a key that no call can carry."""

    api_key: str = field(default="", repr=False)
    tls: TlsFiles | None = None

    def __post_init__(self) -> None:
        if not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ConfigError("api_key", "has characters that no key has; leave out what stands around it in its file")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Of every call."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()


def open_channel(address: str, access: Access | None) -> grpc.Channel:
    """To a gateway, for threads. ConfigError, as of `channel_credentials`."""
    if access is None:
        return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    if access.tls is None:
        channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    else:
        channel = grpc.secure_channel(address, channel_credentials(access.tls), options=CHANNEL_OPTIONS)
    return grpc.intercept_channel(channel, _Showing(access.metadata)) if access.metadata else channel


def open_async_channel(address: str, access: Access | None) -> grpc.aio.Channel:
    """To a gateway, on the running loop. ConfigError, as of `channel_credentials`."""
    if access is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    showing: Sequence[Any] = [_AsyncUnary(access.metadata), _AsyncStream(access.metadata)] if access.metadata else []
    if access.tls is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS, interceptors=showing)
    credentials = channel_credentials(access.tls)
    return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS, interceptors=showing)


class _Details(NamedTuple):
    """What grpc's interceptors for threads hand on; theirs cannot be changed."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Showing(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Adds metadata to every call of a channel for threads."""

    def __init__(self, metadata: Sequence[tuple[str, str]]) -> None:
        self._metadata = tuple(metadata)

    def intercept_unary_unary(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        """With the metadata."""
        return continuation(self._shown(client_call_details), request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        """With the metadata."""
        return continuation(self._shown(client_call_details), request)

    def _shown(self, details: Any) -> _Details:
        metadata = (*(details.metadata or ()), *self._metadata)
        return _Details(
            details.method,
            details.timeout,
            metadata,
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )


class _AsyncShowing:
    """Adds metadata to calls of a channel on a loop."""

    def __init__(self, metadata: Sequence[tuple[str, str]]) -> None:
        self._metadata = tuple(metadata)

    def _shown(self, details: Any) -> Any:
        return details._replace(metadata=grpc.aio.Metadata(*(details.metadata or ()), *self._metadata))


class _AsyncUnary(_AsyncShowing, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        """With the metadata."""
        return await continuation(self._shown(client_call_details), request)


class _AsyncStream(_AsyncShowing, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        """With the metadata."""
        return await continuation(self._shown(client_call_details), request)
