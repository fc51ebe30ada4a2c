"""Spare blocks at hand, so that no step waits for memd."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

import structlog

from tandem.errors import NotReadyError, StorageError, TandemError
from tandem.kv.store import HolderStore
from tandem.scheduler.demand import NO_DEMAND, BlockDemand
from tandem.types import Block

_log = structlog.get_logger()


class SupplyState(Enum):
    """What the refill is doing."""

    RESTING = "resting"
    REFILLING = "refilling"  # the one RPC is under way
    BACKING_OFF = "backing_off"  # memd granted none


@dataclass(frozen=True, slots=True)
class SupplyPolicy:
    """How far ahead blocks are leased, and how often a pool that refused is asked again."""

    ahead_blocks: int
    first_retry_s: float = 0.025  # about what a preempted sequence's blocks need to get back to the pool
    last_retry_s: float = 0.4
    lean_s: float = 0.25  # after a reclaim, nothing is leased ahead for so long


class BlockSupply:
    """The spare blocks of one holder, refilled in the background by at most one RPC at a time.

    `take` never waits. The engine states its `demand` after each plan; what it states is kept up with until it states
    something else. `on_change` is called when blocks have come or have been refused.
    """

    def __init__(
        self,
        store: HolderStore,
        holder_id: int,
        policy: SupplyPolicy,
        on_change: Callable[[], None],
    ) -> None:
        self.num_refusals = 0  # refills in a row that brought nothing, since the last `forgive`
        self.memd_away = False  # at the last refill: then nobody has refused anything
        self._store = store
        self._holder_id = holder_id
        self._policy = policy
        self._on_change = on_change
        self._spare: deque[Block] = deque()
        self._doubtful: list[Block] = []  # returned to a memd that went away: they may be another's by now
        self._demand = NO_DEMAND
        self._state = SupplyState.RESTING
        self._kick = asyncio.Event()
        self._kick.set()
        self._lean_timer: asyncio.TimerHandle | None = None
        self._retry_s = policy.first_retry_s

    @property
    def num_spare(self) -> int:
        """Blocks that `take` could hand out now."""
        return len(self._spare)

    def take(self, num_blocks: int) -> tuple[Block, ...] | None:
        """That many blocks, or None when there are fewer."""
        if num_blocks > len(self._spare):
            return None
        blocks = tuple(self._spare.popleft() for _ in range(num_blocks))
        self._kick_when_low()
        return blocks

    def give_back(self, blocks: Sequence[Block]) -> None:
        """Blocks that were taken and never became a sequence's; nothing writes to them any more."""
        self._spare.extend(blocks)

    def demand(self, demand: BlockDemand) -> None:
        """What must be at hand for the engine to go on; a new want is asked for at once, backing off or not."""
        grown = demand.num_running_blocks > self._demand.num_running_blocks
        self._demand = demand
        if grown and demand.num_running_blocks > len(self._spare):
            self._kick.set()
        self._kick_when_low()

    def resume(self, spare: Set[Block]) -> frozenset[Block]:
        """memd is back, and `spare` is what it has as this holder's: keeps of its own what is. Returns that."""
        kept = [block for block in (*self._spare, *self._doubtful) if block in spare]
        self._spare, self._doubtful = deque(kept), []
        self._retry_s = self._policy.first_retry_s
        self._kick.set()
        return frozenset(kept)

    def forgive(self) -> None:
        """Blocks are about to come free (somebody was preempted): ask again soon, count refusals anew."""
        self.num_refusals = 0
        self._retry_s = self._policy.first_retry_s

    async def run(self) -> None:
        """Refills until cancelled."""
        while True:
            await self._kick.wait()
            self._kick.clear()
            if self._num_lacking() > 0:
                await self._refill()

    async def reclaim(self, num_blocks: int, num_kept: int) -> None:
        """Another holder needs blocks: returns up to `num_blocks` beyond the `num_kept` that work here needs soon."""
        self._lean()
        surplus = max(0, min(num_blocks, len(self._spare) - num_kept))
        blocks = [self._spare.pop() for _ in range(surplus)]
        if not blocks:
            return
        try:
            await self._store.return_blocks(self._holder_id, blocks)
        except NotReadyError:
            self._doubtful.extend(blocks)
        except StorageError as error:
            _log.error("supply.return_refused", num_blocks=len(blocks), error=str(error))
        else:
            _log.debug("supply.reclaimed", num_blocks=len(blocks), num_spare=len(self._spare))

    async def _refill(self) -> None:
        self._state = SupplyState.REFILLING
        blocks = await self._lease(self._num_lacking())
        if blocks:
            self._spare.extend(blocks)
            self.num_refusals = 0
            self._retry_s = self._policy.first_retry_s
            self._state = SupplyState.RESTING
            self._kick_when_low()
            self._on_change()
        else:
            await self._back_off()

    async def _lease(self, num_blocks: int) -> tuple[Block, ...]:
        """A memd that is away has refused nothing: only its own word counts as a refusal."""
        try:
            blocks = await self._store.lease_blocks(self._holder_id, num_blocks)
        except NotReadyError:
            self.memd_away, self.num_refusals = True, 0
            return ()
        except TandemError as error:
            _log.warning("supply.refill_failed", num_blocks=num_blocks, error=str(error))
            return ()
        self.memd_away = False
        if not blocks:
            self.num_refusals += 1
            self._on_change()
        return blocks

    async def _back_off(self) -> None:
        """Waits before the next try; cut short when the engine comes to want blocks it did not want before."""
        self._state = SupplyState.BACKING_OFF
        self._kick.clear()
        delay_s = self._retry_s if len(self._spare) < self._demand.num_blocks else self._policy.last_retry_s
        self._retry_s = min(2 * self._retry_s, self._policy.last_retry_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._kick.wait()
        self._kick.set()
        self._state = SupplyState.RESTING

    def _lean(self) -> None:
        if self._lean_timer is not None:
            self._lean_timer.cancel()
        self._lean_timer = asyncio.get_running_loop().call_later(self._policy.lean_s, self._fatten)

    def _fatten(self) -> None:
        self._lean_timer = None
        self._kick_when_low()

    def _kick_when_low(self) -> None:
        if self._state is SupplyState.RESTING and len(self._spare) < self._num_floor():
            self._kick.set()

    def _num_floor(self) -> int:
        """Below so many a refill is due. Lean, only work that runs is a reason."""
        if self._lean_timer is not None:
            return self._demand.num_running_blocks
        return max(self._policy.ahead_blocks // 2 + 1, self._demand.num_blocks)

    def _num_lacking(self) -> int:
        ahead = 0 if self._lean_timer is not None else max(self._policy.ahead_blocks, self._demand.num_blocks)
        return max(self._demand.num_running_blocks, ahead) - len(self._spare)
