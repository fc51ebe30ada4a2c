"""Prompts that take parts of their KV from segments' entries.

The fake model's answer depends on every slot of its context, and a probe spoils what it stores: a token that was placed
wrongly, copied from what is another's by then, or not computed after a probe, shows in the answer.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import pytest

from tandem.kv.contents import namespace, segment_namespace
from tandem.reuse.plan import ReusePolicy
from tandem.types import AbortSequence, ContentKind, DropReason, SegmentOutcome, SegmentReuse, SequenceSpec, Span
from tests.support.fake_model import BLOCK_SIZE
from tests.support.fake_store import DECODE_HOLDER
from tests.support.phase_fakes import make_spec
from tests.support.prefill_bench import Bench, prefill_benches, tokens

FIRST = 96
POLICY = ReusePolicy(head_tokens=2, min_reused_tokens=8, max_computed_share=0.9)
SPACE = segment_namespace(namespace(b"tenant"))
BEFORE, DOCUMENT, BETWEEN, OTHER, QUESTION = tokens(2, 5), tokens(3, 21), tokens(4, 3), tokens(5, 16), tokens(6, 6)
PROMPT = [*BEFORE, *DOCUMENT, *BETWEEN, *OTHER, *QUESTION]
SPANS = (Span(5, 26), Span(29, 45))
NUM_FOUND = (19, 15)  # in full blocks of 4, of which the first token has a place


@pytest.fixture
async def benches() -> AsyncIterator[Callable[..., Bench]]:
    async with prefill_benches() as make:
        yield lambda **options: make(**{"num_blocks": 96, "policy": POLICY, "ahead_blocks": 32, **options})


def entry(lease_id: int, document: Sequence[int]) -> SequenceSpec:
    """As the gateway has one built."""
    spec = make_spec(lease_id, [FIRST, *document], max_tokens=1)
    return replace(spec, cache_namespace=SPACE, content_kind=ContentKind.SEGMENT)


def reusing(spec: SequenceSpec, *spans: Span, ratio: float = 0.25) -> SequenceSpec:
    return replace(spec, reuse=SegmentReuse(ratio, spans or SPANS, SPACE, FIRST))


async def build(bench: Bench, *documents: Sequence[int]) -> None:
    specs = [entry(900 + number, document) for number, document in enumerate(documents)]
    await bench.run(*specs)
    await bench.store.release_sequences([spec.lease_id for spec in specs])
    bench.rig.runner.steps.clear()
    bench.store.published.clear()


def computed_positions(bench: Bench) -> list[int]:
    return [position for step in bench.rig.runner.steps for rows in step for position in rows.at]


async def test_an_entry_is_published_as_a_segment_and_a_prompt_is_not(benches: Callable[..., Bench]) -> None:
    bench = benches()
    await bench.run(entry(1, DOCUMENT), make_spec(2, PROMPT))
    kinds = [(block.namespace == SPACE, block.kind) for block in bench.store.published]
    assert kinds == [(True, ContentKind.SEGMENT)] * 5 + [(False, ContentKind.PROMPT)] * (len(PROMPT) // BLOCK_SIZE)


async def test_without_entries_a_prompt_is_computed_and_published_whole(benches: Callable[..., Bench]) -> None:
    bench = benches(chunk_tokens=100)
    await bench.run(reusing(make_spec(1, PROMPT)))
    assert bench.prefilled[1].segments == (SegmentOutcome(0, 0, 21, found=False), SegmentOutcome(0, 0, 16, found=False))
    assert (bench.prefilled[1].num_publishable_tokens, bench.prefilled[1].approximate) == (None, ())
    assert bench.num_computed() == len(PROMPT)
    assert len(bench.store.published) == len(PROMPT) // BLOCK_SIZE


async def test_a_prompt_computes_what_it_does_not_reuse_and_a_share_of_what_it_does(
    benches: Callable[..., Bench],
) -> None:
    bench = benches(chunk_tokens=100)
    await build(bench, DOCUMENT, OTHER)
    await bench.run(reusing(make_spec(1, PROMPT)))
    covered = [*range(5, 24), *range(29, 44)]
    heads = [5, 6, 29, 30]
    best = [*range(35, 44)]  # a quarter of 34: the fake probe likes later tokens
    fresh = [position for position in range(len(PROMPT)) if position not in covered]
    assert bench.rig.segments.probed == [(tuple(fresh), len(PROMPT) - 44)]
    assert computed_positions(bench) == sorted({*fresh, *heads, *best})
    assert bench.prefilled[1].segments == (
        SegmentOutcome(0, 19 - 2, 2 + 2, found=True),
        SegmentOutcome(0, 15 - 2 - 9, 1 + 2 + 9, found=True),
    )
    assert bench.prefilled[1].num_cached_tokens == 0
    assert bench.prefilled[1].approximate == (Span(7, 24), Span(31, 35))


async def test_nothing_behind_the_first_placement_is_published(benches: Callable[..., Bench]) -> None:
    bench = benches()
    await build(bench, DOCUMENT, OTHER)
    await bench.run(reusing(make_spec(1, PROMPT)))
    assert bench.prefilled[1].num_publishable_tokens == 5
    assert [block.ordinal for block in bench.store.published] == [0]
    assert await bench.run(make_spec(2, PROMPT)) == [BLOCK_SIZE]
    assert len(bench.store.published) == 1 + len(PROMPT) // BLOCK_SIZE - 1


@pytest.mark.parametrize("chunk_tokens", [1, 7, 16])
async def test_probes_and_chosen_rows_keep_to_the_budget(benches: Callable[..., Bench], chunk_tokens: int) -> None:
    bench, whole = benches(chunk_tokens=chunk_tokens), benches(chunk_tokens=100)
    for each in (bench, whole):
        await build(each, DOCUMENT, OTHER)
        each.submit(reusing(make_spec(1, PROMPT)))
    for each in (bench, whole):
        await each.until_prefilled(make_spec(1, PROMPT))
    sizes = [sum(len(rows.token_ids) for rows in step) for step in bench.rig.runner.steps]
    assert max(sizes) <= chunk_tokens
    assert max(len(positions) for positions, _ in bench.rig.segments.probed) <= chunk_tokens
    assert sum(asked for _, asked in bench.rig.segments.probed) == whole.rig.segments.probed[0][1]
    assert computed_positions(bench) == computed_positions(whole)
    assert bench.engine.load().num_backlog_tokens == 0


async def test_at_a_ratio_of_zero_nobody_is_asked(benches: Callable[..., Bench]) -> None:
    bench = benches()
    await build(bench, DOCUMENT, OTHER)
    await bench.run(reusing(make_spec(1, PROMPT), ratio=0.0))
    assert bench.rig.segments.probed == []
    assert bench.num_computed() == len(PROMPT) - sum(NUM_FOUND) + 2 * POLICY.head_tokens


async def test_who_computes_all_asks_for_nothing_and_publishes(benches: Callable[..., Bench]) -> None:
    bench = benches()
    await build(bench, DOCUMENT, OTHER)
    await bench.run(reusing(make_spec(1, PROMPT), ratio=1.0))
    assert bench.store.num_finds == 0
    assert bench.num_computed() == len(PROMPT)
    assert len(bench.store.published) == len(PROMPT) // BLOCK_SIZE


async def test_an_exact_prefix_comes_first_and_its_part_of_a_block_too(benches: Callable[..., Bench]) -> None:
    """It ends within the first span; what it has of a block is copied, and the entry takes over there."""
    bench = benches(chunk_tokens=100)
    await build(bench, DOCUMENT, OTHER)
    await bench.run(make_spec(1, [*PROMPT[:14], 1, 1]))
    bench.rig.runner.steps.clear()
    assert await bench.run(reusing(make_spec(2, PROMPT))) == [14]
    assert min(computed_positions(bench)) == 14
    first, second = bench.prefilled[2].segments
    assert (first.num_exact, second.num_exact) == (14 - 5, 0)
    assert first.num_exact + first.num_approximate + first.num_computed == 21
    assert bench.prefilled[2].num_publishable_tokens == 14


async def test_what_is_there_exactly_needs_no_entry(benches: Callable[..., Bench]) -> None:
    bench = benches()
    await build(bench, DOCUMENT, OTHER)
    assert await bench.run(make_spec(1, PROMPT), reusing(make_spec(2, PROMPT))) == [0, 48]
    assert bench.prefilled[2].segments == (SegmentOutcome(21, 0, 0, found=True), SegmentOutcome(16, 0, 0, found=True))
    assert bench.prefilled[2].num_publishable_tokens is None


@pytest.mark.parametrize("spans", [(Span(0, 21),), (Span(0, 21), Span(21, 37))])
async def test_spans_from_the_first_token_to_the_last(benches: Callable[..., Bench], spans: tuple[Span, ...]) -> None:
    bench = benches(chunk_tokens=100)
    await build(bench, DOCUMENT, OTHER)
    prompt = [*DOCUMENT, *OTHER]
    await bench.run(reusing(make_spec(1, prompt), *spans))
    assert {0, len(prompt) - 1} <= set(computed_positions(bench)) < set(range(len(prompt)))
    assert bench.prefilled[1].num_publishable_tokens == 0
    assert bench.store.published == []


async def test_a_sequence_that_comes_back_with_an_answer_plans_anew(benches: Callable[..., Bench]) -> None:
    bench = benches(chunk_tokens=100)
    await build(bench, DOCUMENT, OTHER)
    spec = reusing(make_spec(1, PROMPT, output=tokens(7, 7)))
    await bench.run(spec)
    assert set(range(45, len(spec.token_ids))) <= set(computed_positions(bench))
    assert bench.num_computed() < len(spec.token_ids)
    assert bench.prefilled[1].segments[0].num_approximate > 0


async def test_part_of_an_entry_is_used_and_reported_as_none(benches: Callable[..., Bench]) -> None:
    """The gateway then has the rest built."""
    bench = benches()
    await build(bench, DOCUMENT[:14])
    await bench.run(reusing(make_spec(1, PROMPT)))
    assert bench.prefilled[1].segments[0].num_approximate > 0
    assert [outcome.found for outcome in bench.prefilled[1].segments] == [False, False]


async def test_another_namespaces_entries_are_not_found(benches: Callable[..., Bench]) -> None:
    bench = benches()
    await build(bench, DOCUMENT, OTHER)
    stranger = segment_namespace(namespace(b"another tenant"))
    await bench.run(replace(make_spec(1, PROMPT), reuse=SegmentReuse(0.25, SPANS, stranger, FIRST)))
    await bench.run(replace(make_spec(2, PROMPT), reuse=SegmentReuse(0.25, SPANS, SPACE, FIRST - 1)))
    assert not any(outcome.found for lease_id in (1, 2) for outcome in bench.prefilled[lease_id].segments)


async def test_an_entry_that_is_given_away_meanwhile_costs_the_lease(benches: Callable[..., Bench]) -> None:
    """And nothing is left behind: sent again, the prompt is computed."""
    bench = benches(num_blocks=64, ahead_blocks=16)
    await build(bench, DOCUMENT, OTHER)
    bench.rig.runner.hold()
    stranger = make_spec(2, tokens(8, 3))
    bench.submit(stranger)  # its step is under way while the prompt is planned
    await bench.rig.runner.until_held()
    bench.submit(reusing(make_spec(1, PROMPT)))
    for _ in range(50):
        await asyncio.sleep(0)
    assert bench.store.num_finds == 1
    taken = await bench.store.lease_blocks(DECODE_HOLDER, 64)
    bench.rig.runner.gate.set()
    assert await bench.until_dropped(1) is DropReason.LEASE_LOST
    assert 1 not in bench.prefilled
    assert [block.kind for block in bench.store.published] == []
    await bench.store.return_blocks(DECODE_HOLDER, taken)
    await bench.store.release_sequences([1, 2])
    await bench.run(reusing(make_spec(3, PROMPT)))
    assert not any(outcome.found for outcome in bench.prefilled[3].segments)


async def test_nobody_waits_for_blocks_that_will_not_be_published(benches: Callable[..., Bench]) -> None:
    bench = benches(chunk_tokens=4)
    await build(bench, DOCUMENT, OTHER)
    specs = [reusing(make_spec(1, PROMPT)), make_spec(2, PROMPT), reusing(make_spec(3, PROMPT)), make_spec(4, PROMPT)]
    bench.rig.runner.hold()
    bench.submit(specs[0])
    await bench.rig.runner.until_held()
    for spec in specs[1:]:
        bench.submit(spec)
    for _ in range(50):
        await asyncio.sleep(0)
    assert bench.engine.load().num_waiting == 3
    bench.rig.runner.gate.set()
    await bench.until_prefilled(*specs)
    assert [bench.prefilled[lease_id].num_cached_tokens for lease_id in (1, 2)] == [0, BLOCK_SIZE]
    assert bench.prefilled[4].num_cached_tokens >= BLOCK_SIZE


async def test_who_lacks_what_stays_approximate_does_not_look_twice(benches: Callable[..., Bench]) -> None:
    bench = benches(chunk_tokens=4)
    await build(bench, DOCUMENT, OTHER)
    bench.store.num_claims = 0
    bench.rig.runner.hold()
    prompt = [*DOCUMENT, *OTHER]
    bench.submit(reusing(make_spec(1, prompt), Span(0, 21), Span(21, 37)))
    await bench.rig.runner.until_held()
    bench.submit(make_spec(2, prompt))
    bench.rig.runner.gate.set()
    await bench.until_prefilled(make_spec(1, prompt), make_spec(2, prompt))
    assert bench.store.num_claims == 2


async def test_a_prompt_can_be_let_go_while_its_entries_are_asked_for(benches: Callable[..., Bench]) -> None:
    bench = benches()
    await build(bench, DOCUMENT, OTHER)
    bench.store.find_gate.clear()
    bench.submit(reusing(make_spec(1, PROMPT)))
    for _ in range(50):
        await asyncio.sleep(0)
    assert bench.store.num_finds == 1
    bench.engine.command(bench.session, AbortSequence(1))
    assert await bench.until_dropped(1) is DropReason.ABORTED
    bench.store.find_gate.set()
    await bench.run(reusing(make_spec(2, PROMPT)))
    assert bench.prefilled[2].segments[0].found


@pytest.mark.parametrize(
    ("reuse", "problem"),
    [
        (SegmentReuse(1.5, SPANS, SPACE, FIRST), "reuse.ratio"),
        (SegmentReuse(float("nan"), SPANS, SPACE, FIRST), "reuse.ratio"),
        (SegmentReuse(0.1, (Span(3, 9), Span(8, 12)), SPACE, FIRST), "reuse.spans[1]"),
        (SegmentReuse(0.1, (Span(3, 900),), SPACE, FIRST), "reuse.spans[0]"),
        (SegmentReuse(0.1, SPANS, SPACE, 97), "reuse.first_token_id"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    benches: Callable[..., Bench], reuse: SegmentReuse, problem: str
) -> None:
    bench = benches()
    bench.submit(replace(make_spec(1, PROMPT), reuse=reuse))
    assert await bench.until_dropped(1) is DropReason.FAILED
    assert problem in bench.messages[1]
    await bench.run(make_spec(2, PROMPT))


@pytest.mark.parametrize("seed", range(3))
async def test_random_prompts_in_a_small_pool_are_answered_right(benches: Callable[..., Bench], seed: int) -> None:
    """Entries are evicted at any time, and built again."""
    chance = random.Random(seed)
    bench = benches(num_blocks=40, max_sequences=3, ahead_blocks=2, chunk_tokens=9)
    documents = [tokens(10 + number, chance.randint(9, 30)) for number in range(4)]
    specs = []
    for number in range(1, 40):
        chosen = chance.sample(documents, chance.randint(1, 2))
        prompt, spans = tokens(chance.randint(20, 22), chance.randint(0, 6)), []
        for document in chosen:
            spans.append(Span(len(prompt), len(prompt) + len(document)))
            prompt = [*prompt, *document, *tokens(number, chance.randint(0, 3))]
        prompt = [*prompt, number]
        is_entry = chance.random() < 0.25
        specs.append(entry(number, chosen[0]) if is_entry else reusing(make_spec(number, prompt), *spans))
    for spec in specs:
        bench.submit(spec)
    for spec in specs:
        await bench.until_prefilled_with_retries(spec)
        await bench.store.release_sequences([spec.lease_id])
    outcomes = [outcome for spec in specs for outcome in bench.prefilled[spec.lease_id].segments]
    assert sum(outcome.num_approximate for outcome in outcomes) > 0
    assert (await bench.store.statistics()).num_sequences == 0
