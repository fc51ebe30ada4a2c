"""`CacheStore` over the ledger: what operators and views elsewhere are told of the cache."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence

import structlog

from tandem.clock import Clock
from tandem.errors import SlowReaderError
from tandem.kv.cache_store import CacheNews, CachePosition
from tandem.kv.cached_runs import CachedRun
from tandem.kv.journal import CacheCleared, CacheEvent
from tandem.kv.ledger import Ledger
from tandem.kv.outcomes import Withdrawal

MAX_EVENTS = 512  # in one message
GATHER_S = 0.05  # from an event to its message: the blocks of some steps cost a watcher one

_log = structlog.get_logger()


class LocalCache:
    """The cache as memd itself has it. Nothing is kept for a watcher but its place in the ledger's journal."""

    def __init__(self, ledger: Ledger, clock: Clock, *, num_pinnable_blocks: int, stream_id: int) -> None:
        """`stream_id` names this process's numbering of events."""
        self._ledger = ledger
        self._clock = clock
        self._num_pinnable_blocks = num_pinnable_blocks
        self._stream_id = stream_id
        self._watchers: set[asyncio.Event] = set()
        self._ended = False
        ledger.published.journal.listen(self._wake)

    async def runs(self) -> tuple[CachedRun, ...]:
        """See `CacheStore`."""
        return self._ledger.published.runs(self._clock.now())

    async def pin(self, keys: Sequence[bytes]) -> int:
        """See `CacheStore`."""
        num_blocks = self._ledger.published.pin(keys, self._num_pinnable_blocks)
        _log.info("cache.pinned", num_keys=len(keys), num_blocks=num_blocks)
        return num_blocks

    async def remove(self, namespace: bytes) -> Withdrawal:
        """See `CacheStore`."""
        return _removed(self._ledger.published.withdraw(namespace), namespace=namespace.hex())

    async def remove_domain(self, domain: bytes) -> Withdrawal:
        """See `CacheStore`."""
        return _removed(self._ledger.published.withdraw_domain(domain), domain=domain.hex())

    async def remove_all(self) -> Withdrawal:
        """See `CacheStore`."""
        return _removed(self._ledger.published.withdraw_all())

    async def watch(self, after: CachePosition | None) -> AsyncGenerator[CacheNews, None]:
        """See `CacheStore`."""
        if after is not None and self._knows(after):
            number = after.number
        else:
            number = self._ledger.published.journal.last_number
            for news in self._everything(number):
                yield news
        woken = asyncio.Event()
        self._watchers.add(woken)
        try:
            while not self._ended:
                if events := self._after(number):
                    number += len(events)
                    yield self._news(events, number)
                else:
                    await woken.wait()
                    await asyncio.sleep(GATHER_S)
                    woken.clear()
        finally:
            self._watchers.discard(woken)

    def close(self) -> None:
        """Ends every watch."""
        self._ended = True
        self._wake()

    def _knows(self, position: CachePosition) -> bool:
        journal = self._ledger.published.journal
        return position.stream_id == self._stream_id and journal.after(position.number, 0) is not None

    def _after(self, number: int) -> tuple[CacheEvent, ...]:
        events = self._ledger.published.journal.after(number, MAX_EVENTS)
        if events is None:
            raise SlowReaderError("more has happened in the cache than is remembered; watch it from the beginning")
        return events

    def _everything(self, number: int) -> Iterator[CacheNews]:
        events: tuple[CacheEvent, ...] = (CacheCleared(), *self._ledger.published.stored())
        last_start = (len(events) - 1) // MAX_EVENTS * MAX_EVENTS
        for start in range(0, last_start, MAX_EVENTS):
            yield CacheNews(events[start : start + MAX_EVENTS], None, self._ledger.block_size)
        yield self._news(events[last_start:], number)

    def _news(self, events: tuple[CacheEvent, ...], number: int) -> CacheNews:
        return CacheNews(events, CachePosition(self._stream_id, number), self._ledger.block_size)

    def _wake(self) -> None:
        for woken in self._watchers:
            woken.set()


def _removed(withdrawal: Withdrawal, **what: str) -> Withdrawal:
    _log.info(
        "cache.removed",
        **what,
        num_freed_blocks=withdrawal.num_freed_blocks,
        num_leased_blocks=withdrawal.num_leased_blocks,
    )
    return withdrawal
