"""A simulated replica's cache events on their way to the gateway."""

from collections.abc import Callable
from functools import partial

from bench.policies.sequences import NAMESPACE, CachingPool
from bench.simulate.events import EventQueue
from tandem.kv.cache_store import CacheNews, CachePosition
from tandem.kv.journal import BlockStored, CacheCleared

STREAM_ID = 1  # a simulated memd never starts again


class CacheFeed:
    """What the pool's journal notes at one instant is heard together, `delay_s` later."""

    def __init__(
        self,
        pool: CachingPool,
        events: EventQueue,
        delay_s: float,
        position: Callable[[], CachePosition | None],
        hear: Callable[[CacheNews], object],
    ) -> None:
        """`hear` moves the position on."""
        self._pool = pool
        self._events = events
        self._delay_s = delay_s
        self._position = position
        self._hear = hear
        self._is_posting = False
        pool.journal.listen(self._note)

    def _note(self) -> None:
        if not self._is_posting:
            self._is_posting = True
            self._events.after(0.0, self._post)

    def _post(self) -> None:
        self._is_posting = False
        self._events.after(self._delay_s, partial(self._deliver, self._pool.journal.last_number))

    def _deliver(self, number: int) -> None:
        """All up to event `number` that was not heard yet."""
        self._hear(self._news(self._position(), number))

    def _news(self, position: CachePosition | None, number: int) -> CacheNews:
        events = None
        if position is not None:
            number = max(number, position.number)
            events = self._pool.journal.after(position.number, number - position.number)
        if events is None:
            stored = (BlockStored(NAMESPACE, NAMESPACE, key) for key in self._pool.published())
            events, number = (CacheCleared(), *stored), self._pool.journal.last_number
        return CacheNews(events, CachePosition(STREAM_ID, number), self._pool.block_size)
