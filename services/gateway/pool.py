"""What memd says of the pool, asked again and again: it bounds the context, and shows whether memd is there."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from tandem.errors import NotReadyError, TandemError
from tandem.kv.store import MemoryStore, StorageStatistics

POLL_S = 1.0
RETRY_S = 0.2
PEER = "memd"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Pool:
    """The part of memd's statistics that does not change while it runs."""

    dtype: str
    contents: tuple[str, str]  # what KV depends on beside the tokens: the model's digest, the KV's dtype
    max_tokens: int  # that one sequence can have in blocks, the reserve and what may be pinned left alone
    lease_ttl_s: float
    block_size: int = 1
    num_blocks: int = 0  # that sequences can have
    num_all_blocks: int = 0  # the reserve and pinned ones too: at most so many are published

    def is_like(self, other: "Pool") -> bool:
        """Whether the same tokens have the same KV there, in the same blocks."""
        return not self.differences(other)

    def differences(self, other: "Pool") -> dict[str, str]:
        """What both have, of what should be the same."""
        pairs = {
            "model_digest": (self.contents[0], other.contents[0]),
            "kv_dtype": (self.contents[1], other.contents[1]),
            "dtype": (self.dtype, other.dtype),
            "block_size": (str(self.block_size), str(other.block_size)),
        }
        return {name: f"{own} instead of {others}" for name, (own, others) in pairs.items() if own != others}


class PoolWatch:
    """Knows the pool since memd was first there. `on_connected` hears when it comes and goes.

    A memd whose pool `accepts` does not take counts as one that is away.
    """

    def __init__(
        self,
        store: MemoryStore,
        on_connected: Callable[[bool], None],
        accepts: Callable[[Pool], bool] = lambda _pool: True,
    ) -> None:
        self._store = store
        self._on_connected = on_connected
        self._accepts = accepts
        self._pool: Pool | None = None
        self._answered: bool | None = None  # at the last poll

    @property
    def is_known(self) -> bool:
        """Whether memd was there."""
        return self._pool is not None

    @property
    def pool(self) -> Pool:
        """As last seen. NotReadyError before memd was there."""
        if self._pool is None:
            raise NotReadyError("the memory daemon has not been connected yet; try again soon")
        return self._pool

    def lease_ttl_s(self) -> float:
        """As last seen; before memd was there no lease can be, and the time until the next poll will do."""
        return POLL_S if self._pool is None else self._pool.lease_ttl_s

    async def poll(self) -> bool:
        """Asks once; whether memd answered, its pool made."""
        try:
            pool = pool_of(await self._store.statistics())
        except TandemError:
            pool = None
        answered = pool is not None and pool.max_tokens > 0 and self._accepts(pool)
        if answered:
            self._pool = pool
        if answered is not self._answered:
            self._answered = answered
            _log.info("peer.connected" if answered else "peer.away", peer=PEER)
            self._on_connected(answered)
        return answered

    async def run(self) -> None:
        """Polls for ever."""
        while True:  # noqa: ASYNC110 - memd is asked, it does not call
            await asyncio.sleep(POLL_S if await self.poll() else RETRY_S)


def pool_of(statistics: StorageStatistics) -> Pool:
    """See `Pool`."""
    fingerprint = statistics.fingerprint
    num_blocks = statistics.num_blocks - statistics.num_reserve_blocks - statistics.num_pinnable_blocks
    block_size = fingerprint.block_size
    contents = (fingerprint.model_digest, fingerprint.kv_dtype)
    max_tokens = num_blocks * block_size
    return Pool(
        dtype=fingerprint.dtype,
        contents=contents,
        max_tokens=max_tokens,
        lease_ttl_s=statistics.lease_ttl_s,
        block_size=block_size,
        num_blocks=num_blocks,
        num_all_blocks=statistics.num_blocks,
    )
