"""The one allocator: who may write to which block, in a segment from which all of it can be told again.

Truth is in the records (`tandem.kv.records`); the index beside them is derived. The order of stores, and what a kill
between two of them leaves, is in `tandem.kv.repair`. Operations check everything before their first store, so one
that raises has changed nothing. None of them reads a clock; none searches.
"""

from collections.abc import Container, Sequence
from dataclasses import replace

import numpy as np

from tandem.errors import LeaseError
from tandem.kv import blocks
from tandem.kv.blocks import BlockState
from tandem.kv.check import check
from tandem.kv.index import HolderEntry, HolderProcesses, LeaseEntry, LedgerIndex
from tandem.kv.layout import num_blocks_for
from tandem.kv.occupants import NOBODYS, Occupants, check_domain
from tandem.kv.outcomes import EndedLease, Expiry, LedgerStatistics
from tandem.kv.policy import LeaseFate, grant_size, lease_fate
from tandem.kv.published import PublishedBlocks, check_whole
from tandem.kv.records import Buffer, LeaseState, LedgerRecords, Reference
from tandem.kv.repair import Repairs, repair
from tandem.kv.spare_check import check_spare
from tandem.kv.store import HolderStatistics, Holding, PromptTokens, SequenceLease, SequenceUpdate
from tandem.types import Block


class Ledger:
    """Blocks, leases and holders over one segment. For one thread of one process at a time."""

    def __init__(self, records: LedgerRecords, repairs: Repairs) -> None:
        self.repairs = repairs
        self._records = records
        self._index = LedgerIndex.build(records)
        self.published = PublishedBlocks(records, self._index)
        self.processes = HolderProcesses(records, self._index)
        self.occupants = Occupants(records)

    @classmethod
    def create(cls, buffer: Buffer, *, num_blocks: int, block_size: int, epoch: int) -> "Ledger":
        """Starts a ledger in a zeroed, writable buffer of `ledger_bytes`."""
        return cls(LedgerRecords.create(buffer, num_blocks, block_size, epoch), Repairs())

    @classmethod
    def open(cls, buffer: Buffer) -> "Ledger":
        """Goes on with an existing ledger, whenever its writer ended. LedgerCorruptError when `check` refuses it.

        Holders are still in it: drop those that are not attached any more.
        """
        records = LedgerRecords.map(buffer)
        repairs = repair(records)
        check(records)
        return cls(records, repairs)

    @property
    def block_size(self) -> int:
        """Tokens a block."""
        return self._records.block_size

    def add_holder(self, service: str, pid: int) -> int:
        """A new holder's id. LeaseError when the ledger has no record left for one."""
        if not self._index.free_holder_slots:
            raise LeaseError(f"{len(self._index.holders)} holders are attached, more than the ledger has records for")
        slot, holder_id = self._index.free_holder_slots.pop(), self._records.new_holder_id()
        self._records.write_holder(slot, holder_id, service, pid)
        self._index.holders[holder_id] = HolderEntry.read(self._records, slot)
        return holder_id

    def drop_holder(self, holder_id: int) -> int:
        """Its spare blocks are free at once, its leases go on without holder; returns the number of those blocks.

        NotFoundError: no such holder.
        """
        entry = self._index.holder(holder_id)
        spare = sorted(entry.spare)
        for block_id in spare:
            self._return(entry, block_id)
        self._unhold(sorted(entry.lease_ids))
        self._records.clear_holder(entry.slot)
        del self._index.holders[holder_id]
        self._index.free_holder_slots.append(entry.slot)
        return len(spare)

    def lease_blocks(self, holder_id: int, num_blocks: int, num_reserve_blocks: int) -> tuple[Block, ...]:
        """Spare blocks, longest free first, then the cached; as many as `grant_size` lets the holder have.

        NotFoundError.
        """
        entry = self._index.holder(holder_id)
        num_granted = grant_size(entry.service, num_blocks, self._num_available(), num_reserve_blocks)
        return tuple(self._grant(holder_id, entry) for _ in range(num_granted))

    def return_blocks(self, holder_id: int, returned: Sequence[Block]) -> None:
        """Frees spare blocks. NotFoundError, StaleBlockError or LeaseError: nothing was done."""
        entry = self._index.holder(holder_id)
        check_spare(self._records, holder_id, returned)
        for block in returned:
            self._return(entry, block.block_id)

    def acquire_sequence(
        self, holder_id: int, lease_id: int, request_id: str, create: bool, *, now_s: float, domain: bytes = b""
    ) -> SequenceLease:
        """Makes the holder the one who works on the lease. NotFoundError: no holder, or no lease and not `create`.

        LeaseError: it cannot be opened by that id, for that domain, or beside so many.
        """
        self._index.holder(holder_id)
        if create and lease_id not in self._index.leases:
            self._open_lease(lease_id, request_id, now_s, domain)
        entry = self._index.lease(lease_id)
        self._hand_over(lease_id, holder_id)
        self._records.set_lease(entry.slot, "renewed_at_s", now_s)
        return self._lease(lease_id, entry)

    def claim_prefix(
        self,
        holder_id: int,
        lease_id: int,
        keys: Sequence[bytes],
        num_reserve_blocks: int,
        *,
        prompt: PromptTokens | None = None,
        now_s: float,
    ) -> SequenceLease:
        """See `tandem.kv.store.MemoryStore`."""
        if lease_id not in self._index.holder(holder_id).lease_ids:
            holder = self._index.lease(lease_id).holder_id
            raise LeaseError(f"lease {lease_id} is worked on by holder {holder}, not {holder_id}")
        entry = self._index.lease(lease_id)
        num_sealed = self._records.lease_field(entry.slot, "num_sealed_tokens")
        if num_sealed != len(entry.block_ids) * self.block_size:
            return self._lease(lease_id, entry)
        if not keys and prompt is None:
            self._unclaim(entry)
            return self._lease(lease_id, entry)
        self.published.note_use(self._claim(lease_id, entry, keys, num_reserve_blocks), now_s)
        lease = self._lease(lease_id, entry)
        if prompt is None:
            return lease
        return replace(lease, copy_source=self.published.copy_source(prompt, keys, len(lease.blocks), now_s))

    def update_sequences(
        self, holder_id: int, updates: Sequence[SequenceUpdate], now_s: float, num_segment_blocks: int = 0
    ) -> frozenset[int]:
        """Extends, seals, publishes; returns the leases that are not the holder's, whose updates were left out.

        A lease into which something was copied that was not there any more is not the holder's from now on. Of segments
        at most `num_segment_blocks` are published: what finds no room among them is not.
        NotFoundError, StaleBlockError, LeaseError (a block that is not its spare one, more tokens sealed than the
        blocks hold, a block published that is not sealed): nothing was done.
        """
        holder = self._index.holder(holder_id)
        spoilt = {each.lease_id for each in updates if not self._may_trust(each.copied_from)} & holder.lease_ids
        held = holder.lease_ids - spoilt
        applied = [update for update in updates if update.lease_id in held]
        lost = frozenset(update.lease_id for update in updates) - held
        check_spare(self._records, holder_id, [block for update in applied for block in update.add_blocks])
        self._check_sealed(applied)
        self._check_published(applied)
        for update in applied:
            self._update(holder, update, now_s, num_segment_blocks)
        self._unhold([*spoilt, *(update.lease_id for update in applied if update.let_go)])
        return lost

    def fork_sequence(
        self, parent_lease_id: int, child_lease_id: int, request_id: str, num_tokens: int, now_s: float
    ) -> int:
        """A lease without holder on the parent's first full, sealed blocks; returns how many tokens it shares.

        NotFoundError: no parent. LeaseError: the child exists.
        """
        parent = self._index.lease(parent_lease_id)
        if child_lease_id in self._index.leases:
            raise LeaseError(f"lease {child_lease_id} exists already")
        num_sealed = int(self._records.lease_field(parent.slot, "num_sealed_tokens"))
        num_shared = min(min(num_tokens, num_sealed) // self.block_size, self._num_shareable())
        domain = self.occupants.domain_of_lease(parent.slot)
        child = self._open_lease(child_lease_id, request_id, now_s, domain)
        for block_id in parent.block_ids[:num_shared]:
            self._refer(child_lease_id, child, block_id, blocks.share(self._records.block(block_id)))
        self._records.set_lease(child.slot, "num_sealed_tokens", num_shared * self.block_size)
        return num_shared * self.block_size

    def renew_sequences(self, lease_ids: Sequence[int], now_s: float) -> frozenset[int]:
        """Starts the leases' time to live anew; returns those that do not exist."""
        for lease_id in self._index.leases.keys() & set(lease_ids):
            self._records.set_lease(self._index.leases[lease_id].slot, "renewed_at_s", now_s)
        return frozenset(lease_ids) - self._index.leases.keys()

    def renew_all(self, now_s: float) -> None:
        """Starts every lease's time to live anew: nobody could renew them while memd was away."""
        self.renew_sequences(tuple(self._index.leases), now_s)

    def holding(self, holder_id: int) -> Holding:
        """What the holder has. NotFoundError."""
        entry = self._index.holder(holder_id)
        spare = sorted(entry.spare)
        generations, occupants = self._records.generations(spare), map(self.occupants.of, spare)
        return Holding(frozenset(map(Block, spare, generations, occupants)), frozenset(entry.lease_ids))

    def release_sequences(self, lease_ids: Sequence[int]) -> tuple[EndedLease, ...]:
        """Ends the leases, whoever works on them; those that do not exist are passed over."""
        return tuple(self._end_lease(lease_id) for lease_id in self._known(lease_ids))

    def abandon_sequences(self, lease_ids: Sequence[int]) -> tuple[EndedLease, ...]:
        """Ends the leases that no holder works on; the others end when it lets go, or is dropped."""
        for lease_id in self._known(lease_ids):
            self._records.set_lease(self._index.leases[lease_id].slot, "state", LeaseState.ABANDONED)
        return self._end_abandoned(lease_ids)

    def expire(self, now_s: float, ttl_s: float, absent: Container[int] = ()) -> Expiry:
        """Takes leases that nobody renewed from their holders, unless these are `absent`; ends those that have none."""
        renewed_at_s = self._records.leases["renewed_at_s"]
        fates: dict[LeaseFate, list[int]] = {fate: [] for fate in LeaseFate}
        for lease_id, entry in self._index.leases.items():
            fate = lease_fate(entry.holder_id, renewed_at_s.item(entry.slot), now_s, ttl_s)
            if entry.holder_id not in absent:
                fates[fate].append(lease_id)
        for lease_id in fates[LeaseFate.REVOKED]:
            self._records.set_lease(self._index.leases[lease_id].slot, "renewed_at_s", now_s)
            self._hand_over(lease_id, 0)
        return Expiry(self.release_sequences(fates[LeaseFate.ENDED]), tuple(fates[LeaseFate.REVOKED]))

    def statistics(self) -> LedgerStatistics:
        """Counted from the records."""
        counts = np.bincount(self._records.blocks["state"], minlength=len(BlockState)).tolist()
        return LedgerStatistics(
            epoch=self._records.epoch,
            num_blocks=self._records.num_blocks,
            num_free_blocks=counts[BlockState.FREE],
            num_spare_blocks=counts[BlockState.SPARE],
            num_leased_blocks=counts[BlockState.LEASED],
            num_cached_blocks=counts[BlockState.CACHED],
            num_pinned_blocks=self._index.contents.num_pinned,
            num_segment_blocks=len(self._index.contents.segments),
            num_sequences=len(self._index.leases),
            holders=tuple(
                HolderStatistics(holder_id, entry.service, entry.pid, len(entry.spare), len(entry.lease_ids))
                for holder_id, entry in sorted(self._index.holders.items())
            ),
        )

    def num_spare_by_holder(self) -> dict[int, int]:
        """Blocks that each holder has leased ahead."""
        return {holder_id: len(entry.spare) for holder_id, entry in self._index.holders.items()}

    def check(self) -> None:
        """LedgerCorruptError when the records contradict each other, or the index them. Reads everything."""
        check(self._records)
        self._index.compare(self._records)

    def _num_available(self) -> int:
        return len(self._index.free_blocks) + self._index.contents.blocks.num_idle

    def _grant(self, holder_id: int, entry: HolderEntry) -> Block:
        block_id = self._index.free_blocks.popleft() if self._index.free_blocks else self.published.evict()
        record, occupant = blocks.grant(self._records.block(block_id), holder_id), self.occupants.grant(block_id)
        self._records.write_block(block_id, record)
        entry.spare.add(block_id)
        return Block(block_id, record.generation, occupant)

    def _claim(self, lease_id: int, entry: LeaseEntry, keys: Sequence[bytes], num_reserve_blocks: int) -> list[int]:
        contents, num_shareable, num_before = self._index.contents, self._num_shareable(), len(entry.block_ids)
        for block_id in contents.run(keys)[num_before:][:num_shareable]:
            is_cached = contents.blocks.is_idle(block_id)
            if is_cached and self._num_available() <= num_reserve_blocks:
                break
            self._refer(lease_id, entry, block_id, blocks.share(self._records.block(block_id)))
            self.published.use(block_id)
        self._records.set_lease(entry.slot, "num_sealed_tokens", len(entry.block_ids) * self.block_size)
        return entry.block_ids[num_before:]

    def _unclaim(self, entry: LeaseEntry) -> None:
        self._records.set_lease(entry.slot, "num_sealed_tokens", 0)
        while entry.block_ids:
            self._leave(entry.block_ids.pop(), entry.reference_slots.pop())

    def _return(self, entry: HolderEntry, block_id: int) -> None:
        self._records.write_block(block_id, blocks.give_back(self._records.block(block_id)))
        entry.spare.remove(block_id)
        self._index.free_blocks.append(block_id)

    def _update(self, holder: HolderEntry, update: SequenceUpdate, now_s: float, num_segment_blocks: int) -> None:
        entry = self._index.leases[update.lease_id]
        for block in update.add_blocks:
            self._refer(update.lease_id, entry, block.block_id, blocks.join_lease(self._records.block(block.block_id)))
            holder.spare.remove(block.block_id)
        num_sealed = self._records.lease_field(entry.slot, "num_sealed_tokens")
        self._records.set_lease(entry.slot, "num_sealed_tokens", max(num_sealed, update.num_sealed_tokens))
        begun = slice(*(num_blocks_for(num, self.block_size) for num in (num_sealed, update.num_sealed_tokens)))
        self.occupants.seal(entry.block_ids[begun], entry.slot)
        self.published.publish(entry.block_ids, update.publish, now_s, num_segment_blocks)

    def _refer(self, lease_id: int, entry: LeaseEntry, block_id: int, record: blocks.BlockRecord) -> None:
        """Puts a block at the lease's next position: the reference first, then the block."""
        slot = self._index.free_reference_slots.pop()
        reference = Reference(lease_id, block_id, record.generation, ordinal=len(entry.block_ids))
        self._records.write_reference(slot, reference)
        self._records.write_block(block_id, record)
        entry.block_ids.append(block_id)
        entry.reference_slots.append(slot)

    def _open_lease(self, lease_id: int, request_id: str, now_s: float, domain: bytes) -> LeaseEntry:
        if lease_id == 0:
            raise LeaseError("0 is no lease id")
        check_domain(domain)
        slot = self._index.take_lease_slot()
        self.occupants.open_lease(slot, domain)
        self._records.open_lease(slot, lease_id, request_id, now_s)
        entry = LeaseEntry(slot, holder_id=0)
        self._index.leases[lease_id] = entry
        return entry

    def _hand_over(self, lease_id: int, holder_id: int) -> None:
        self._records.set_lease(self._index.leases[lease_id].slot, "holder_id", holder_id)
        self._index.move_lease(lease_id, holder_id)

    def _unhold(self, lease_ids: Sequence[int]) -> None:
        for lease_id in lease_ids:
            self._hand_over(lease_id, 0)
        self._end_abandoned(lease_ids)

    def _end_abandoned(self, lease_ids: Sequence[int]) -> tuple[EndedLease, ...]:
        """Those of them that are abandoned and have no holder."""
        states = self._records.leases["state"]
        entries = ((lease_id, self._index.leases[lease_id]) for lease_id in self._known(lease_ids))
        ended = [
            lease_id
            for lease_id, entry in entries
            if entry.holder_id == 0 and states.item(entry.slot) == LeaseState.ABANDONED
        ]
        return tuple(self._end_lease(lease_id) for lease_id in ended)

    def _known(self, lease_ids: Sequence[int]) -> list[int]:
        return [lease_id for lease_id in dict.fromkeys(lease_ids) if lease_id in self._index.leases]

    def _end_lease(self, lease_id: int) -> EndedLease:
        entry = self._index.leases[lease_id]
        self._records.set_lease(entry.slot, "state", LeaseState.ENDING)
        places = zip(reversed(entry.block_ids), reversed(entry.reference_slots), strict=True)
        num_freed = sum([self._leave(*place) for place in places])
        self._records.set_lease(entry.slot, "state", LeaseState.UNUSED)
        self._index.move_lease(lease_id, 0)
        del self._index.leases[lease_id]
        self._index.free_lease_slots.append(entry.slot)
        return EndedLease(lease_id, num_freed)

    def _leave(self, block_id: int, reference_slot: int) -> bool:
        """Takes a block out of a lease; says whether it can be given away now."""
        record = blocks.leave_lease(self._records.block(block_id), is_published=self._records.is_published(block_id))
        self._records.write_block(block_id, record)
        self._records.clear_reference(reference_slot)
        self._index.free_reference_slots.append(reference_slot)
        if record.state is BlockState.FREE:
            self._index.free_blocks.append(block_id)
        elif record.state is BlockState.CACHED:
            self.published.keep(block_id)
        return record.state is not BlockState.LEASED

    def _lease(self, lease_id: int, entry: LeaseEntry) -> SequenceLease:
        num_sealed = self._records.lease_field(entry.slot, "num_sealed_tokens")
        num_begun, generations = num_blocks_for(num_sealed, self.block_size), self._records.generations(entry.block_ids)
        occupants = [NOBODYS] * num_begun + [self.occupants.of(each) for each in entry.block_ids[num_begun:]]
        return SequenceLease(lease_id, tuple(map(Block, entry.block_ids, generations, occupants)), num_sealed)

    def _num_shareable(self) -> int:
        """References left when every block that is in no lease has got the one it may need."""
        num_unleased = int((self._records.blocks["state"] != BlockState.LEASED).sum())
        return len(self._index.free_reference_slots) - num_unleased

    def _may_trust(self, copied_from: Sequence[Block]) -> bool:
        """Whether nobody can have written to it since."""
        return all(map(self._records.is_current, copied_from))

    def _check_published(self, updates: Sequence[SequenceUpdate]) -> None:
        for update in updates:
            num_sealed = self._records.lease_field(self._index.leases[update.lease_id].slot, "num_sealed_tokens")
            num_full = max(num_sealed, update.num_sealed_tokens) // self.block_size
            for keyed in update.publish:
                check_whole(keyed, self.block_size)
                if not 0 <= keyed.ordinal < num_full:
                    publishes = f"with {num_full} sealed blocks publishes block {keyed.ordinal}"
                    raise LeaseError(f"lease {update.lease_id} {publishes}")

    def _check_sealed(self, updates: Sequence[SequenceUpdate]) -> None:
        num_blocks = {u.lease_id: len(self._index.leases[u.lease_id].block_ids) for u in updates}
        for update in updates:
            num_blocks[update.lease_id] += len(update.add_blocks)
            room = num_blocks[update.lease_id] * self.block_size
            if update.num_sealed_tokens > room:
                raise LeaseError(
                    f"lease {update.lease_id}: {update.num_sealed_tokens} tokens sealed, its blocks hold {room}"
                )
