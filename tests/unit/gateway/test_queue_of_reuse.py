"""What the queue expects of prompts that reuse segments: their work, and what of them others will find."""

from dataclasses import replace

import pytest

from services.gateway.queue import SequenceQueue
from services.gateway.quotas import TenantQuotas
from services.gateway.requests import Arrival, Sequence, new_request
from services.gateway.reuse import PromptReuse
from services.gateway.validation import ResolvedRequest
from tandem.clock import ManualClock
from tandem.config.tenants import Quotas
from tandem.kv.cache_store import CacheNews
from tandem.kv.contents import block_keys
from tandem.kv.journal import BlockRemoved, BlockStored
from tandem.reuse.segments import Segment, SegmentOrigin, segment_key
from tandem.routing.published import PublishedBlocks, PublishedPrefixes
from tandem.scheduler.dispatch import Dispatcher
from tandem.scheduler.fcfs import first_come_first_served
from tandem.types import (
    ContentKind,
    FinishReason,
    Prefilled,
    SamplingSpec,
    SegmentOutcome,
    SegmentReuse,
    SequenceOutput,
    Span,
    StopSpec,
)
from tests.support.gateway_world import BLOCK_SIZE, ByteTokenizer

SPAN = Span(64, 264)
RATIO = 0.1
NUM_SAVED = 200 - 20 - 16
PROMPT = tuple(number % 200 for number in range(300))
FOUND, MISSED = SegmentOutcome(0, 170, 30, True), SegmentOutcome(0, 0, 200, False)


class Line:
    """A queue before a prefill that takes everything at once."""

    def __init__(self) -> None:
        quotas = TenantQuotas.create(lambda _tenant: Quotas(), lambda: BLOCK_SIZE, ManualClock(0.0))
        view = PublishedPrefixes(lambda: 1000, PublishedBlocks(lambda: 1000))
        dispatcher: Dispatcher[Sequence] = Dispatcher(first_come_first_served(), view, 100_000)
        self.dispatcher = dispatcher
        self.queue = SequenceQueue(dispatcher, quotas, lambda: BLOCK_SIZE, lambda: 0)

    def send(self, prompt: tuple[int, ...] = PROMPT, *, reuses: bool) -> Sequence:
        sequence = new_request(arrival(prompt, reuses), ByteTokenizer(), 100).sequences[0]
        self.queue.push(sequence)
        assert self.queue.take() is sequence
        return sequence

    def hear_stored(self, token_ids: tuple[int, ...]) -> None:
        events = (BlockStored(b"prompts", b"prompts", key) for key in keys_of(token_ids))
        self.queue.hear(CacheNews(tuple(events), None, BLOCK_SIZE))

    def work_of(self, prompt: tuple[int, ...] = PROMPT, *, reuses: bool = False) -> int:
        sequence = self.send(prompt, reuses=reuses)
        work_tokens = self.dispatcher.sent_work_tokens(sequence)
        self.queue.put_off(sequence)
        return work_tokens

    def prefilled(self, sequence: Sequence, outcome: SegmentOutcome, num_publishable_tokens: int | None) -> None:
        entry = Prefilled(output(1), 0.0, 0.0, 0, (outcome,), num_publishable_tokens)
        self.queue.leave_prefill(sequence, entry)
        sequence.note_prefilled(entry)
        sequence.push(output(1), 0.0)


def keys_of(token_ids: tuple[int, ...]) -> tuple[bytes, ...]:
    return block_keys(b"prompts", token_ids, BLOCK_SIZE)


def output(token_id: int) -> SequenceOutput:
    return SequenceOutput(1, token_id, None, FinishReason.NONE)


def arrival(prompt: tuple[int, ...], reuses: bool) -> Arrival:
    tokens = prompt[SPAN.start : SPAN.end]
    segment = Segment(SPAN.start, tokens, segment_key(b"segments", tokens), SegmentOrigin.DECLARED)
    reuse = PromptReuse(SegmentReuse(RATIO, (SPAN,), b"segments", 0), (segment,))
    resolved = ResolvedRequest(SamplingSpec(), StopSpec(max_tokens=8), (), frozenset(), 1)
    return Arrival("r", prompt, resolved, 0, 0.0, 0, b"prompts", reuse=reuse if reuses else None)


@pytest.fixture
def line() -> Line:
    return Line()


def test_what_is_known_to_be_found_is_less_work(line):
    other = (*range(64), *PROMPT[SPAN.start : SPAN.end], *range(50))
    line.prefilled(line.send(reuses=True), FOUND, 64)
    assert line.work_of(other) == len(other) - 64
    assert line.work_of((200, *other[1:]), reuses=True) == len(other) - NUM_SAVED
    line.prefilled(line.send(reuses=True), MISSED, None)
    assert line.work_of((201, *other[1:]), reuses=True) == len(other)


def test_an_entry_that_was_built_is_known_until_the_cache_is_gone(line):
    line.queue.note_entry(segment_key(b"segments", PROMPT[SPAN.start : SPAN.end]))
    assert line.work_of(reuses=True) == len(PROMPT) - NUM_SAVED
    line.queue.forget_entries()
    assert line.work_of(reuses=True) == len(PROMPT)


def test_what_may_turn_out_approximate_is_promised_to_nobody(line):
    line.send(reuses=True)
    assert line.work_of() == len(PROMPT) - SPAN.start


@pytest.mark.parametrize(("outcome", "num_publishable"), [(FOUND, 80), (MISSED, None)])
def test_others_are_promised_what_is_exact_for_certain_and_what_memd_tells_beyond(line, outcome, num_publishable):
    line.prefilled(line.send(reuses=True), outcome, num_publishable)
    assert line.work_of() == len(PROMPT) - SPAN.start
    line.hear_stored(PROMPT[:288])
    assert line.work_of() == len(PROMPT) - 288


def test_a_next_turn_is_promised_the_answer_that_memd_tells_of(line):
    sequence = line.send(reuses=False)
    for token_id in range(30):
        sequence.push(output(token_id), 0.0)
    turn = (*sequence.token_ids, 5)
    line.hear_stored(sequence.token_ids[:320])
    line.queue.retire(sequence)
    assert line.work_of(turn) == len(turn) - 320
    line.queue.hear(CacheNews((BlockRemoved(keys_of(turn)[10]),), None, BLOCK_SIZE))
    line.queue.leave_prefill(sequence, None)
    assert line.work_of(turn) == len(turn) - 160, "it was given away, and nobody computes it"


def test_a_build_promises_nothing(line):
    sequence = new_request(
        replace(arrival(PROMPT, reuses=False), content_kind=ContentKind.SEGMENT), ByteTokenizer(), 100
    ).sequences[0]
    line.queue.push(sequence)
    assert line.queue.take() is sequence
    assert line.work_of() == len(PROMPT)
