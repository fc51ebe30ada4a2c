"""Prompts that begin alike share blocks; the fake model's answer depends on every slot of their context."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from tandem.types import AbortSequence, DropReason
from tests.support.fake_model import BLOCK_SIZE
from tests.support.fake_store import DECODE_HOLDER
from tests.support.phase_fakes import make_spec
from tests.support.prefill_bench import Bench, prefill_benches, tokens


@pytest.fixture
async def benches() -> AsyncIterator[Callable[..., Bench]]:
    async with prefill_benches() as make:
        yield make


async def test_a_prompt_shares_the_full_blocks_that_it_has_in_common_with_one_before(benches: Callable[..., Bench]):
    bench = benches()
    common = tokens(1, 10)
    specs = [make_spec(1, [*common, 5]), make_spec(2, [*common, 6, 7]), make_spec(3, tokens(2, 10))]
    assert await bench.run(*specs) == [0, 8, 0]
    assert bench.num_computed() == 11 + 4 + 10


@pytest.mark.parametrize("length", [BLOCK_SIZE, 3 * BLOCK_SIZE])
async def test_a_prompt_that_is_there_whole_computes_its_last_token(benches: Callable[..., Bench], length: int):
    bench = benches()
    assert await bench.run(make_spec(1, tokens(1, length)), make_spec(2, tokens(1, length))) == [0, length - 1]
    assert [len(rows.token_ids) for step in bench.rig.runner.steps for rows in step] == [length, 1]


async def test_a_block_that_was_copied_from_stays_as_it_is(benches: Callable[..., Bench]):
    """The second prompt goes on otherwise within the first one's last block, the third one as the first."""
    bench = benches()
    common = tokens(1, 10)
    specs = [make_spec(1, [*common, 5, 6]), make_spec(2, [*common, 7, 8]), make_spec(3, [*common, 5, 6, 9])]
    assert await bench.run(*specs) == [0, 10, 12]


async def test_a_copy_of_what_is_given_away_meanwhile_costs_the_lease(benches: Callable[..., Bench]):
    bench = benches(num_blocks=16, ahead_blocks=2)
    await bench.run(make_spec(1, tokens(1, 8)))
    await bench.store.release_sequences([1])
    bench.rig.runner.hold()
    bench.submit(make_spec(2, tokens(1, 8)))
    await bench.rig.runner.until_held()
    await bench.store.lease_blocks(DECODE_HOLDER, 16)
    bench.rig.runner.gate.set()
    assert await bench.until_dropped(2) is DropReason.LEASE_LOST
    assert 2 not in bench.prefilled
    assert len(bench.store.ledger.published.stored()) == 1  # the first block: nothing false was published


async def test_a_prompt_that_must_wait_for_blocks_does_not_count_on_a_copy(benches: Callable[..., Bench]):
    bench = benches(num_blocks=16, ahead_blocks=0)
    assert await bench.run(make_spec(1, tokens(1, 8)), make_spec(2, tokens(1, 8))) == [0, 4]


async def test_a_short_prompt_in_no_namespace_is_computed(benches: Callable[..., Bench]):
    bench = benches()
    assert await bench.run(make_spec(1, tokens(1, 4)), make_spec(2, tokens(1, 4)), namespace=b"") == [0, 0]


async def test_blocks_are_shared_after_their_lease_has_ended(benches: Callable[..., Bench]):
    bench = benches()
    await bench.run(make_spec(1, tokens(1, 13)))
    await bench.store.release_sequences([1])
    assert (await bench.store.statistics()).num_cached_blocks == 3
    assert await bench.run(make_spec(2, tokens(1, 13))) == [12]


async def test_another_namespace_shares_nothing(benches: Callable[..., Bench]):
    bench = benches()
    assert await bench.run(make_spec(1, tokens(1, 13)), namespace=b"one") == [0]
    assert await bench.run(make_spec(2, tokens(1, 13)), namespace=b"other") == [0]
    assert await bench.run(make_spec(3, tokens(1, 13)), namespace=b"") == [0]
    assert await bench.run(make_spec(4, tokens(1, 13)), namespace=b"one") == [12]


async def test_followers_wait_for_the_one_that_computes_what_they_share(benches: Callable[..., Bench]):
    bench = benches(chunk_tokens=8, ahead_blocks=32)
    common = tokens(1, 24)
    specs = [make_spec(number, [*common, number]) for number in range(1, 6)]
    for spec in specs:
        bench.submit(spec)
    await bench.until_prefilled(*specs)
    assert bench.num_computed() == 25 + 4 * 1


async def test_a_follower_goes_on_alone_when_its_leader_is_let_go(benches: Callable[..., Bench]):
    bench = benches(chunk_tokens=8, ahead_blocks=32)
    bench.rig.runner.hold()
    leader, follower = make_spec(1, [*tokens(1, 24), 1]), make_spec(2, [*tokens(1, 24), 2])
    bench.submit(leader)
    await bench.rig.runner.until_held()
    bench.submit(follower)
    for _ in range(20):
        await asyncio.sleep(0)
    bench.engine.command(bench.session, AbortSequence(1))
    bench.rig.runner.gate.set()
    await bench.until_prefilled(follower)
    assert bench.num_computed() <= 8 + 25


async def test_a_follower_can_be_let_go(benches: Callable[..., Bench]):
    bench = benches(chunk_tokens=8, ahead_blocks=32)
    bench.rig.runner.hold()
    leader, follower = make_spec(1, [*tokens(1, 24), 1]), make_spec(2, [*tokens(1, 24), 2])
    bench.submit(leader)
    await bench.rig.runner.until_held()
    bench.submit(follower)
    for _ in range(20):
        await asyncio.sleep(0)
    bench.engine.command(bench.session, AbortSequence(2))
    bench.rig.runner.gate.set()
    await bench.until_prefilled(leader)
    assert 2 not in bench.prefilled
    assert bench.engine.load().num_waiting == 0


async def test_waiting_prompts_do_not_keep_what_the_first_one_lacks(benches: Callable[..., Bench]):
    """The pool is full of cached blocks that a later prompt could share, and the first one needs nearly all of it."""
    bench = benches(num_blocks=16, max_sequences=2, ahead_blocks=0)
    await bench.run(make_spec(1, tokens(1, 40)))
    await bench.store.release_sequences([1])
    large, small = make_spec(2, tokens(2, 60), priority=1), make_spec(3, tokens(1, 40))
    bench.submit(small)
    bench.submit(large)
    await bench.until_prefilled(large)
    await bench.store.release_sequences([2])
    await bench.until_prefilled(small)


async def test_random_prompts_are_answered_right_in_a_small_pool(benches: Callable[..., Bench]):
    bench = benches(num_blocks=24, reserve_blocks=2, max_sequences=4, ahead_blocks=2)
    specs = [
        make_spec(number, [*tokens(number % 3, (number * 5) % 37), *tokens(number, number % 4 + 1)])
        for number in range(1, 60)
    ]
    for spec in specs:
        bench.submit(spec)
    for spec in specs:
        await bench.until_prefilled_with_retries(spec)
        await bench.store.release_sequences([spec.lease_id])
    num_tokens = sum(len(spec.token_ids) for spec in specs)
    assert bench.num_computed() < num_tokens
