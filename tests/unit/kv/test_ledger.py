from dataclasses import replace

import pytest

from tandem.errors import LeaseError, NotFoundError, StaleBlockError
from tandem.kv.ledger import Ledger
from tandem.kv.outcomes import EndedLease, Expiry
from tandem.kv.records import MAX_HOLDERS, ledger_bytes
from tandem.kv.store import SequenceLease, SequenceUpdate
from tandem.types import Block
from tests.support.contents import key, keyed

BLOCK_SIZE = 4


def make(num_blocks: int = 8) -> Ledger:
    return Ledger.create(
        bytearray(ledger_bytes(num_blocks, BLOCK_SIZE)), num_blocks=num_blocks, block_size=BLOCK_SIZE, epoch=1
    )


def with_sequence(num_blocks: int, num_sealed: int) -> tuple[Ledger, int, tuple[Block, ...]]:
    """A ledger whose holder, a decode, has `num_blocks` blocks in lease 100."""
    ledger = make()
    holder = ledger.add_holder("decode", 1)
    blocks = ledger.lease_blocks(holder, num_blocks, 0)
    ledger.acquire_sequence(holder, 100, "r", create=True, now_s=0.0)
    assert ledger.update_sequences(holder, [SequenceUpdate(100, blocks, num_sealed)], now_s=0.0) == frozenset()
    return ledger, holder, blocks


def counts(ledger: Ledger) -> tuple[int, int, int, int]:
    ledger.check()
    statistics = ledger.statistics()
    return (
        statistics.num_free_blocks,
        statistics.num_spare_blocks,
        statistics.num_leased_blocks,
        statistics.num_cached_blocks,
    )


def test_free_blocks_are_reused_longest_free_first():
    ledger = make(4)
    holder = ledger.add_holder("decode", 1)
    first = ledger.lease_blocks(holder, 3, 0)
    assert [block.block_id for block in first] == [0, 1, 2]
    ledger.return_blocks(holder, [first[2], first[0]])
    assert [block.block_id for block in ledger.lease_blocks(holder, 9, 0)] == [3, 2, 0]
    assert counts(ledger) == (0, 4, 0, 0)


def test_returning_is_all_or_nothing():
    ledger = make()
    one, other = ledger.add_holder("prefill", 1), ledger.add_holder("decode", 2)
    mine, theirs = ledger.lease_blocks(one, 2, 0), ledger.lease_blocks(other, 1, 0)
    with pytest.raises(LeaseError, match=f"block 2 is no spare block of holder {one}: it is spare of holder {other}"):
        ledger.return_blocks(one, [*mine, *theirs])
    with pytest.raises(LeaseError, match="named twice"):
        ledger.return_blocks(one, [mine[0], mine[0]])
    with pytest.raises(LeaseError, match="not in the pool of 8"):
        ledger.return_blocks(one, [mine[0], Block(8, 1)])
    assert counts(ledger) == (5, 3, 0, 0)


def test_a_reference_from_an_earlier_owner_is_vetoed():
    ledger = make(1)
    holder = ledger.add_holder("decode", 1)
    (old,) = ledger.lease_blocks(holder, 1, 0)
    ledger.return_blocks(holder, [old])
    (new,) = ledger.lease_blocks(holder, 1, 0)
    assert (new.block_id, new.generation) == (old.block_id, old.generation + 1)
    with pytest.raises(StaleBlockError, match="generation 2, the reference at 1"):
        ledger.return_blocks(holder, [old])
    ledger.return_blocks(holder, [new])


def test_a_handover_keeps_the_blocks_and_refuses_the_one_before():
    ledger, prefill, blocks = with_sequence(3, 10)
    decode = ledger.add_holder("decode", 2)
    lease = ledger.acquire_sequence(decode, 100, "r", create=False, now_s=1.0)
    assert (lease.blocks, lease.num_sealed_tokens) == (blocks, 10)
    (late,) = ledger.lease_blocks(prefill, 1, 0)
    assert ledger.update_sequences(prefill, [SequenceUpdate(100, (late,), 12)], now_s=0.0) == {100}
    assert ledger.acquire_sequence(decode, 100, "r", create=True, now_s=1.0) == lease
    ledger.return_blocks(prefill, [late])
    assert counts(ledger) == (5, 0, 3, 0)


def test_a_refused_update_does_not_stop_the_others():
    ledger, holder, _ = with_sequence(1, 4)
    one, two = ledger.lease_blocks(holder, 2, 0)
    assert ledger.update_sequences(
        holder, [SequenceUpdate(99, (one,), 4), SequenceUpdate(100, (two,), 8)], now_s=0.0
    ) == {99}
    assert counts(ledger) == (5, 1, 2, 0)


def test_an_update_with_a_block_of_others_changes_nothing():
    ledger, holder, (leased,) = with_sequence(1, 4)
    (good,) = ledger.lease_blocks(holder, 1, 0)
    ledger.acquire_sequence(holder, 101, "s", create=True, now_s=0.0)
    updates = [SequenceUpdate(101, (good,), 4), SequenceUpdate(100, (leased,), 8)]
    with pytest.raises(LeaseError, match="block 0 is no spare block of holder 1: it is LEASED"):
        ledger.update_sequences(holder, updates, now_s=0.0)
    assert ledger.acquire_sequence(holder, 101, "s", create=False, now_s=0.0).blocks == ()
    with pytest.raises(LeaseError, match="named twice"):
        ledger.update_sequences(holder, [SequenceUpdate(101, (good,), 4), SequenceUpdate(100, (good,), 8)], now_s=0.0)
    assert counts(ledger) == (6, 1, 1, 0)


def test_sealed_tokens_never_fall_and_never_pass_the_blocks():
    ledger, holder, _ = with_sequence(2, 7)
    ledger.update_sequences(holder, [SequenceUpdate(100, (), 5)], now_s=0.0)
    assert ledger.acquire_sequence(holder, 100, "r", create=False, now_s=0.0).num_sealed_tokens == 7
    with pytest.raises(LeaseError, match="9 tokens sealed, its blocks hold 8"):
        ledger.update_sequences(holder, [SequenceUpdate(100, (), 9)], now_s=0.0)


@pytest.mark.parametrize(("num_tokens", "num_shared"), [(3, 0), (4, 4), (11, 8), (40, 8)])
def test_a_fork_shares_full_sealed_blocks(num_tokens, num_shared):
    ledger, holder, blocks = with_sequence(3, 10)
    assert ledger.fork_sequence(100, 200, "r", num_tokens, now_s=0.0) == num_shared
    child = ledger.acquire_sequence(holder, 200, "r", create=False, now_s=0.0)
    assert child.blocks == blocks[: num_shared // BLOCK_SIZE]
    assert child.num_sealed_tokens == num_shared
    assert counts(ledger) == (5, 0, 3, 0)


@pytest.mark.parametrize("order", [(100, 200), (200, 100)])
def test_shared_blocks_are_free_after_the_last_release(order):
    ledger, _, _ = with_sequence(3, 12)
    ledger.fork_sequence(100, 200, "r", 8, now_s=0.0)
    freed = [ended.num_freed_blocks for lease in order for ended in ledger.release_sequences([lease])]
    assert freed == ([1, 2] if order[0] == 100 else [0, 3])
    assert counts(ledger) == (8, 0, 0, 0)


def test_a_fork_needs_a_parent_and_a_new_child():
    ledger, _, _ = with_sequence(1, 4)
    with pytest.raises(NotFoundError, match="lease 7 "):
        ledger.fork_sequence(7, 200, "r", 4, now_s=0.0)
    with pytest.raises(LeaseError, match="lease 100 exists"):
        ledger.fork_sequence(100, 100, "r", 4, now_s=0.0)


def test_forks_leave_room_for_every_block_to_be_leased():
    ledger, holder, _ = with_sequence(4, 16)
    shared = [ledger.fork_sequence(100, 200 + number, "r", 16, now_s=0.0) for number in range(12)]
    assert sum(shared) == 24 * BLOCK_SIZE  # three references for each of 8 blocks beyond its first
    assert shared[0] == 16
    assert shared[-1] == 0
    rest = ledger.lease_blocks(holder, 4, 0)
    assert ledger.update_sequences(holder, [SequenceUpdate(100, rest, 32)], now_s=0.0) == frozenset()
    assert counts(ledger) == (0, 0, 8, 0)


def test_release_passes_over_the_unknown():
    ledger, _, _ = with_sequence(3, 10)
    assert ledger.release_sequences([5, 100, 100]) == (EndedLease(100, 3),)
    assert ledger.release_sequences([100]) == ()


def test_a_dropped_holder_leaves_its_sequences():
    ledger, holder, blocks = with_sequence(3, 10)
    ledger.lease_blocks(holder, 2, 0)
    assert ledger.drop_holder(holder) == 2
    assert counts(ledger) == (5, 0, 3, 0)
    with pytest.raises(NotFoundError):
        ledger.lease_blocks(holder, 1, 0)
    after = ledger.add_holder("decode", 2)
    assert after != holder
    assert ledger.acquire_sequence(after, 100, "r", create=False, now_s=0.0).blocks == blocks


def test_leases_expire_when_nobody_renews_or_works_on_them():
    ledger, holder, _ = with_sequence(3, 10)
    ledger.fork_sequence(100, 200, "r", 4, now_s=0.0)
    assert ledger.renew_sequences([200, 300], now_s=5.0) == {300}
    assert ledger.expire(now_s=10.0, ttl_s=10.0) == Expiry((), ())
    ledger.drop_holder(holder)
    assert ledger.expire(now_s=12.0, ttl_s=10.0) == Expiry((EndedLease(100, 2),), ())
    assert ledger.expire(now_s=15.1, ttl_s=10.0) == Expiry((EndedLease(200, 1),), ())
    assert counts(ledger) == (8, 0, 0, 0)


def test_a_lease_that_nobody_renews_is_first_taken_from_its_holder():
    ledger, holder, _ = with_sequence(3, 10)
    assert ledger.expire(now_s=11.0, ttl_s=10.0) == Expiry((), (100,))
    assert counts(ledger) == (5, 0, 3, 0)
    assert ledger.update_sequences(holder, [SequenceUpdate(100, (), 12)], now_s=0.0) == {100}
    assert ledger.expire(now_s=21.0, ttl_s=10.0) == Expiry((), ())
    assert ledger.expire(now_s=21.1, ttl_s=10.0) == Expiry((EndedLease(100, 3),), ())


def test_unknown_names_are_refused():
    ledger = make()
    with pytest.raises(NotFoundError, match="holder 9"):
        ledger.acquire_sequence(9, 1, "r", create=True, now_s=0.0)
    holder = ledger.add_holder("decode", 1)
    with pytest.raises(NotFoundError, match="lease 1 "):
        ledger.acquire_sequence(holder, 1, "r", create=False, now_s=0.0)
    with pytest.raises(LeaseError, match="no lease id"):
        ledger.acquire_sequence(holder, 0, "r", create=True, now_s=0.0)


def test_the_tables_have_an_end():
    ledger = make(1)
    for number in range(MAX_HOLDERS):
        holder = ledger.add_holder("decode", number)
    with pytest.raises(LeaseError, match="64 holders"):
        ledger.add_holder("decode", 1)
    for lease_id in range(1, 258):
        ledger.acquire_sequence(holder, lease_id, "r", create=True, now_s=0.0)
    with pytest.raises(LeaseError, match="257 leases"):
        ledger.acquire_sequence(holder, 999, "r", create=True, now_s=0.0)
    assert ledger.release_sequences([5]) == (EndedLease(5, 0),)
    ledger.acquire_sequence(holder, 999, "r" * 200 + "é", create=True, now_s=0.0)
    ledger.check()


def test_the_largest_ids_fit():
    ledger = make()
    holder = ledger.add_holder("prefill", 1)
    top = (1 << 64) - 1
    assert ledger.acquire_sequence(holder, top, "r", create=True, now_s=0.0).lease_id == top
    assert ledger.release_sequences([top]) == (EndedLease(top, 0),)


def with_cached(num_blocks: int) -> tuple[Ledger, int, tuple[Block, ...]]:
    """A ledger that keeps `num_blocks` blocks, published under keys 0, 1, 2 ..., for nobody."""
    ledger, holder, blocks = with_sequence(num_blocks, num_blocks * BLOCK_SIZE)
    publish = tuple(keyed(ordinal) for ordinal in range(num_blocks))
    ledger.update_sequences(holder, [SequenceUpdate(100, (), 0, publish)], now_s=0.0)
    ledger.release_sequences([100])
    return ledger, holder, blocks


def claim(ledger: Ledger, holder: int, lease_id: int, numbers: range, num_reserve_blocks: int = 0) -> SequenceLease:
    ledger.acquire_sequence(holder, lease_id, "r", create=True, now_s=0.0)
    return ledger.claim_prefix(holder, lease_id, [key(number) for number in numbers], num_reserve_blocks, now_s=0.0)


def test_published_blocks_outlive_their_lease_and_are_shared_by_the_next():
    ledger, holder, blocks = with_cached(3)
    assert counts(ledger) == (5, 0, 0, 3)
    lease = claim(ledger, holder, 200, range(5))
    assert (lease.blocks, lease.num_sealed_tokens) == (blocks, 3 * BLOCK_SIZE)
    assert claim(ledger, holder, 201, range(2)).blocks == blocks[:2]
    assert counts(ledger) == (5, 0, 3, 0)
    ledger.release_sequences([200])
    assert counts(ledger) == (5, 0, 2, 1)


def test_a_run_ends_at_the_first_key_that_nobody_has():
    ledger, holder, blocks = with_cached(3)
    ledger.acquire_sequence(holder, 200, "r", create=True, now_s=0.0)
    lease = ledger.claim_prefix(holder, 200, [key(0), key(9), key(2)], 0, now_s=0.0)
    assert lease.blocks == blocks[:1]


def test_a_claim_can_be_made_longer_and_given_up():
    ledger, holder, blocks = with_cached(3)
    claim(ledger, holder, 200, range(1))
    assert ledger.claim_prefix(holder, 200, [key(0), key(1), key(2)], 0, now_s=0.0).blocks == blocks
    assert ledger.claim_prefix(holder, 200, [], 0, now_s=0.0) == SequenceLease(200, (), 0)
    assert counts(ledger) == (5, 0, 0, 3)


def test_a_lease_with_tokens_of_its_own_claims_nothing():
    ledger, holder, _ = with_cached(2)
    claim(ledger, holder, 200, range(1))
    own = ledger.lease_blocks(holder, 1, 0)
    ledger.update_sequences(holder, [SequenceUpdate(200, own, BLOCK_SIZE + 1)], now_s=0.0)
    assert len(ledger.claim_prefix(holder, 200, [key(0), key(1)], 0, now_s=0.0).blocks) == 2
    with pytest.raises(LeaseError, match=f"lease 200 is worked on by holder {holder}, not {holder + 1}"):
        ledger.claim_prefix(ledger.add_holder("prefill", 2), 200, [], 0, now_s=0.0)


def test_the_cached_go_last_and_the_end_of_a_sequence_before_its_beginning():
    ledger, holder, blocks = with_cached(3)
    assert {block.block_id for block in ledger.lease_blocks(holder, 5, 0)} == set(range(3, 8))
    taken = ledger.lease_blocks(holder, 2, 0)
    assert [block.block_id for block in taken] == [blocks[2].block_id, blocks[1].block_id]
    assert taken[0].generation == blocks[2].generation + 1
    assert claim(ledger, holder, 200, range(3)).blocks == blocks[:1]


def test_claims_leave_the_reserve_alone():
    ledger, holder, blocks = with_cached(3)
    ledger.lease_blocks(holder, 5, 0)
    assert claim(ledger, holder, 200, range(3), num_reserve_blocks=2).blocks == blocks[:1]
    assert claim(ledger, holder, 201, range(3), num_reserve_blocks=2).blocks == blocks[:1]  # leased: costs nothing


def test_of_equal_contents_one_is_published():
    ledger, holder, _ = with_cached(1)
    (own,) = ledger.lease_blocks(holder, 1, 0)
    ledger.acquire_sequence(holder, 200, "r", create=True, now_s=0.0)
    ledger.update_sequences(holder, [SequenceUpdate(200, (own,), BLOCK_SIZE, (keyed(0),))], now_s=0.0)
    ledger.release_sequences([200])
    assert counts(ledger) == (7, 0, 0, 1)


def test_only_what_is_sealed_in_full_is_published():
    ledger, holder, _ = with_sequence(2, BLOCK_SIZE + 1)
    with pytest.raises(LeaseError, match="lease 100 with 1 sealed blocks publishes block 1"):
        ledger.update_sequences(holder, [SequenceUpdate(100, (), 0, (keyed(1),))], now_s=0.0)
    for broken in (replace(keyed(0), key=b"key"), replace(keyed(0), parent=b""), replace(keyed(0), token_ids=(1,))):
        with pytest.raises(LeaseError, match=r"block 0 has \d tokens and keys of"):
            ledger.update_sequences(holder, [SequenceUpdate(100, (), 0, (broken,))], now_s=0.0)


def test_an_abandoned_lease_ends_when_its_holder_lets_go():
    ledger, holder, _ = with_sequence(2, 5)
    assert ledger.abandon_sequences([100, 999]) == ()
    assert counts(ledger) == (6, 0, 2, 0)
    assert ledger.update_sequences(holder, [SequenceUpdate(100, (), 0, let_go=True)], now_s=0.0) == frozenset()
    assert counts(ledger) == (8, 0, 0, 0)


def test_an_abandoned_lease_ends_with_its_holder():
    ledger, holder, _ = with_sequence(2, 5)
    ledger.abandon_sequences([100])
    ledger.drop_holder(holder)
    assert counts(ledger) == (8, 0, 0, 0)


def test_what_nobody_holds_is_abandoned_at_once():
    ledger, holder, _ = with_sequence(2, 5)
    ledger.update_sequences(holder, [SequenceUpdate(100, (), 0, let_go=True)], now_s=0.0)
    assert counts(ledger) == (6, 0, 2, 0)
    assert ledger.abandon_sequences([100]) == (EndedLease(100, 2),)
    assert counts(ledger) == (8, 0, 0, 0)


def test_a_lease_that_was_let_go_refuses_its_former_holder():
    ledger, holder, _ = with_sequence(2, 5)
    ledger.update_sequences(holder, [SequenceUpdate(100, (), 0, let_go=True)], now_s=0.0)
    assert ledger.update_sequences(holder, [SequenceUpdate(100, (), 6)], now_s=0.0) == {100}
