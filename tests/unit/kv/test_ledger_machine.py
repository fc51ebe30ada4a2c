"""Any sequence of operations, against a model of plain sets."""

from itertools import takewhile

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tandem.errors import LeaseError, NotFoundError, PinQuotaError, StaleBlockError
from tandem.kv.ledger import Ledger
from tandem.kv.repair import Repairs
from tandem.kv.store import PromptTokens, SequenceUpdate
from tests.support.ledger_model import (
    BLOCK_SIZE,
    BLOCKS_BY_KEY,
    KEYS,
    NAMESPACES,
    NUM_BLOCKS,
    NUM_PINNABLE,
    RESERVE,
    TTL_S,
    LedgerModel,
    Scope,
    Sequence,
    prompt_tokens,
    sorted_blocks,
)


class LedgerMachine(LedgerModel):
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

    @has_holder
    @rule(data=st.data(), num=st.integers(0, 10))
    def lease_blocks(self, data: st.DataObject, num: int) -> None:
        self.lease_for(self.a_holder(data), num)

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

    @has_holder
    @rule(data=st.data(), first=st.integers(0, 6), num=st.integers(1, 6), is_released=st.booleans())
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
    @rule(data=st.data(), first=st.integers(0, 6))
    def publish(self, data: st.DataObject, first: int) -> None:
        self.publish_as(self.a_lease(data), first)

    @rule(first=st.integers(0, 6), num=st.integers(0, 6))
    def find(self, first: int, num: int) -> None:
        found = self.ledger.published.find(KEYS[first][:num], self.now_s)
        there = takewhile(lambda key: key in self.published, KEYS[first][:num])
        assert list(found) == [self.published[key] for key in there]

    @has_both
    @rule(data=st.data(), first=st.integers(0, 6), num=st.integers(0, 6), num_more=st.integers(0, BLOCK_SIZE))
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
    @rule(namespace=st.sampled_from(sorted(set(NAMESPACES))), scope=st.sampled_from(Scope))
    def withdraw(self, namespace: bytes, scope: Scope) -> None:
        gone = {
            key: block for key, block in self.published.items() if scope.has(BLOCKS_BY_KEY[key].namespace, namespace)
        }
        outcome = scope.withdraw(self.ledger.published, namespace)
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


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=40)
