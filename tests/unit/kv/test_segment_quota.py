"""Segments' blocks in a ledger: within their quota, at the cost of nobody who has less, and for prompts to take."""

import pytest

from tandem.kv.contents import DOMAIN_BYTES, domain_of, segment_namespace
from tandem.kv.journal import BlockRemoved, BlockStored
from tandem.kv.ledger import Ledger
from tandem.kv.outcomes import Withdrawal
from tandem.kv.store import KeyedBlock
from tandem.types import ContentKind
from tests.support.contents import entry, keyed, keyed_run, prompts_of
from tests.support.ledger_pool import NUM_BLOCKS, Pool

A = [entry("private:a", range(start, start + 8)) for start in (0, 100, 200)]  # two blocks each
B = [entry("private:b", range(start, start + 8)) for start in (0, 100, 200)]


@pytest.fixture
def pool() -> Pool:
    return Pool(max_segment_blocks=4)


def there(pool: Pool, *blocks: KeyedBlock) -> list[bool]:
    """Which of them are published."""
    known = {each.key for each in pool.ledger.published.stored()}
    return [each.key in known for each in blocks]


def test_the_longest_unused_goes_for_the_next(pool: Pool):
    for each in A[:2]:
        pool.keep(*each)
    assert len(pool.ledger.published.find([each.key for each in A[0]], now_s=1.0)) == 2
    pool.keep(*A[2])
    assert there(pool, *A[0], *A[1], *A[2]) == [True, True, False, False, True, True]
    statistics = pool.ledger.statistics()
    assert (statistics.num_segment_blocks, statistics.num_free_blocks) == (4, NUM_BLOCKS - 4)
    assert pool.ledger.published.num_evictions == 2
    pool.ledger.check()


def test_an_entry_goes_from_its_end(pool: Pool):
    long = entry("private:a", range(16))
    pool.keep(*long)
    pool.ledger.published.find([each.key for each in long], now_s=1.0)
    pool.keep(*entry("private:a", range(50, 54)))
    assert there(pool, *long) == [True, True, True, False]


def test_a_prompts_blocks_are_never_given_up_for_a_segments(pool: Pool):
    pool.keep(keyed(0), keyed(1))
    for each in (*A, *B):
        pool.keep(*each)
    assert there(pool, keyed(0), keyed(1)) == [True, True]


def test_prompts_take_segments_blocks_in_the_common_order(pool: Pool):
    first, last = (keyed_run(prompts_of("private:a"), range(start, start + 4)) for start in (500, 600))
    pool.keep(*first, now_s=1.0)
    pool.keep(*A[0], now_s=2.0)
    pool.keep(*last, now_s=3.0)
    assert pool.evict(4) == [first[0].key, A[0][1].key, A[0][0].key, last[0].key]


def test_what_is_in_use_leaves_no_room_and_what_finds_none_is_not_published(pool: Pool):
    lease_ids = [pool.compute(*each) for each in A[:2]]
    lost = pool.compute(*A[2])
    assert there(pool, *A[0], *A[1], *A[2]) == [True] * 4 + [False] * 2
    pool.ledger.release_sequences([lost])
    assert pool.ledger.statistics().num_free_blocks == NUM_BLOCKS - 4, "nothing is kept of what nobody can find"
    pool.ledger.release_sequences(lease_ids)


def test_a_domain_pushes_out_one_that_has_more_down_to_its_own_share(pool: Pool):
    for each in A[:2]:
        pool.keep(*each)
    for each in B:
        pool.keep(*each)
    assert there(pool, *A[0], *A[1]) == [False, False, True, True]
    assert there(pool, *B[0], *B[1], *B[2]) == [False] * 4 + [True] * 2


def test_a_clients_salts_are_one_domain(pool: Pool):
    pool.keep(*A[0])
    for number in range(6):
        pool.keep(*entry("private:b", range(4), client_salt=f"{number}"))
    assert there(pool, *A[0]) == [True, True]


def test_a_block_is_published_behind_what_is_published(pool: Pool):
    pool.keep(*A[0])
    pool.max_segment_blocks = 2
    long = entry("private:a", range(300, 312))
    pool.keep(*long)
    assert there(pool, *A[0], *long) == [False, False, True, True, False]
    pool.max_segment_blocks = 4
    rest = entry("private:b", range(16))
    pool.keep(*(KeyedBlock(0, *_but_ordinal(rest[2])), KeyedBlock(1, *_but_ordinal(rest[3]))))
    assert there(pool, *rest[2:]) == [False, False]


def _but_ordinal(keyed: KeyedBlock) -> tuple:
    return keyed.key, keyed.parent, keyed.namespace, keyed.token_ids, keyed.kind


def test_without_a_quota_none_are_kept():
    pool = Pool(max_segment_blocks=0)
    pool.keep(*A[0])
    assert pool.ledger.statistics().num_segment_blocks == 0


def test_the_quota_and_the_order_outlive_memd_and_a_smaller_one_is_reached_at_once(pool: Pool):
    pool.keep(*A[0], now_s=1.0)
    pool.keep(*A[1], now_s=2.0)
    pool.ledger.published.find([each.key for each in A[0]], now_s=3.0)
    pool.ledger = Ledger.open(pool.buffer)
    assert pool.ledger.statistics().num_segment_blocks == 4
    pool.ledger.published.cut_segments(3)
    assert there(pool, *A[0], *A[1]) == [True, True, True, False]
    pool.ledger.published.cut_segments(0)
    assert pool.ledger.statistics().num_free_blocks == NUM_BLOCKS
    pool.ledger.check()


def test_a_pinned_block_stays(pool: Pool):
    pool.keep(*A[0])
    assert pool.ledger.published.pin([each.key for each in A[0]], 2) == 2
    for each in A[1:]:
        pool.keep(*each)
    assert there(pool, *A[0], *A[1], *A[2]) == [True, True, False, False, True, True]


def test_whoever_watches_hears_of_what_was_given_up(pool: Pool):
    for each in A:
        pool.keep(*each)
    removed = [event for event in pool.ledger.published.journal.after(0, 99) if isinstance(event, BlockRemoved)]
    assert removed == [BlockRemoved(A[0][1].key), BlockRemoved(A[0][0].key)]


def test_a_namespace_goes_with_its_segments_and_no_others(pool: Pool):
    salted = entry("private:a", range(4), client_salt="x")
    pool.keep(*keyed_run(prompts_of("private:a"), range(4)))
    for each in (A[0], salted):
        pool.keep(*each)
    assert pool.ledger.published.withdraw(prompts_of("private:a")) == Withdrawal(3, 0)
    assert [event.key for event in pool.ledger.published.stored()] == [salted[0].key]


def test_a_domain_goes_whole_whatever_its_salts_and_leaves_nothing_to_find(pool: Pool):
    mine = [
        *keyed_run(prompts_of("private:a"), range(4)),
        *keyed_run(prompts_of("private:a", "x"), range(4)),
        *A[0],
        *entry("private:a", range(4), client_salt="x"),
    ]
    theirs = keyed_run(prompts_of("private:b"), range(4))
    for each in (mine[:1], mine[1:2], mine[2:4], mine[4:], theirs):
        pool.keep(*each)
    assert pool.ledger.published.withdraw_domain(domain_of(prompts_of("private:a"))) == Withdrawal(5, 0)
    assert there(pool, *mine) == [False] * 5
    assert all(not pool.ledger.published.find([each.key], 1.0) for each in mine)
    assert pool.ledger.published.stored() == (BlockStored(theirs[0].namespace, theirs[0].parent, theirs[0].key),)


def test_nobody_finds_what_another_domain_has_computed_of_the_same_tokens(pool: Pool):
    tokens = range(8)
    pool.keep(*entry("private:a", tokens))
    pool.keep(*keyed_run(prompts_of("private:a"), tokens))
    for other in (prompts_of("private:b"), prompts_of("private:a", "salt"), prompts_of("public")):
        for namespace in (other, segment_namespace(other)):
            keys = [each.key for each in keyed_run(namespace, tokens)]
            assert pool.ledger.published.find(keys, 1.0) == ()
            assert pool.ledger.published.find(keys[1:], 1.0) == ()
    swapped = keyed_run(prompts_of("private:a"), tokens, ContentKind.SEGMENT)
    assert {each.key for each in swapped}.isdisjoint(each.key for each in entry("private:a", tokens))


def test_namespaces_of_one_domain_end_alike_and_of_two_do_not():
    spaces = {domain: [prompts_of(domain), prompts_of(domain, "x")] for domain in ("private:a", "org:a", "public")}
    for domain, own in spaces.items():
        own += [segment_namespace(own[0]), segment_namespace(own[1])]
        assert len(set(own)) == 4, domain
        assert {domain_of(each) for each in own} == {own[0][-DOMAIN_BYTES:]}
    assert len({domain_of(own[0]) for own in spaces.values()}) == 3


def test_a_domain_never_pushes_out_one_that_has_less_or_as_much(pool: Pool):
    pool.keep(*B[0])
    pool.compute(*A[0])
    pool.compute(*A[1])
    assert there(pool, *B[0], *A[0], *A[1]) == [True] * 4 + [False] * 2
