"""When nothing is under way any more."""

import asyncio
from contextlib import suppress


class Quiet:
    """Holds until `disturb`, and again from `settle` on."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._event.set()

    def disturb(self) -> None:
        """Something is under way."""
        self._event.clear()

    def settle(self) -> None:
        """Nothing is."""
        self._event.set()

    async def within(self, timeout_s: float) -> bool:
        """Whether it comes in that time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        return self._event.is_set()
