"""Any sequence of operations, against a model of plain sets."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from itertools import takewhile

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tandem.errors import LeaseError, NotFoundError, PinQuotaError, StaleBlockError
from tandem.kv.journal import BlockRemoved, BlockStored
from tandem.kv.ledger import Ledger
from tandem.kv.records import ledger_bytes
from tandem.kv.repair import Repairs
from tandem.kv.store import CopySource, KeyedBlock, PromptTokens, SequenceUpdate
from tandem.types import Block

NUM_BLOCKS = 24
BLOCK_SIZE = 4
RESERVE = 4
TTL_S = 10.0
NUM_PINNABLE = 5
NAMESPACES = [bytes([number]) * 32 for number in (201, 201, 202, 202)]  # of each prompt
KEYS = [[bytes([first, ordinal]) * 16 for ordinal in range(NUM_BLOCKS)] for first in range(4)]


def prompt_tokens(first: int, num_blocks: int) -> list[int]:
    """Two prompts of a namespace begin with the same two tokens, and with other blocks."""
    return [each for ordinal in range(num_blocks) for each in (ordinal, 7, first, ordinal)]


def keyed_block(first: int, ordinal: int) -> KeyedBlock:
    parent = KEYS[first][ordinal - 1] if ordinal else NAMESPACES[first]
    tokens = tuple(prompt_tokens(first, ordinal + 1)[-BLOCK_SIZE:])
    return KeyedBlock(ordinal, KEYS[first][ordinal], parent, NAMESPACES[first], tokens)


BLOCKS_BY_KEY = {
    KEYS[first][ordinal]: keyed_block(first, ordinal) for first in range(4) for ordinal in range(NUM_BLOCKS)
}


@dataclass
class Sequence:
    holder_id: int
    renewed_at_s: float
    blocks: list[Block] = field(default_factory=list)
    num_sealed: int = 0
    abandoned: bool = False


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.buffer = bytearray(ledger_bytes(NUM_BLOCKS, BLOCK_SIZE))
        self.ledger = Ledger.create(self.buffer, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, epoch=9)
        self.now_s = 0.0
        self.last_lease_id = 0
        self.spare: dict[int, set[Block]] = {}
        self.services: dict[int, str] = {}
        self.sequences: dict[int, Sequence] = {}
        self.seen: set[Block] = set()
        self.published: dict[bytes, Block] = {}
        self.cached: set[Block] = set()
        self.pinned: set[Block] = set()
        self.view: dict[bytes, BlockStored] = {}  # of somebody who hears of every change
        self.num_heard = 0

    def leased(self) -> set[Block]:
        return {block for sequence in self.sequences.values() for block in sequence.blocks}

    def owned(self) -> set[Block]:
        return self.leased().union(*self.spare.values())

    def a_holder(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.spare)), "holder")

    def a_lease(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.sequences)), "lease")

    has_holder = precondition(lambda self: self.spare)
    has_both = precondition(lambda self: self.spare and self.sequences)
    has_lease = precondition(lambda self: self.sequences)

    @precondition(lambda self: len(self.spare) < 4)
    @rule(service=st.sampled_from(["prefill", "decode"]))
    def attach(self, service: str) -> None:
        holder = self.ledger.add_holder(service, 1)
        assert holder not in self.services
        self.services[holder] = service
        self.spare[holder] = set()

    @has_holder
    @rule(data=st.data())
    def crash_of_a_holder(self, data: st.DataObject) -> None:
        holder = self.a_holder(data)
        assert self.ledger.drop_holder(holder) == len(self.spare.pop(holder))
        held = [lease_id for lease_id, sequence in self.sequences.items() if sequence.holder_id == holder]
        for lease_id in held:
            self.sequences[lease_id].holder_id = 0
        self.end_abandoned(held)

    def end_abandoned(self, lease_ids: list[int]) -> None:
        """Of these alone: a lease that was revoked has its time to live again, because its holder may not know yet."""
        before = self.leased()
        for lease_id in lease_ids:
            if self.sequences[lease_id].abandoned and self.sequences[lease_id].holder_id == 0:
                del self.sequences[lease_id]
        self.note_left(before)

    @has_holder
    @rule(data=st.data(), num=st.integers(0, 10))
    def lease_blocks(self, data: st.DataObject, num: int) -> None:
        self.lease_for(self.a_holder(data), num)

    def lease_for(self, holder: int, num: int) -> None:
        num_free = NUM_BLOCKS - len({block.block_id for block in self.owned()}) - len(self.pinned & self.cached)
        reserve = RESERVE if self.services[holder] == "prefill" else 0
        blocks = self.ledger.lease_blocks(holder, num, RESERVE)
        assert len(blocks) == max(0, min(num, num_free - reserve))
        assert not self.seen & set(blocks), "a generation was given out twice"
        assert not {b.block_id for b in blocks} & {b.block_id for b in self.owned()}, "a block has two owners"
        self.seen |= set(blocks)
        self.spare[holder] |= set(blocks)
        self.note_evictions({block.block_id for block in blocks}, num_free - len(self.cached - self.pinned))

    def note_evictions(self, block_ids: set[int], num_free: int) -> None:
        evicted = {block for block in self.cached if block.block_id in block_ids}
        assert len(evicted) == max(0, len(block_ids) - num_free), "cached blocks go when no other is free"
        assert not evicted & self.pinned
        self.cached -= evicted
        self.published = {key: block for key, block in self.published.items() if block not in evicted}

    def note_left(self, before: set[Block]) -> None:
        self.cached |= (before - self.leased()) & set(self.published.values())

    @has_holder
    @rule(data=st.data())
    def return_blocks(self, data: st.DataObject) -> None:
        holder = self.a_holder(data)
        returned = data.draw(st.sets(st.sampled_from(sorted_blocks(self.spare[holder]) or [None])), "returned") - {None}
        self.ledger.return_blocks(holder, sorted_blocks(returned))
        self.spare[holder] -= returned

    @precondition(lambda self: self.spare and self.seen)
    @rule(data=st.data())
    def return_what_is_not_ones_own(self, data: st.DataObject) -> None:
        holder = self.a_holder(data)
        block = data.draw(st.sampled_from(sorted_blocks(self.seen)), "block")
        if block in self.spare[holder]:
            return
        try:
            self.ledger.return_blocks(holder, [block])
        except StaleBlockError:
            assert block not in self.owned()
        except LeaseError:
            pass
        else:
            raise AssertionError(f"{block} of somebody else was taken")

    @has_holder
    @rule(data=st.data())
    def open_sequence(self, data: st.DataObject) -> None:
        self.open_for(self.a_holder(data))

    def open_for(self, holder: int) -> None:
        self.last_lease_id += 1
        lease = self.ledger.acquire_sequence(holder, self.last_lease_id, "r", create=True, now_s=self.now_s)
        assert (lease.blocks, lease.num_sealed_tokens) == ((), 0)
        self.sequences[self.last_lease_id] = Sequence(holder, self.now_s)

    @has_both
    @rule(data=st.data())
    def hand_over(self, data: st.DataObject) -> None:
        holder, lease_id = self.a_holder(data), self.a_lease(data)
        sequence = self.sequences[lease_id]
        lease = self.ledger.acquire_sequence(holder, lease_id, "r", create=False, now_s=self.now_s)
        assert list(lease.blocks) == sequence.blocks
        assert lease.num_sealed_tokens == sequence.num_sealed
        sequence.holder_id, sequence.renewed_at_s = holder, self.now_s

    @has_both
    @rule(data=st.data(), num=st.integers(0, 4), part=st.floats(0, 1))
    def update(self, data: st.DataObject, num: int, part: float) -> None:
        holder, lease_id = self.a_holder(data), self.a_lease(data)
        self.extend(holder, lease_id, sorted_blocks(self.spare[holder])[:num], part)

    def extend(self, holder: int, lease_id: int, blocks: list[Block], part: float) -> None:
        sequence = self.sequences[lease_id]
        num_sealed = int(part * BLOCK_SIZE * (len(sequence.blocks) + len(blocks)))
        lost = self.ledger.update_sequences(holder, [SequenceUpdate(lease_id, tuple(blocks), num_sealed)], now_s=0.0)
        assert lost == (frozenset() if sequence.holder_id == holder else {lease_id})
        if not lost:
            sequence.blocks += blocks
            sequence.num_sealed = max(sequence.num_sealed, num_sealed)
            self.spare[holder] -= set(blocks)

    @has_holder
    @rule(data=st.data(), first=st.integers(0, 3), num=st.integers(1, 6), is_released=st.booleans())
    def compute_a_prompt(self, data: st.DataObject, first: int, num: int, is_released: bool) -> None:
        """What a phase does step by step, whole: the other rules seldom get there."""
        holder = self.a_holder(data)
        self.lease_for(holder, num)
        self.open_for(holder)
        lease_id = self.last_lease_id
        self.extend(holder, lease_id, sorted_blocks(self.spare[holder])[:num], 1.0)
        self.publish_as(lease_id, first)
        if is_released:
            self.release_one(lease_id)

    @has_both
    @rule(data=st.data(), first=st.integers(0, 3))
    def publish(self, data: st.DataObject, first: int) -> None:
        self.publish_as(self.a_lease(data), first)

    def publish_as(self, lease_id: int, first: int) -> None:
        sequence = self.sequences[lease_id]
        blocks = sequence.blocks[: sequence.num_sealed // BLOCK_SIZE]
        keyed = tuple(keyed_block(first, ordinal) for ordinal in range(len(blocks)))
        if sequence.holder_id == 0:
            return
        self.ledger.update_sequences(sequence.holder_id, [SequenceUpdate(lease_id, (), 0, keyed)], now_s=0.0)
        for block, each in zip(blocks, keyed, strict=True):
            if each.key not in self.published and block not in self.published.values():
                self.published[each.key] = block

    @has_both
    @rule(data=st.data(), first=st.integers(0, 3), num=st.integers(0, 6), num_more=st.integers(0, BLOCK_SIZE))
    def claim(self, data: st.DataObject, first: int, num: int, num_more: int) -> None:
        lease_id = self.a_lease(data)
        sequence = self.sequences[lease_id]
        keys = KEYS[first][:num]
        if sequence.holder_id == 0:
            return
        before = self.leased()
        token_ids = [*prompt_tokens(first, num + 1)[: num * BLOCK_SIZE + num_more], 99]
        prompt = PromptTokens(NAMESPACES[first], token_ids) if keys else None
        lease = self.ledger.claim_prefix(sequence.holder_id, lease_id, keys, RESERVE, prompt=prompt, now_s=self.now_s)
        if sequence.num_sealed == BLOCK_SIZE * len(sequence.blocks):
            self.check_claimed(sequence, lease.blocks, keys)
            self.check_copy_source(lease.copy_source, keys[: len(lease.blocks)], len(lease.blocks), prompt)
            sequence.blocks, sequence.num_sealed = list(lease.blocks), lease.num_sealed_tokens
        assert (list(lease.blocks), lease.num_sealed_tokens) == (sequence.blocks, sequence.num_sealed)
        self.note_left(before)
        self.cached -= set(lease.blocks)

    def check_claimed(self, sequence: Sequence, blocks: tuple[Block, ...], keys: list[bytes]) -> None:
        num_held = len(sequence.blocks)
        if not keys:
            assert blocks == ()
            return
        assert list(blocks[:num_held]) == sequence.blocks
        assert list(blocks[num_held:]) == [self.published[key] for key in keys[num_held : len(blocks)]]
        if len(blocks) < len(keys) and all(key in self.published for key in keys):
            num_open = NUM_BLOCKS - len({block.block_id for block in self.owned()}) - len(self.pinned & self.cached)
            room = 4 * NUM_BLOCKS - sum(len(s.blocks) for s in self.sequences.values())
            num_taken = len((self.cached - self.pinned) & set(blocks))
            assert num_open - num_taken <= RESERVE or room < NUM_BLOCKS + len(keys)

    def check_copy_source(
        self, source: CopySource | None, keys: list[bytes], num_blocks: int, prompt: PromptTokens | None
    ) -> None:
        lengths: dict[Block, int] = {}
        for key, block in self.published.items() if prompt and len(keys) == num_blocks else ():
            if BLOCKS_BY_KEY[key].parent == (keys[-1] if keys else prompt.namespace):
                wanted = prompt.token_ids[num_blocks * BLOCK_SIZE :][:BLOCK_SIZE]
                lengths[block] = num_equal(BLOCKS_BY_KEY[key].token_ids, wanted)
        longest = max(lengths.values(), default=0)
        assert (source.num_tokens if source else 0) == longest
        assert source is None or lengths[source.block] == longest

    @has_both
    @rule(data=st.data())
    def update_after_a_copy(self, data: st.DataObject) -> None:
        lease_id = self.a_lease(data)
        sequence = self.sequences[lease_id]
        source = data.draw(st.sampled_from(sorted_blocks(self.seen)), "source") if self.seen else None
        if sequence.holder_id == 0 or source is None:
            return
        newest = max(block.generation for block in self.seen if block.block_id == source.block_id)
        update = SequenceUpdate(lease_id, (), 0, copied_from=(source,))
        lost = self.ledger.update_sequences(sequence.holder_id, [update], now_s=self.now_s)
        assert lost == (frozenset() if source.generation == newest else {lease_id})
        if lost:
            sequence.holder_id = 0
            self.end_abandoned([lease_id])

    @precondition(lambda self: self.published)
    @rule(first=st.integers(0, 3), num=st.integers(1, 6))
    def pin(self, first: int, num: int) -> None:
        blocks = [self.published.get(key) for key in KEYS[first][:num]]
        wanted = self.pinned.union(block for block in blocks if block)
        try:
            num_fresh = self.ledger.published.pin(KEYS[first][:num], NUM_PINNABLE)
        except NotFoundError:
            assert None in blocks
        except PinQuotaError:
            assert None not in blocks
            assert len(wanted) > NUM_PINNABLE
        else:
            assert num_fresh == len(wanted - self.pinned)
            self.pinned = wanted

    @precondition(lambda self: self.published)
    @rule(namespace=st.sampled_from([None, *sorted(set(NAMESPACES))]))
    def withdraw(self, namespace: bytes | None) -> None:
        gone = {
            key: block
            for key, block in self.published.items()
            if namespace is None or BLOCKS_BY_KEY[key].namespace == namespace
        }
        outcome = self.ledger.published.withdraw(namespace)
        num_freed = len(self.cached & set(gone.values()))
        assert (outcome.num_freed_blocks, outcome.num_leased_blocks) == (num_freed, len(gone) - num_freed)
        self.cached -= set(gone.values())
        self.pinned -= set(gone.values())
        self.published = {key: block for key, block in self.published.items() if key not in gone}

    @has_both
    @rule(data=st.data())
    def update_with_a_block_not_spare(self, data: st.DataObject) -> None:
        lease_id = self.a_lease(data)
        holder = self.sequences[lease_id].holder_id
        foreign = sorted_blocks(self.seen - self.spare.get(holder, set()))
        if holder == 0 or not foreign:
            return
        own = sorted_blocks(self.spare[holder])[:1]
        update = SequenceUpdate(lease_id, (*own, data.draw(st.sampled_from(foreign), "foreign")), 0)
        try:
            self.ledger.update_sequences(holder, [update], now_s=0.0)
        except (StaleBlockError, LeaseError):
            return
        raise AssertionError(f"{update} was applied")

    @has_lease
    @rule(data=st.data(), num_tokens=st.integers(0, 40))
    def fork(self, data: st.DataObject, num_tokens: int) -> None:
        self.last_lease_id += 1
        parent = self.sequences[self.a_lease(data)]
        parent_id = next(lease_id for lease_id, sequence in self.sequences.items() if sequence is parent)
        num_shared = self.ledger.fork_sequence(parent_id, self.last_lease_id, "r", num_tokens, self.now_s)
        full = min(num_tokens, parent.num_sealed) // BLOCK_SIZE * BLOCK_SIZE
        room = 4 * NUM_BLOCKS - sum(len(s.blocks) for s in self.sequences.values())
        assert num_shared == full or (num_shared < full and room < NUM_BLOCKS)
        blocks = parent.blocks[: num_shared // BLOCK_SIZE]
        self.sequences[self.last_lease_id] = Sequence(0, self.now_s, blocks, num_shared)

    @has_lease
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        lease_id = self.a_lease(data)
        assert self.ledger.renew_sequences([lease_id, 1 << 40], self.now_s) == {1 << 40}
        self.sequences[lease_id].renewed_at_s = self.now_s

    @has_lease
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.release_one(self.a_lease(data))

    def release_one(self, lease_id: int) -> None:
        before = self.leased()
        del self.sequences[lease_id]
        (ended,) = self.ledger.release_sequences([lease_id, 1 << 40])
        self.note_left(before)
        assert (ended.lease_id, ended.num_freed_blocks) == (lease_id, len(before - self.leased()))

    @has_lease
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        lease_id = self.a_lease(data)
        ended = self.ledger.abandon_sequences([lease_id, 1 << 40])
        assert [lease.lease_id for lease in ended] == ([] if self.sequences[lease_id].holder_id else [lease_id])
        self.sequences[lease_id].abandoned = True
        self.end_abandoned([lease_id])

    @has_lease
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        lease_id = self.a_lease(data)
        holder = self.sequences[lease_id].holder_id
        if holder == 0:
            return
        assert not self.ledger.update_sequences(holder, [SequenceUpdate(lease_id, (), 0, let_go=True)], now_s=0.0)
        self.sequences[lease_id].holder_id = 0
        self.end_abandoned([lease_id])

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        expiry = self.ledger.expire(self.now_s, TTL_S)
        old = {lease_id for lease_id, s in self.sequences.items() if self.now_s - s.renewed_at_s > TTL_S}
        held = {lease_id for lease_id in old if self.sequences[lease_id].holder_id != 0}
        assert set(expiry.revoked_lease_ids) == held
        assert {lease.lease_id for lease in expiry.ended} == old - held
        for lease_id in held:
            self.sequences[lease_id].holder_id, self.sequences[lease_id].renewed_at_s = 0, self.now_s
        before = self.leased()
        for lease_id in old - held:
            del self.sequences[lease_id]
        self.note_left(before)

    @rule()
    def restart(self) -> None:
        statistics = self.ledger.statistics()
        self.ledger = Ledger.open(self.buffer)
        assert self.ledger.repairs == Repairs()
        assert self.ledger.statistics() == statistics
        self.view = {block.key: block for block in self.ledger.published.stored()}
        self.num_heard = 0

    @invariant()
    def nothing_is_lost_or_owned_twice(self) -> None:
        self.ledger.check()
        statistics = self.ledger.statistics()
        num_spare = sum(len(blocks) for blocks in self.spare.values())
        assert statistics.num_spare_blocks == num_spare
        assert statistics.num_leased_blocks == len(self.leased())
        assert statistics.num_free_blocks == NUM_BLOCKS - num_spare - len(self.leased()) - len(self.cached)
        assert statistics.num_cached_blocks == len(self.cached)
        assert statistics.num_sequences == len(self.sequences)
        assert len({block.block_id for block in self.owned()}) == num_spare + len(self.leased())

    @invariant()
    def whoever_hears_of_every_change_knows_what_is_published(self) -> None:
        events = self.ledger.published.journal.after(self.num_heard, 1000)
        assert events is not None
        self.num_heard += len(events)
        for event in events:
            match event:
                case BlockStored():
                    assert event.key not in self.view
                    self.view[event.key] = event
                case BlockRemoved():
                    del self.view[event.key]
                case _:
                    self.view.clear()
        assert self.view.keys() == self.published.keys()
        for key, stored in self.view.items():
            assert (stored.parent, stored.namespace) == (BLOCKS_BY_KEY[key].parent, BLOCKS_BY_KEY[key].namespace)
        assert {block.key: block for block in self.ledger.published.stored()} == self.view

    @invariant()
    def rows_tell_of_every_published_block(self) -> None:
        runs = self.ledger.published.runs(self.now_s)
        assert sum(run.num_blocks for run in runs) == len(self.published)
        assert sum(run.num_leased_blocks for run in runs) == len(set(self.published.values()) - self.cached)
        assert sum(run.num_blocks for run in runs if run.pinned) == len(self.pinned)
        assert self.ledger.statistics().num_pinned_blocks == len(self.pinned)

    @invariant()
    def a_copy_of_the_bytes_is_the_same_ledger(self) -> None:
        assert Ledger.open(bytearray(self.buffer)).statistics() == self.ledger.statistics()


def num_equal(one: SequenceOf[int], other: SequenceOf[int]) -> int:
    """How many of the first are equal."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


def sorted_blocks(blocks: set[Block]) -> list[Block]:
    return sorted(blocks, key=lambda block: (block.block_id, block.generation))


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=40)
