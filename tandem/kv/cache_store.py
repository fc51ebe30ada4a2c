"""What can be asked of the cache beside a phase's claims: by operators, and by whoever keeps a view of it elsewhere."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tandem.kv.cached_runs import CachedRun
from tandem.kv.journal import CacheEvent
from tandem.kv.outcomes import Withdrawal


@dataclass(frozen=True, slots=True)
class CachePosition:
    """What has been heard: all events of a stream up to `number`. Another memd process begins another stream."""

    stream_id: int
    number: int


@dataclass(frozen=True, slots=True)
class CacheNews:
    """Some events, in order, and the position behind them.

    While what is there is being told, which begins with `CacheCleared`, `position` is None.
    """

    events: tuple[CacheEvent, ...]
    position: CachePosition | None
    block_size: int


class CacheStore(Protocol):
    """Published blocks. Every call but `watch` is atomic."""

    async def runs(self) -> tuple[CachedRun, ...]:
        """What is published, in few rows."""
        ...

    async def pin(self, keys: Sequence[bytes]) -> int:
        """Keeps a prompt's blocks from being given up; how many were not kept before.

        NotFoundError: not all of them are published. PinQuotaError: more than ``memd.pin_fraction``. Then none is.
        """
        ...

    async def remove(self, namespace: bytes) -> Withdrawal:
        """Unpublishes a namespace's blocks, its segments' too; those that no lease has are free at once."""
        ...

    async def remove_domain(self, domain: bytes) -> Withdrawal:
        """The same of all namespaces of a sharing domain (see `tandem.kv.contents.domain_of`)."""
        ...

    async def remove_all(self) -> Withdrawal:
        """The same of everything."""
        ...

    def watch(self, after: CachePosition | None) -> AsyncGenerator[CacheNews, None]:
        """What follows `after`; from what is published now, when that is None or too long ago. Ends with memd.

        SlowReaderError: more has happened since the last news than memd remembers.
        """
        ...
