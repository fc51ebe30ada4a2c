"""A gateway's stream as the engine sees it, and what an engine says on its streams."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tandem.types import SequenceDropped

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Session(Generic[ResultT]):
    """One stream. The engine puts, the servicer reads."""

    def __init__(self) -> None:
        self._results: asyncio.Queue[ResultT | None] = asyncio.Queue()
        self._open = True

    def put(self, result: ResultT) -> None:
        """Passed over once the session is closed: nobody listens any more."""
        if self._open:
            self._results.put_nowait(result)

    def close(self) -> None:
        """`results` ends after what has been put."""
        if self._open:
            self._open = False
            self._results.put_nowait(None)

    async def results(self) -> AsyncGenerator[ResultT, None]:
        """What was put, in order, until the session is closed."""
        while (result := await self._results.get()) is not None:
            yield result


@dataclass(slots=True)
class _Collected(Generic[ItemT]):
    items: list[ItemT] = field(default_factory=list)
    dropped: list[SequenceDropped] = field(default_factory=list)


class Outbox(Generic[ItemT, ResultT]):
    """Collects what a step has to say, so that each stream gets one message of it."""

    def __init__(self, build: Callable[[tuple[ItemT, ...], tuple[SequenceDropped, ...]], ResultT]) -> None:
        self._build = build
        self._collected: dict[Session[ResultT], _Collected[ItemT]] = {}

    def say(self, session: Session[ResultT], item: ItemT) -> None:
        """Part of the session's next message."""
        self._of(session).items.append(item)

    def say_dropped(self, session: Session[ResultT], dropped: SequenceDropped) -> None:
        """Part of the session's next message."""
        self._of(session).dropped.append(dropped)

    def deliver(self) -> None:
        """Puts each session's message."""
        collected, self._collected = self._collected, {}
        for session, said in collected.items():
            session.put(self._build(tuple(said.items), tuple(said.dropped)))

    def _of(self, session: Session[ResultT]) -> _Collected[ItemT]:
        return self._collected.setdefault(session, _Collected())
