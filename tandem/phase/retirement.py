"""That a phase's process gives its place up before anybody tells it to stop, and the status it ends with then."""

import asyncio


class Retirement:
    """Made on the running loop; begins once, and what began it decides the status."""

    def __init__(self) -> None:
        self.exit_status = 0
        self._due = asyncio.Event()

    @property
    def is_due(self) -> bool:
        """Whether it has begun."""
        return self._due.is_set()

    def begin(self, exit_status: int) -> None:
        """From now on the phase hands back what it has, and ends."""
        if not self.is_due:
            self.exit_status = exit_status
            self._due.set()

    async def due(self) -> None:
        """Returns when it has begun."""
        await self._due.wait()
