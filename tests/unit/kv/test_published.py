"""What a ledger does with the blocks that it keeps for their contents, beside claims."""

import pytest

from tandem.errors import NotFoundError, PinQuotaError
from tandem.kv.journal import BlockRemoved, BlockStored, CacheCleared
from tandem.kv.ledger import Ledger
from tandem.kv.outcomes import Withdrawal
from tandem.kv.store import CopySource, KeyedBlock, PromptTokens, SequenceUpdate
from tandem.types import Block
from tests.support.contents import NAMESPACE, block_tokens, key, keyed
from tests.support.ledger_pool import BLOCK_SIZE, NUM_BLOCKS, Pool

OTHER = b"O" * 16 + NAMESPACE[16:]  # in the same domain


@pytest.fixture
def pool() -> Pool:
    return Pool()


def other(number: int, ordinal: int = 0) -> KeyedBlock:
    """A block of another prompt."""
    return KeyedBlock(ordinal, key(number), OTHER, OTHER, block_tokens(number))


def test_what_is_published_again_goes_last(pool: Pool):
    pool.keep(keyed(0), keyed(1), keyed(2))
    pool.keep(other(50))
    pool.keep(keyed(0), keyed(1), keyed(2))  # computed once more by one that could not share it
    assert pool.evict(4) == [key(50), key(2), key(1), key(0)]


def test_only_the_end_of_a_prompt_is_published_again_and_its_beginning_is_used_anew(pool: Pool):
    pool.keep(keyed(0), keyed(1), keyed(2))
    pool.keep(other(50))
    lease_id = pool.compute(keyed(0), keyed(1))
    update = SequenceUpdate(lease_id, pool.ledger.lease_blocks(pool.holder, 1, 0), 3 * BLOCK_SIZE, (keyed(2),))
    pool.ledger.update_sequences(pool.holder, [update], now_s=1.0)
    pool.ledger.release_sequences([lease_id])
    assert pool.evict(4) == [key(50), key(2), key(1), key(0)]


def test_after_a_restart_the_longest_unused_goes_first_and_ends_before_beginnings(pool: Pool):
    pool.keep(keyed(0), keyed(1), now_s=1.0)
    pool.keep(other(50), now_s=2.0)
    pool.claim(0, 1, now_s=3.0)
    pool.ledger.release_sequences([pool.num_leases])
    pool.ledger = Ledger.open(pool.buffer)
    assert pool.evict(3) == [key(50), key(1), key(0)]


def prompt(*token_ids: int) -> PromptTokens:
    return PromptTokens(NAMESPACE, token_ids)


def test_the_block_that_goes_on_longest_alike_is_to_be_copied(pool: Pool):
    near = KeyedBlock(1, key(60), key(0), NAMESPACE, (10, 11, 99, 98))
    far = KeyedBlock(1, key(61), key(0), NAMESPACE, (10, 97, 12, 13))
    pool.keep(keyed(0), near)
    pool.keep(keyed(0), far)
    near_block = pool.claim(0, prompt=prompt(*block_tokens(0), 10, 11, 12, 13))
    assert near_block == CopySource(Block(1, 1), 2)
    assert pool.claim(0, prompt=prompt(*block_tokens(0), 10, 97, 5)).num_tokens == 2
    assert pool.claim(0, prompt=prompt(*block_tokens(0), 9)) is None
    assert pool.claim(0, prompt=prompt(*block_tokens(0))) is None, "nothing is lacking"


def test_a_prompt_may_begin_within_a_block(pool: Pool):
    pool.keep(keyed(0))
    assert pool.claim(prompt=prompt(0, 1, 7)) == CopySource(Block(0, 1), 2)
    assert pool.claim(prompt=PromptTokens(OTHER, (0, 1, 7))) is None


def test_what_was_copied_goes_last(pool: Pool):
    pool.keep(keyed(0))
    pool.keep(other(50))
    pool.claim(prompt=prompt(0, 1))
    assert pool.evict(2) == [key(50), key(0)]


def test_pinned_blocks_stay_until_they_are_withdrawn(pool: Pool):
    pool.keep(keyed(0), keyed(1))
    assert pool.ledger.published.pin([key(0), key(1)], 2) == 2
    assert pool.ledger.published.pin([key(0), key(1)], 2) == 0
    assert len(pool.ledger.lease_blocks(pool.holder, NUM_BLOCKS, 0)) == NUM_BLOCKS - 2
    pool.ledger = Ledger.open(pool.buffer)
    assert pool.ledger.statistics().num_pinned_blocks == 2
    assert pool.ledger.published.withdraw(NAMESPACE) == Withdrawal(2, 0)
    assert pool.ledger.statistics().num_pinned_blocks == 0
    assert len(pool.ledger.lease_blocks(pool.holder, NUM_BLOCKS, 0)) == 2
    pool.ledger.check()


def test_pins_are_refused_whole(pool: Pool):
    pool.keep(keyed(0), keyed(1))
    with pytest.raises(PinQuotaError, match=r"0 of 1 blocks that can be pinned are; 2 more need a larger memd.pin_fr"):
        pool.ledger.published.pin([key(0), key(1)], 1)
    with pytest.raises(NotFoundError, match="1 of 3 blocks are not in the cache"):
        pool.ledger.published.pin([key(0), key(1), key(2)], 9)
    assert pool.ledger.statistics().num_pinned_blocks == 0


def test_a_pinned_block_that_is_in_use_is_kept_when_its_lease_ends(pool: Pool):
    lease_id = pool.compute(keyed(0))
    pool.ledger.published.pin([key(0)], 1)
    pool.ledger.release_sequences([lease_id])
    assert pool.evict(0) == []
    assert len(pool.ledger.lease_blocks(pool.holder, NUM_BLOCKS, 0)) == NUM_BLOCKS - 1


def test_withdrawn_blocks_in_use_are_free_when_their_lease_ends(pool: Pool):
    lease_id = pool.compute(keyed(0), keyed(1))
    pool.keep(other(50))
    assert pool.ledger.published.withdraw(NAMESPACE) == Withdrawal(0, 2)
    assert pool.ledger.published.stored() == (BlockStored(OTHER, OTHER, key(50)),)
    pool.ledger.release_sequences([lease_id])
    statistics = pool.ledger.statistics()
    assert (statistics.num_free_blocks, statistics.num_cached_blocks) == (NUM_BLOCKS - 1, 1)
    pool.ledger.check()


def test_every_change_is_told(pool: Pool):
    pool.keep(keyed(0), keyed(1))
    pool.ledger.published.withdraw(OTHER)
    pool.ledger.published.withdraw(NAMESPACE)
    pool.keep(other(50))
    pool.ledger.published.withdraw_all()
    pool.ledger.published.withdraw_all()
    stored = [BlockStored(NAMESPACE, NAMESPACE, key(0)), BlockStored(NAMESPACE, key(0), key(1))]
    removed = [BlockRemoved(key(0)), BlockRemoved(key(1))]
    told = pool.ledger.published.journal.after(0, 99)
    assert told == (*stored, *removed, BlockStored(OTHER, OTHER, key(50)), CacheCleared())


def test_rows_end_where_prompts_part_or_were_found_oftener(pool: Pool):
    aside = KeyedBlock(2, key(60), key(1), NAMESPACE, block_tokens(60))
    pool.keep(keyed(0), keyed(1), keyed(2), keyed(3), now_s=1.0)
    pool.keep(keyed(0), keyed(1), aside, now_s=2.0)
    pool.claim(0, 1, 2, now_s=5.0)
    runs = pool.ledger.published.runs(7.0)
    rows = {run.key: (run.first_ordinal, run.num_blocks, run.num_hits, run.idle_s) for run in runs}
    assert rows == {
        key(1): (0, 2, 1, 2.0),
        key(2): (2, 1, 1, 2.0),
        key(3): (3, 1, 0, 6.0),
        key(60): (2, 1, 0, 5.0),
    }
    assert {run.key: run.num_leased_blocks for run in runs}[key(1)] == 2
