"""A replica's cache events to its view in the gateway."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import structlog

from tandem.errors import TandemError
from tandem.kv.cache_store import CacheNews, CachePosition, CacheStore

FIRST_DELAY_S = 0.1
LAST_DELAY_S = 2.0

_log = structlog.get_logger()


class CacheFeed:
    """Watches memd from the position that the view has reached; again, a little later each time, when it is away."""

    def __init__(
        self,
        replica: str,
        cache: CacheStore,
        position: Callable[[], CachePosition | None],
        hear: Callable[[CacheNews], object],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`hear` moves the position on."""
        self._replica = replica
        self._cache = cache
        self._position = position
        self._hear = hear
        self._pause = pause
        self._delay_s = FIRST_DELAY_S

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._watch()
            await self._pause(self._delay_s)
            self._delay_s = min(self._delay_s * 2, LAST_DELAY_S)

    async def _watch(self) -> None:
        try:
            async with aclosing(self._cache.watch(self._position())) as watch:
                async for news in watch:
                    self._hear(news)
                    self._delay_s = FIRST_DELAY_S
        except TandemError as error:
            _log.debug("cache.unwatched", replica=self._replica, reason=str(error))
