import itertools
from functools import partial

import pytest

from tandem.errors import LeaseError
from tandem.kv import blocks
from tandem.kv.blocks import MAX_GENERATION, TRANSITIONS, BlockRecord, BlockState

LEAD_TO = {
    blocks.give_back: BlockState.FREE,
    blocks.join_lease: BlockState.LEASED,
    blocks.share: BlockState.LEASED,
    partial(blocks.leave_lease, is_published=False): BlockState.FREE,
    partial(blocks.leave_lease, is_published=True): BlockState.CACHED,
}


def test_a_block_goes_round_and_gets_a_new_generation_each_time():
    record = BlockRecord()
    first = blocks.grant(record, holder_id=7)
    assert first == BlockRecord(BlockState.SPARE, generation=1, owner=7)
    leased = blocks.join_lease(first)
    assert leased == BlockRecord(BlockState.LEASED, generation=1, num_references=1)
    freed = blocks.leave_lease(leased, is_published=False)
    assert freed == BlockRecord(BlockState.FREE, generation=1)
    assert blocks.grant(freed, holder_id=8).generation == 2


def test_a_shared_block_is_free_when_the_last_lease_leaves():
    shared = blocks.share(BlockRecord(BlockState.LEASED, generation=3, num_references=1))
    once = blocks.leave_lease(shared, is_published=False)
    assert (once.state, once.num_references) == (BlockState.LEASED, 1)
    assert blocks.leave_lease(once, is_published=False).state is BlockState.FREE


def test_a_published_block_is_kept_and_has_the_same_generation_when_it_is_leased_again():
    cached = blocks.leave_lease(BlockRecord(BlockState.LEASED, generation=3, num_references=1), is_published=True)
    assert cached == BlockRecord(BlockState.CACHED, generation=3)
    assert blocks.share(cached) == BlockRecord(BlockState.LEASED, generation=3, num_references=1)
    assert blocks.grant(cached, holder_id=7) == BlockRecord(BlockState.SPARE, generation=4, owner=7)


def test_the_generation_never_becomes_that_of_a_block_never_given_out():
    assert blocks.grant(BlockRecord(generation=MAX_GENERATION), 1).generation == 1


@pytest.mark.parametrize(("step", "state"), list(itertools.product(LEAD_TO, BlockState)))
def test_only_transitions_of_the_table_are_possible(step, state):
    record = BlockRecord(state, generation=1)
    if LEAD_TO[step] in TRANSITIONS[state]:
        assert step(record).state is LEAD_TO[step]
    else:
        with pytest.raises(LeaseError, match=f"{state.name} cannot become"):
            step(record)
