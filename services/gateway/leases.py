"""The leases that this gateway holds in memd: named here, kept alive, released once no phase writes to them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice

import structlog

from tandem.errors import TandemError
from tandem.kv.store import MemoryStore

RELEASE_BATCH = 1024
RELEASE_RETRY_S = 0.5
RENEWALS_PER_TTL = 3

_log = structlog.get_logger()


class LeaseKeeper:
    """Opens, forks, renews and releases sequence leases. A lease that is released here is soon released in memd."""

    def __init__(self, store: MemoryStore, draw_lease_id: Callable[[], int]) -> None:
        self._store = store
        self._draw_lease_id = draw_lease_id
        self._live: set[int] = set()
        self._ended: dict[int, None] = {}  # not yet released in memd, oldest first
        self._abandoned: dict[int, None] = {}  # likewise, but a phase may still write to their blocks
        self._to_release = asyncio.Event()

    @property
    def live(self) -> frozenset[int]:
        """Leases that sequences have."""
        return frozenset(self._live)

    @property
    def num_unreleased(self) -> int:
        """Ended leases of which memd has not been told."""
        return len(self._ended) + len(self._abandoned)

    def open(self) -> int:
        """A new lease's name; the phase that gets it first opens it in memd."""
        lease_id = self._draw_lease_id()
        self._live.add(lease_id)
        return lease_id

    async def fork(self, parent_lease_id: int, request_id: str, num_tokens: int) -> int | None:
        """A lease that shares the parent's blocks; None when memd cannot make one now."""
        lease_id = self.open()
        try:
            await self._store.fork_sequence(parent_lease_id, lease_id, request_id, num_tokens)
        except TandemError as error:
            _log.info("lease.not_forked", request_id=request_id, lease_id=lease_id, error=str(error))
            self.release(lease_id)
            return None
        return lease_id

    def release(self, lease_id: int) -> None:
        """Ends a lease that no phase has any more."""
        self._live.discard(lease_id)
        self._ended[lease_id] = None
        self._to_release.set()

    def abandon(self, lease_id: int) -> None:
        """Ends a lease of a phase that does not say whether it has let go."""
        self._live.discard(lease_id)
        self._abandoned[lease_id] = None
        self._to_release.set()

    async def renew(self) -> None:
        """Starts the time to live of every live lease anew. A lost one is its phase's to notice."""
        if not self._live:
            return
        lost = await self._store.renew_sequences(sorted(self._live))
        if lost:
            _log.debug("lease.unknown", num_leases=len(lost & self._live))

    async def flush(self) -> None:
        """Tells memd of every ended lease. NotReadyError when it is away; they stay on the list."""
        await _tell(self._ended, self._store.release_sequences)
        await _tell(self._abandoned, self._store.abandon_sequences)
        if not self.num_unreleased:
            self._to_release.clear()

    async def run_releases(self) -> None:
        """Flushes whenever there is something to release, for ever."""
        while True:
            await self._to_release.wait()
            try:
                await self.flush()
            except TandemError as error:
                _log.info("lease.release_delayed", num_leases=self.num_unreleased, error=str(error))
                await asyncio.sleep(RELEASE_RETRY_S)

    async def run_renewals(self, ttl_s: Callable[[], float]) -> None:
        """Renews several times in every time to live, for ever."""
        while True:
            await asyncio.sleep(ttl_s() / RENEWALS_PER_TTL)
            try:
                await self.renew()
            except TandemError as error:
                _log.info("lease.renewal_failed", num_leases=len(self._live), error=str(error))


async def _tell(leases: dict[int, None], call: Callable[[Sequence[int]], Awaitable[object]]) -> None:
    """Takes leases off the list as memd has been told of them."""
    while batch := list(islice(leases, RELEASE_BATCH)):
        await call(batch)
        for lease_id in batch:
            leases.pop(lease_id, None)
