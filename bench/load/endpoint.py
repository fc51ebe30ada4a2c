"""What the load generator talks to. An implementation translates one protocol and measures nothing."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from tandem.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens that came together, at least one but in a stream's last message."""

    num_tokens: int
    token_ids: tuple[int, ...] = ()  # empty where the server does not say them
    num_cached_tokens: int | None = None  # of the prompt; known at the end, if at all
    queue_ms: float | None = None  # that the request waited before the server began with it; as the one above


class Endpoint(Protocol):
    """A server under load."""

    def generate(self, prompt: Sequence[int], max_tokens: int) -> AsyncGenerator[Tokens, None]:
        """Greedy, exactly `max_tokens` tokens. TandemError when the server fails; closing it cancels the request."""
        ...

    async def close(self) -> None:
        """Ends the connection."""
        ...


class Protocols(StrEnum):
    """How a server is spoken to."""

    TANDEM = "tandem"  # gRPC
    OPENAI = "openai"  # HTTP, server-sent events


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """Where a server is: ``host:port`` or ``unix:/path`` for gRPC, the address that ``/v1`` follows for HTTP."""

    protocol: Protocols
    address: str
    model: str = ""  # the name that an HTTP server knows the model by


def connect(spec: EndpointSpec) -> Endpoint:
    """A connection, made on the running event loop. ConfigError: what the protocol needs is not installed."""
    if spec.protocol is Protocols.TANDEM:
        from bench.load.tandem_endpoint import TandemEndpoint

        return TandemEndpoint(spec.address)
    try:
        from bench.load.openai_endpoint import OpenAiEndpoint
    except ModuleNotFoundError as error:
        raise ConfigError("bench", f"HTTP servers need {error.name}: pip install 'tandem-serve[bench]'") from error
    return OpenAiEndpoint(spec.address, spec.model)
