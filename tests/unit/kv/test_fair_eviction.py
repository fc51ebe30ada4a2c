"""Cached prompts of several domains: who gives up blocks when room is needed."""

import pytest

from tandem.kv.contents import domain_of
from tandem.kv.ledger import Ledger
from tandem.kv.store import KeyedBlock
from tests.support.contents import entry, keyed_run, prompts_of
from tests.support.ledger_pool import NUM_BLOCKS, Pool


def prompt(domain: str, start: int, num_blocks: int) -> tuple[KeyedBlock, ...]:
    return keyed_run(prompts_of(domain), range(start, start + 4 * num_blocks))


QUIET = prompt("private:quiet", 0, 2)
FLOOD = [prompt("private:flood", start, 2) for start in (100, 200, 300, 400)]
NAMES = {domain_of(prompts_of(f"private:{name}")): name for name in ("quiet", "flood", "third")}


@pytest.fixture
def pool() -> Pool:
    return Pool(max_segment_blocks=4)


def there(pool: Pool, blocks: tuple[KeyedBlock, ...]) -> int:
    known = {each.key for each in pool.ledger.published.stored()}
    return sum(each.key in known for each in blocks)


def whose(pool: Pool, num_blocks: int) -> list[str]:
    """In whose domains the blocks are that are given up for so many."""
    names = {each.key: NAMES[domain_of(each.namespace)] for each in pool.ledger.published.stored()}
    return [names[key] for key in pool.evict(num_blocks)]


def test_who_floods_pushes_out_its_own(pool: Pool) -> None:
    pool.keep(*QUIET, now_s=1.0)
    for number, each in enumerate(FLOOD):
        pool.keep(*each, now_s=2.0 + number)
    assert there(pool, QUIET) == 2
    assert [there(pool, each) for each in FLOOD] == [0, 2, 2, 2], "the longest unused of its own"


def test_down_to_equal_parts_and_then_from_both(pool: Pool) -> None:
    pool.keep(*QUIET)
    for each in FLOOD[:2]:
        pool.keep(*each)
    assert whose(pool, 2) == ["flood", "flood"]
    assert sorted(whose(pool, 2)) == ["flood", "quiet"]


def test_after_a_restart_too(pool: Pool) -> None:
    pool.keep(*QUIET, now_s=1.0)
    for each in FLOOD[:2]:
        pool.keep(*each, now_s=2.0)
    pool.ledger = Ledger.open(pool.buffer)
    assert whose(pool, 2) == ["flood", "flood"]


def test_what_the_largest_has_in_use_or_pinned_stays_and_the_next_gives_up(pool: Pool) -> None:
    pool.compute(*FLOOD[0])
    pool.keep(*FLOOD[1])
    pool.ledger.published.pin([each.key for each in FLOOD[1]], 2)
    pool.keep(*QUIET)
    assert whose(pool, 2) == ["quiet", "quiet"]
    assert whose(pool, 1) == []
    assert len(pool.ledger.lease_blocks(pool.holder, NUM_BLOCKS, 0)) == NUM_BLOCKS - 4


def test_what_is_in_use_counts_to_the_part(pool: Pool) -> None:
    pool.compute(*FLOOD[0])
    pool.keep(*FLOOD[1][:1])
    pool.keep(*QUIET)
    assert whose(pool, 1) == ["flood"]


def test_segments_count_to_the_part_of_their_domain(pool: Pool) -> None:
    pool.keep(*QUIET, now_s=1.0)
    pool.keep(*entry("private:quiet", range(50, 54)), now_s=2.0)
    pool.keep(*FLOOD[0], now_s=0.0)
    assert whose(pool, 1) == ["quiet"]
    assert sorted(whose(pool, 2)) == ["flood", "quiet"]
