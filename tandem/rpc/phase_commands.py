"""What goes to a phase over one Run stream, in order. Commands that wait while another is written go in one message."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from tandem.types import PhaseCommand

MAX_GATHERED_BYTES = 1 << 20  # one command alone may be larger


class PhaseCommands:
    """Lives as long as the stream. Each message costs both ends a wake-up, and grpc writes one at a time."""

    def __init__(self, encode: Callable[[PhaseCommand], Any]) -> None:
        """`encode` makes the RunRequest of one command."""
        self.takes_more = False  # whether the phase has said that it understands several in one message
        self._encode = encode
        self._unsent: deque[Any] = deque()
        self._is_open = True
        self._changed = asyncio.Event()

    def put(self, command: PhaseCommand) -> None:
        """It is sent soon; not at all after `close`."""
        self._unsent.append(self._encode(command))
        self._changed.set()

    def close(self) -> None:
        """The stream has ended; whatever is unsent is dropped."""
        self._is_open = False
        self._changed.set()

    async def messages(self) -> AsyncIterator[Any]:
        """Until `close`."""
        while self._is_open:
            if self._unsent:
                yield self._next()
            else:
                self._changed.clear()
                await self._changed.wait()

    def _next(self) -> Any:
        message = self._unsent.popleft()
        if self.takes_more and self._unsent:
            self._gather(message)
        return message

    def _gather(self, message: Any) -> None:
        num_bytes = message.ByteSize()
        while self._unsent and (num_bytes := num_bytes + self._unsent[0].ByteSize()) <= MAX_GATHERED_BYTES:
            message.more.append(self._unsent.popleft())
