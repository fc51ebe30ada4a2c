"""What the orchestrator needs of the world."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from services.gateway.requests import Request
from tandem.types import RequestObservation, SequenceSpec


class PhasePort(Protocol):
    """The way to a phase."""

    @property
    def connected(self) -> bool:
        """Whether `submit` is allowed."""
        ...

    def submit(self, sequence: SequenceSpec) -> None:
        """Hands a sequence to the phase. NotReadyError when it is away."""
        ...

    def abort(self, lease_id: int) -> None:
        """Asks the phase to let go; it answers, unless it has let go already."""
        ...


class RequestWatch(Protocol):
    """Who hears what becomes of clients' requests."""

    def sent(self, request: Request) -> None:
        """Prefill gets something of it for the first time."""
        ...

    def prefilled(self, request: Request, num_computed_tokens: int) -> None:
        """Its first token is about to be taken in; of the prompt so much was computed for it."""
        ...

    def ended(self, request: Request) -> None:
        """It has, by whatever cause."""
        ...

    def changed(self) -> None:
        """Some may have been sent, or have ended."""
        ...


class Timers(Protocol):
    """The part of an event loop that deadlines need."""

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> asyncio.TimerHandle:
        """Calls back after `delay` seconds."""
        ...


class ObservationSink(Protocol):
    """Where the controller's observations go."""

    def observe(self, observation: RequestObservation) -> None:
        """Never blocks."""
        ...
