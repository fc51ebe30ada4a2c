"""What a ledger must hold, as plain sets, beside the ledger itself: the machine of operations is built on it."""

from collections import Counter
from collections.abc import Sequence as SequenceOf
from collections.abc import Set as SetOf
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import takewhile

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from tandem.kv.contents import domain_of, segment_namespace
from tandem.kv.journal import BlockRemoved, BlockStored
from tandem.kv.ledger import Ledger
from tandem.kv.outcomes import Withdrawal
from tandem.kv.published import PublishedBlocks
from tandem.kv.records import ledger_bytes
from tandem.kv.store import CopySource, KeyedBlock, PromptTokens, SequenceUpdate
from tandem.types import Block, ContentKind

NUM_BLOCKS = 24
BLOCK_SIZE = 4
RESERVE = 4
TTL_S = 10.0
NUM_PINNABLE = 5
MAX_SEGMENT_BLOCKS = 6
PROMPTS = [bytes([number]) * 32 for number in (201, 201, 202, 202)]
NAMESPACES = [*PROMPTS, *map(segment_namespace, PROMPTS[1:])]  # of each prompt, and then of each segment
KEYS = [[bytes([first, ordinal]) * 16 for ordinal in range(NUM_BLOCKS)] for first in range(len(NAMESPACES))]


def prompt_tokens(first: int, num_blocks: int) -> list[int]:
    """Two prompts of a namespace begin with the same two tokens, and with other blocks."""
    return [each for ordinal in range(num_blocks) for each in (ordinal, 7, first, ordinal)]


def keyed_block(first: int, ordinal: int) -> KeyedBlock:
    parent = KEYS[first][ordinal - 1] if ordinal else NAMESPACES[first]
    tokens = tuple(prompt_tokens(first, ordinal + 1)[-BLOCK_SIZE:])
    kind = ContentKind.PROMPT if first < len(PROMPTS) else ContentKind.SEGMENT
    return KeyedBlock(ordinal, KEYS[first][ordinal], parent, NAMESPACES[first], tokens, kind)


BLOCKS_BY_KEY = {
    key: keyed_block(first, ordinal) for first, keys in enumerate(KEYS) for ordinal, key in enumerate(keys)
}


class Scope(Enum):
    """What is withdrawn."""

    NAMESPACE = auto()
    DOMAIN = auto()
    ALL = auto()

    def has(self, one: bytes, namespace: bytes) -> bool:
        same = {
            Scope.NAMESPACE: one in (namespace, segment_namespace(namespace)),
            Scope.DOMAIN: one[16:] == namespace[16:],
        }
        return same.get(self, True)

    def withdraw(self, published: PublishedBlocks, namespace: bytes) -> Withdrawal:
        match self:
            case Scope.NAMESPACE:
                return published.withdraw(namespace)
            case Scope.DOMAIN:
                return published.withdraw_domain(domain_of(namespace))
            case Scope.ALL:
                return published.withdraw_all()


@dataclass
class Sequence:
    holder_id: int
    renewed_at_s: float
    blocks: list[Block] = field(default_factory=list)
    num_sealed: int = 0
    abandoned: bool = False


class LedgerModel(RuleBasedStateMachine):
    """Carries operations out on both sides and compares."""

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

    def end_abandoned(self, lease_ids: list[int]) -> None:
        """Of these alone: a lease that was revoked has its time to live again, because its holder may not know yet."""
        before = self.leased()
        for lease_id in lease_ids:
            if self.sequences[lease_id].abandoned and self.sequences[lease_id].holder_id == 0:
                del self.sequences[lease_id]
        self.note_left(before)

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

    def open_for(self, holder: int) -> None:
        self.last_lease_id += 1
        lease = self.ledger.acquire_sequence(holder, self.last_lease_id, "r", create=True, now_s=self.now_s)
        assert (lease.blocks, lease.num_sealed_tokens) == ((), 0)
        self.sequences[self.last_lease_id] = Sequence(holder, self.now_s)

    def extend(self, holder: int, lease_id: int, blocks: list[Block], part: float) -> None:
        sequence = self.sequences[lease_id]
        num_sealed = int(part * BLOCK_SIZE * (len(sequence.blocks) + len(blocks)))
        lost = self.ledger.update_sequences(holder, [SequenceUpdate(lease_id, tuple(blocks), num_sealed)], now_s=0.0)
        assert lost == (frozenset() if sequence.holder_id == holder else {lease_id})
        if not lost:
            sequence.blocks += blocks
            sequence.num_sealed = max(sequence.num_sealed, num_sealed)
            self.spare[holder] -= set(blocks)

    def publish_as(self, lease_id: int, first: int) -> None:
        sequence = self.sequences[lease_id]
        blocks = sequence.blocks[: sequence.num_sealed // BLOCK_SIZE]
        keyed = tuple(keyed_block(first, ordinal) for ordinal in range(len(blocks)))
        if sequence.holder_id == 0:
            return
        for block, each in zip(blocks, keyed, strict=True):
            update = SequenceUpdate(lease_id, (), 0, (each,))
            self.ledger.update_sequences(sequence.holder_id, [update], 0.0, MAX_SEGMENT_BLOCKS)
            if each.key not in self.published and block not in self.published.values():
                self.note_published(block, each)

    def note_published(self, block: Block, keyed: KeyedBlock) -> None:
        there = {each.key for each in self.ledger.published.stored()}
        if keyed.kind is ContentKind.SEGMENT:
            gone = self.published.keys() - there
            assert self.is_joined(keyed) or not gone
            if self.is_joined(keyed):
                self.note_given_up(gone, domain_of(keyed.namespace))
            has_room = len(self.segment_keys()) < MAX_SEGMENT_BLOCKS
            assert (keyed.key in there) == (self.is_joined(keyed) and has_room)
        if keyed.key in there:
            self.published[keyed.key] = block

    def is_joined(self, keyed: KeyedBlock) -> bool:
        return keyed.parent == keyed.namespace or keyed.parent in self.published

    def segment_keys(self) -> list[bytes]:
        return [key for key in self.published if BLOCKS_BY_KEY[key].kind is ContentKind.SEGMENT]

    def note_given_up(self, gone: SetOf[bytes], domain: bytes) -> None:
        """Before a segment's block is published for `domain`."""
        sizes = Counter(domain_of(BLOCKS_BY_KEY[key].namespace) for key in self.segment_keys())
        idle = {key for key in self.segment_keys() if self.published[key] in self.cached - self.pinned}
        with_idle = {domain_of(BLOCKS_BY_KEY[key].namespace) for key in idle}
        allowed = {each for each in with_idle if sizes[each] > sizes[domain]} or with_idle & {domain}
        must = sizes.total() >= MAX_SEGMENT_BLOCKS and bool(allowed)
        assert gone <= idle
        assert len(gone) == must
        for key in gone:
            assert sizes[domain_of(BLOCKS_BY_KEY[key].namespace)] == max(sizes[each] for each in allowed)
            self.cached.remove(self.published.pop(key))

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

    def release_one(self, lease_id: int) -> None:
        before = self.leased()
        del self.sequences[lease_id]
        (ended,) = self.ledger.release_sequences([lease_id, 1 << 40])
        self.note_left(before)
        assert (ended.lease_id, ended.num_freed_blocks) == (lease_id, len(before - self.leased()))

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
        num_segment_blocks = sum(run.num_blocks for run in runs if run.kind is ContentKind.SEGMENT)
        assert num_segment_blocks == self.ledger.statistics().num_segment_blocks == len(self.segment_keys())
        assert num_segment_blocks <= MAX_SEGMENT_BLOCKS
        assert self.ledger.statistics().num_pinned_blocks == len(self.pinned)

    @invariant()
    def a_copy_of_the_bytes_is_the_same_ledger(self) -> None:
        assert Ledger.open(bytearray(self.buffer)).statistics() == self.ledger.statistics()


def num_equal(one: SequenceOf[int], other: SequenceOf[int]) -> int:
    """How many of the first are equal."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


def sorted_blocks(blocks: set[Block]) -> list[Block]:
    return sorted(blocks, key=lambda block: (block.block_id, block.generation))
