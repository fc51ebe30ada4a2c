"""Approximate KV that is computed anew beside decode's steps.

The fake model's answer depends on every slot of the context, so the tests spoil what is approximate: only what was
computed anew can give the right token.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from services.decode.refreshes import Refreshes, policy_of
from tandem.config.settings import ColocatedConfig, DecodeConfig
from tandem.model.batch import SequenceRows
from tandem.reuse.plan import Scores
from tandem.reuse.refresh import RefreshPolicy
from tandem.types import DropReason, SequenceSpec, Span, Submit
from tests.support.decode_bench import Bench, decode_benches, handed_over, prompt
from tests.support.fake_model import continuation

NUM_PROMPT = 24
APPROXIMATE = (Span(6, 11), Span(13, 16))
NUM_STALE = 8
POLICY = RefreshPolicy(every_tokens=4, num_tokens=5)


@pytest.fixture
async def benches() -> AsyncIterator[Callable[..., Bench]]:
    async with decode_benches() as make:
        yield lambda policy=POLICY, step_tokens=1000, **options: make(
            refreshes=Refreshes(policy, step_tokens), **options
        )


def approximate(lease_id: int, max_tokens: int = 14, spans: Sequence[Span] = APPROXIMATE) -> SequenceSpec:
    spec = handed_over(lease_id, prompt(lease_id, NUM_PROMPT), max_tokens=max_tokens)
    return replace(spec, num_publishable_tokens=6, approximate=tuple(spans))


def passes(bench: Bench) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """Positions of the rows that were computed anew, and of the running rows of each step."""
    steps = [[tuple(rows.at) for rows in step] for step in bench.rig.runner.steps]
    anew = [step[0] for step in steps if step[0][-1] < NUM_PROMPT]
    return anew, [[row[-1] for row in step] for step in steps if step[0][-1] >= NUM_PROMPT]


async def finished(bench: Bench, *specs: SequenceSpec) -> None:
    for spec in specs:
        await bench.submit(spec)
    await bench.until(lambda: len(bench.finished) == len(specs))
    for spec in specs:
        expected = continuation(spec.token_ids[: spec.num_prompt_tokens], spec.stop.max_tokens)
        assert bench.outputs[spec.lease_id] == expected[spec.num_output_tokens :]


async def test_an_answer_asks_after_so_many_tokens_and_what_it_looks_at_most_is_computed(
    benches: Callable[..., Bench],
) -> None:
    bench = benches()
    await finished(bench, approximate(1))
    assert bench.rig.segments.looked == [(24, 25, 26, 27), (28, 29, 30, 31)]
    anew, running = passes(bench)
    assert anew == [(9, 10, 13, 14, 15), (6, 7, 8)], "the fake look likes later tokens"
    assert running == [[position] for position in range(NUM_PROMPT, NUM_PROMPT + 13)]
    told = bench.num_refreshed[1]
    assert {index: count for index, count in enumerate(told) if count} == {4: 5, 8: 3}
    assert bench.rig.metrics.refreshed_tokens._value.get() == NUM_STALE


async def test_a_refresh_comes_before_the_token_that_is_told_with_it(
    benches: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is approximate is spoilt after the look, so that the tokens behind it need the refresh."""
    bench = benches(policy=RefreshPolicy(4, NUM_STALE))
    spec = approximate(1)
    await bench.prefill(spec)
    look, blocks = bench.rig.segments.look, bench.store.leases[1].blocks

    def look_and_spoil(rows: SequenceRows) -> Scores:
        scores = look(rows)
        for span in APPROXIMATE:
            for position in range(span.start, span.end):
                bench.slots.tokens[blocks[position // 4].block_id, position % 4] = -3
        return scores

    monkeypatch.setattr(bench.rig.segments, "look", look_and_spoil)
    bench.engine.command(bench.session, Submit(spec))
    await bench.until(lambda: 1 in bench.finished)
    assert bench.outputs[1] == continuation(spec.token_ids[:NUM_PROMPT], 14)[1:]


async def test_one_asks_at_a_time_and_who_has_waited_longest_is_next(benches: Callable[..., Bench]) -> None:
    bench = benches(policy=RefreshPolicy(2, 1), num_blocks=200)
    bench.rig.runner.hold()
    specs = [approximate(lease_id, max_tokens=40) for lease_id in range(1, 7)]
    await finished_after_gate(bench, specs)
    assert len(bench.rig.segments.looked) <= len(bench.rig.controller.steps)
    told = [sum(bench.num_refreshed[spec.lease_id]) for spec in specs]
    assert min(told) >= 3
    assert max(told) - min(told) <= 2


async def finished_after_gate(bench: Bench, specs: Sequence[SequenceSpec]) -> None:
    for spec in specs:
        await bench.submit(spec)
    bench.rig.runner.gate.set()
    await bench.until(lambda: len(bench.finished) == len(specs))


@pytest.mark.parametrize("step_tokens", [2, 3, 6])
async def test_it_takes_what_the_running_rows_leave_of_a_step(benches: Callable[..., Bench], step_tokens: int) -> None:
    bench = benches(step_tokens=step_tokens)
    await finished(bench, approximate(1, max_tokens=30))
    assert sum(bench.num_refreshed[1]) == NUM_STALE
    assert max(len(positions) for positions in bench.rig.segments.looked) <= step_tokens - 1
    anew, _ = passes(bench)
    assert max(map(len, anew)) <= step_tokens - 1
    assert sum(anew, ()) == (9, 10, 13, 14, 15, 6, 7, 8)
    assert max(step.num_tokens for step in bench.rig.controller.steps) <= step_tokens
    assert {step.num_sequences for step in bench.rig.controller.steps} == {1}


async def test_where_running_rows_take_all_nothing_is_refreshed(benches: Callable[..., Bench]) -> None:
    bench = benches(step_tokens=1)
    await finished(bench, approximate(1))
    assert (sum(bench.num_refreshed[1]), bench.rig.segments.looked) == (0, [])


async def test_it_is_off_unless_it_is_asked_for(benches: Callable[..., Bench]) -> None:
    for config in (DecodeConfig(), ColocatedConfig()):
        assert policy_of(config) is None
    assert policy_of(DecodeConfig(refresh_every=8, refresh_tokens=3)) == RefreshPolicy(8, 3)
    bench = benches(policy=None)
    await finished(bench, approximate(1))
    assert (sum(bench.num_refreshed[1]), bench.rig.segments.looked) == (0, [])


async def test_exact_sequences_ask_nothing_and_step_as_ever(benches: Callable[..., Bench]) -> None:
    steps = []
    for policy in (None, POLICY):
        bench = benches(policy=policy)
        await finished(bench, handed_over(1, prompt(1, NUM_PROMPT), max_tokens=14))
        steps.append(bench.rig.runner.steps)
        assert (bench.rig.segments.looked, sum(bench.num_refreshed[1])) == ([], 0)
    assert steps[0] == steps[1]


async def test_a_sequence_that_comes_from_another_prefill_goes_on_from_there(benches: Callable[..., Bench]) -> None:
    """As after decode's end: its answer has begun, and what is approximate is what that prefill left."""
    bench = benches()
    answer = continuation(prompt(1, NUM_PROMPT), 30)
    spec = approximate(1, max_tokens=30, spans=[Span(8, 10)])
    spec = replace(spec, token_ids=(*spec.token_ids[:NUM_PROMPT], *answer[:20]))
    await finished(bench, spec)
    assert bench.rig.segments.looked == [tuple(range(NUM_PROMPT + 19, NUM_PROMPT + 23))]
    assert passes(bench)[0] == [(8, 9)]


async def test_a_sequence_that_is_let_go_takes_its_refresh_with_it(benches: Callable[..., Bench]) -> None:
    bench = benches()
    await bench.submit(approximate(1, max_tokens=500))
    await bench.until(lambda: len(bench.outputs.get(1, ())) >= 3)
    bench.rig.runner.hold()
    await bench.rig.runner.until_held()
    bench.rig.runner.failures.append(RuntimeError("a bad step"))
    bench.rig.runner.gate.set()
    await bench.until(lambda: 1 in bench.dropped)
    assert bench.dropped[1].reason is DropReason.FAILED
    await finished(bench, approximate(2))
    assert sum(bench.num_refreshed[2]) == NUM_STALE


@pytest.mark.parametrize(
    ("num_publishable", "spans"),
    [
        pytest.param(None, [Span(6, 11)], id="everything is published"),
        pytest.param(7, [Span(6, 11)], id="part of it is"),
        pytest.param(6, [Span(6, 11), Span(10, 12)], id="out of order"),
        pytest.param(6, [Span(6, 6)], id="empty"),
        pytest.param(6, [Span(20, 25)], id="of the answer"),
    ],
)
async def test_what_others_could_have_is_never_written(
    benches: Callable[..., Bench], num_publishable: int | None, spans: Sequence[Span]
) -> None:
    bench = benches()
    spec = replace(approximate(1, spans=spans), num_publishable_tokens=num_publishable)
    await bench.submit(spec)
    await bench.until(lambda: 1 in bench.dropped)
    assert bench.dropped[1].reason is DropReason.FAILED
    assert "approximate[" in bench.dropped[1].message
    assert bench.rig.runner.steps == []


async def test_rows_of_a_refresh_rise(benches: Callable[..., Bench]) -> None:
    """As every step's do, whatever the order of their scores."""
    bench = benches(policy=RefreshPolicy(3, 4))
    await finished(bench, approximate(1))
    for rows in passes(bench)[0]:
        assert all(first < second for first, second in pairwise(rows))
