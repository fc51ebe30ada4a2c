"""A simulated replica's cache events on their way to the router."""

from functools import partial

from bench.policies.sequences import NAMESPACE, CachingPool, SharingSequence
from bench.simulate.events import EventQueue
from tandem.kv.cache_store import CacheNews, CachePosition
from tandem.kv.journal import BlockStored, CacheCleared
from tandem.routing.fleet import Fleet

STREAM_ID = 1  # a simulated memd never starts again


class CacheFeed:
    """What the pool's journal notes at one instant is heard together, `delay_s` later, while the replica serves."""

    def __init__(
        self, replica_id: str, pool: CachingPool, fleet: Fleet[SharingSequence], events: EventQueue, delay_s: float
    ) -> None:
        self._replica_id = replica_id
        self._pool = pool
        self._fleet = fleet
        self._events = events
        self._delay_s = delay_s
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
        if self._replica_id in self._fleet.membership.serving:
            news = self._news(self._fleet.position(self._replica_id), number)
            self._fleet.hear(self._replica_id, news)

    def _news(self, position: CachePosition | None, number: int) -> CacheNews:
        events = None
        if position is not None:
            number = max(number, position.number)
            events = self._pool.journal.after(position.number, number - position.number)
        if events is None:
            stored = (BlockStored(NAMESPACE, NAMESPACE, key) for key in self._pool.published())
            events, number = (CacheCleared(), *stored), self._pool.journal.last_number
        return CacheNews(events, CachePosition(STREAM_ID, number), self._pool.block_size)
