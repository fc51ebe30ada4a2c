"""A memory store without a ledger, for tests of the phases."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tandem.errors import LeaseError, NotFoundError, NotReadyError, StaleBlockError, TandemError
from tandem.kv.store import PromptTokens, SequenceLease, SequenceUpdate, StorageStatistics
from tandem.types import Block, Fingerprint
from tests.support.fake_model import BLOCK_SIZE

PREFILL_HOLDER, DECODE_HOLDER = 1, 2


@dataclass
class Lease:
    holder_id: int
    blocks: list[Block]
    num_sealed: int
    num_shared: int = 0


class FakeStore:
    """One pool, one dictionary of leases; no time to live."""

    def __init__(self, num_blocks: int, reserve_blocks: int = 0) -> None:
        self.num_blocks = num_blocks
        self.reserve_blocks = reserve_blocks
        self.free = [Block(block_id, 1) for block_id in range(num_blocks)]
        self.spare: dict[int, set[Block]] = {PREFILL_HOLDER: set(), DECODE_HOLDER: set()}
        self.leases: dict[int, Lease] = {}
        self.shared: dict[Block, int] = {}
        self.acquire_gate = asyncio.Event()
        self.update_gate = asyncio.Event()
        self.acquire_gate.set()
        self.update_gate.set()
        self.acquire_error: TandemError | None = None
        self.update_errors: list[TandemError] = []
        self.refusing = False
        self.away = False
        self.num_lease_calls = 0
        self.lease_calls_under_way = 0
        self.most_lease_calls_under_way = 0
        self.updates: list[tuple[SequenceUpdate, ...]] = []
        self.on_short: Callable[[int, int], None] = lambda holder_id, num_blocks: None

    async def lease_blocks(self, holder_id: int, num_blocks: int) -> tuple[Block, ...]:
        self.num_lease_calls += 1
        if self.away:
            raise NotReadyError("away")
        self.lease_calls_under_way += 1
        self.most_lease_calls_under_way = max(self.most_lease_calls_under_way, self.lease_calls_under_way)
        await asyncio.sleep(0)
        self.lease_calls_under_way -= 1
        reserve = self.reserve_blocks if holder_id == PREFILL_HOLDER else 0
        num_granted = 0 if self.refusing else max(0, min(num_blocks, len(self.free) - reserve))
        granted = tuple(self._next_generation(self.free.pop()) for _ in range(num_granted))
        self.spare[holder_id].update(granted)
        if num_granted < num_blocks:
            self.on_short(holder_id, num_blocks - num_granted)
        return granted

    async def return_blocks(self, holder_id: int, blocks: Sequence[Block]) -> None:
        if not set(blocks) <= self.spare[holder_id]:
            raise StaleBlockError(f"not spare blocks of {holder_id}: {blocks}")
        self.spare[holder_id] -= set(blocks)
        self.free.extend(blocks)

    async def acquire_sequence(
        self, holder_id: int, lease_id: int, request_id: str, create: bool, domain: bytes = b""
    ) -> SequenceLease:
        await self.acquire_gate.wait()
        if self.acquire_error is not None:
            raise self.acquire_error
        if lease_id not in self.leases:
            if not create:
                raise NotFoundError(f"no lease {lease_id}")
            self.leases[lease_id] = Lease(holder_id, [], 0)
        lease = self.leases[lease_id]
        lease.holder_id = holder_id
        return SequenceLease(lease_id, tuple(lease.blocks), lease.num_sealed)

    async def claim_prefix(
        self, holder_id: int, lease_id: int, keys: Sequence[bytes], prompt: PromptTokens | None = None
    ) -> SequenceLease:
        """This store publishes nothing."""
        lease = self.leases[lease_id]
        return SequenceLease(lease_id, tuple(lease.blocks), lease.num_sealed)

    async def find_blocks(self, holder_id: int, runs: Sequence[Sequence[bytes]]) -> tuple[tuple[Block, ...], ...]:
        """Nor does it find anything."""
        return tuple(() for _ in runs)

    async def update_sequences(self, holder_id: int, updates: Sequence[SequenceUpdate]) -> frozenset[int]:
        await self.update_gate.wait()
        if self.update_errors:
            raise self.update_errors.pop(0)
        self.updates.append(tuple(updates))
        return frozenset(update.lease_id for update in updates if not self._apply(holder_id, update))

    async def fork_sequence(self, parent_lease_id: int, child_lease_id: int, request_id: str, num_tokens: int) -> int:
        parent = self.leases[parent_lease_id]
        num_shared = min(num_tokens, parent.num_sealed) // BLOCK_SIZE
        blocks = parent.blocks[:num_shared]
        for block in blocks:
            self.shared[block] = self.shared.get(block, 1) + 1
        self.leases[child_lease_id] = Lease(0, list(blocks), num_shared * BLOCK_SIZE, num_shared)
        return num_shared * BLOCK_SIZE

    async def renew_sequences(self, lease_ids: Sequence[int]) -> frozenset[int]:
        return frozenset(lease_ids) - self.leases.keys()

    async def release_sequences(self, lease_ids: Sequence[int]) -> int:
        freed = 0
        for lease_id in lease_ids:
            lease = self.leases.pop(lease_id, None)
            for block in lease.blocks if lease else ():
                users = self.shared.get(block, 1) - 1
                self.shared[block] = users
                if users == 0:
                    del self.shared[block]
                    self.free.append(block)
                    freed += 1
        return freed

    async def abandon_sequences(self, lease_ids: Sequence[int]) -> None:
        raise AssertionError("no phase abandons")

    async def statistics(self) -> StorageStatistics:
        num_spare = sum(map(len, self.spare.values()))
        return StorageStatistics(
            fingerprint=Fingerprint(),
            epoch=1,
            num_blocks=self.num_blocks,
            num_free_blocks=len(self.free),
            num_spare_blocks=num_spare,
            num_leased_blocks=self.num_blocks - len(self.free) - num_spare,
            num_cached_blocks=0,
            num_sequences=len(self.leases),
            weight_bytes=0,
            kv_bytes=0,
            holders=(),
            num_reserve_blocks=self.reserve_blocks,
        )

    def check(self) -> None:
        """Every block is in exactly one place; shared ones in several leases."""
        leased = {block.block_id for lease in self.leases.values() for block in lease.blocks}
        spare = [block.block_id for blocks in self.spare.values() for block in blocks]
        free = [block.block_id for block in self.free]
        everywhere = [*leased, *spare, *free]
        assert sorted(everywhere) == list(range(self.num_blocks))

    def _apply(self, holder_id: int, update: SequenceUpdate) -> bool:
        lease = self.leases.get(update.lease_id)
        if lease is None or lease.holder_id != holder_id:
            return False
        added = set(update.add_blocks)
        if not added <= self.spare[holder_id]:
            raise StaleBlockError(f"not spare blocks of {holder_id}: {added}")
        if update.num_sealed_tokens > BLOCK_SIZE * (len(lease.blocks) + len(added)):
            raise LeaseError("more tokens sealed than the blocks hold")
        self.spare[holder_id] -= added
        lease.blocks.extend(update.add_blocks)
        if update.let_go:
            lease.holder_id = 0
        else:
            assert update.num_sealed_tokens >= lease.num_sealed
            lease.num_sealed = update.num_sealed_tokens
        return True

    def _next_generation(self, block: Block) -> Block:
        return Block(block.block_id, block.generation + 1)
