"""Requests that reuse segments on their way through the gateway, and the entries that it has built behind them."""

import asyncio
from functools import partial
from typing import Any

import pytest
from prometheus_client import generate_latest

from services.gateway.building import LOWEST_PRIORITY, MAX_AT_ONCE, MAX_WAITING
from services.gateway.resumption import Origin, Resume, ResumedAnswer
from services.gateway.reuse import ReuseFields
from services.gateway.tenants import KeyedDirectory
from tandem.config.settings import GatewayConfig
from tandem.config.tenants import key_line
from tandem.types import (
    ContentKind,
    DecodeResult,
    DropReason,
    FinishReason,
    Phase,
    SegmentOutcome,
    SequenceOutput,
    SequenceSpec,
    Span,
)
from tests.support.gateway_fakes import Rig, read_all, settle, tokens_of
from tests.support.gateway_world import FakeStore, byte_model

LENGTH = FinishReason.LENGTH
PREFILL, DECODE = Phase.PREFILL, Phase.DECODE
A, B = b"ab"
DOCUMENT, OTHER = "a document " * 10, "and another " * 10
TEXT = f"{'x' * 64}{DOCUMENT}{OTHER}?"
DECLARED = ReuseFields(0.1, (DOCUMENT, OTHER))


def missed(text: str) -> SegmentOutcome:
    return SegmentOutcome(0, 0, len(text), False)


def found(text: str) -> SegmentOutcome:
    return SegmentOutcome(0, len(text) - 30, 30, True)


MISSED = (missed(DOCUMENT), missed(OTHER))
FOUND = (found(DOCUMENT), found(OTHER))
NUM_APPROXIMATE = len(DOCUMENT) + len(OTHER) - 60


async def new_rig(**settings: Any) -> Rig:
    config = GatewayConfig(**{"queue_policy": "fcfs", **settings})
    return await Rig(config, byte_model(4096), FakeStore(num_blocks=600)).up()


@pytest.fixture
async def rig() -> Rig:
    return await new_rig()


async def ask(rig: Rig, text: str = TEXT, **call: Any):
    return await rig.request(text, **{"reuse": DECLARED, "max_tokens": 4, **call})


def builds(rig: Rig) -> list[SequenceSpec]:
    return [spec for spec in rig.prefill.held.values() if spec.content_kind is ContentKind.SEGMENT]


async def finish_builds(rig: Rig) -> list[bytes]:
    """All that are wanted; the segments of those that came."""
    texts = []
    await settle()
    while held := builds(rig):
        for spec in held:
            texts.append(bytes(spec.token_ids[1:]))
            rig.prefilled(A, LENGTH, lease_id=spec.lease_id)
        await settle()
    return texts


async def test_what_a_declared_segment_lacks_is_built_behind_its_request(rig):
    request = await ask(rig, priority=3)
    client = rig.prefilled(A, segments=MISSED)
    assert rig.decode.held, "the client's answer comes first"
    await settle()
    document, other = builds(rig)
    assert document.token_ids == (client.reuse.first_token_id, *DOCUMENT.encode())
    assert other.token_ids == (client.reuse.first_token_id, *OTHER.encode())
    assert {document.cache_namespace, other.cache_namespace} == {client.reuse.namespace} != {client.cache_namespace}
    assert (document.priority, document.stop.max_tokens, document.reuse) == (LOWEST_PRIORITY, 1, None)
    rig.token(B, LENGTH)
    await read_all(request)
    await finish_builds(rig)
    await rig.assert_all_released()


async def test_what_is_found_or_there_exactly_is_not_built(rig):
    await ask(rig)
    rig.prefilled(A, LENGTH, segments=(found(DOCUMENT), SegmentOutcome(len(OTHER), 0, 0, False)))
    assert await finish_builds(rig) == []


async def test_an_undeclared_segment_is_built_on_the_second_sight(rig):
    for _ in range(2):
        assert await finish_builds(rig) == []
        await ask(rig, "word " * 30, reuse=ReuseFields(0.1))
        rig.prefilled(A, LENGTH, segments=(SegmentOutcome(0, 0, 150, False),))
    assert await finish_builds(rig) == [b"word " * 30]


async def test_a_segment_is_built_once_for_all_that_want_it(rig):
    for _ in range(3):
        await ask(rig)
    for _ in range(3):
        rig.prefilled(A, LENGTH, segments=MISSED)
    assert sorted(await finish_builds(rig)) == sorted([DOCUMENT.encode(), OTHER.encode()])


async def test_entries_that_nobody_keeps_are_built_ever_more_seldom(rig):
    built_at = []
    for number in range(32):
        await ask(rig)
        rig.prefilled(A, LENGTH, segments=(missed(DOCUMENT), found(OTHER)))
        if await finish_builds(rig):
            built_at.append(number)
    assert built_at == [0, 2, 6, 14, 30]
    await ask(rig)
    rig.prefilled(A, LENGTH, segments=FOUND)
    await ask(rig)
    rig.prefilled(A, LENGTH, segments=(missed(DOCUMENT), found(OTHER)))
    assert await finish_builds(rig) == [DOCUMENT.encode()], "it was of use meanwhile"


async def test_few_are_built_at_once_and_too_many_are_forgotten(rig):
    documents = [f"{number:03} " * 20 for number in range(MAX_WAITING + MAX_AT_ONCE + 1)]
    for part in (documents[:40], documents[40:]):
        await ask(rig, "".join(part), reuse=ReuseFields(0.1, tuple(part)), max_tokens=1)
        rig.prefilled(A, LENGTH, segments=tuple(map(missed, part)))
    await settle()
    assert len(builds(rig)) == MAX_AT_ONCE
    built = await finish_builds(rig)
    assert MAX_WAITING <= len(built) < len(documents)
    await rig.assert_all_released()


async def test_builds_wait_behind_clients_and_are_charged_to_their_tenant():
    rig = await new_rig(queue_policy="kvshare", prefill_backlog_tokens=1)
    await ask(rig)
    rig.prefilled(A, LENGTH, segments=MISSED)
    await rig.request("first " * 50, max_tokens=4)
    await rig.request("second " * 50, max_tokens=4)
    await settle()
    await rig.request("third " * 50, max_tokens=4)
    order = []
    while rig.prefill.held:
        order.append(rig.prefilled(A, LENGTH).content_kind)
        await settle()
    assert order[-2:] == [ContentKind.SEGMENT] * 2
    assert len(order) == 5


async def test_nobody_hears_of_builds(rig):
    request = await ask(rig)
    rig.prefilled(A, LENGTH, segments=MISSED)
    assert len(await read_all(request)) == 1
    before = metrics(rig)
    await settle()
    assert len(builds(rig)) == 2
    load = rig.orchestrator.load
    assert (load.num_waiting, load.num_prefilling, load.num_decoding) == (0, 0, 0)
    rig.prefilled(A, LENGTH)
    rig.drop(PREFILL, DropReason.PREEMPTED)
    await settle()
    assert metrics(rig) == before
    assert len(rig.observations.seen) == 1


async def test_builds_that_wait_for_a_phase_are_not_shown(rig):
    await ask(rig)
    rig.prefilled(A, LENGTH, segments=MISSED)
    rig.lose(PREFILL)
    await settle()
    assert rig.orchestrator.load.num_waiting == 0
    rig.connect(PREFILL)
    assert len(await finish_builds(rig)) == 2


def metrics(rig: Rig) -> list[str]:
    return [line for line in generate_latest(rig.registry).decode().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("again", [True, False], ids=["handed back", "its phase failed"])
async def test_a_build_that_does_not_succeed_is_dropped(rig, again):
    await ask(rig)
    rig.prefilled(A, LENGTH, segments=MISSED)
    await settle()
    for spec in builds(rig):
        rig.drop(PREFILL, DropReason.PREEMPTED if again else DropReason.FAILED, spec.lease_id)
    assert await finish_builds(rig) == []
    await rig.assert_all_released()
    await ask(rig)
    rig.prefilled(A, LENGTH, segments=MISSED)
    assert len(await finish_builds(rig)) == (2 if again else 0)


async def test_a_build_that_ends_its_phase_convicts_nobody_and_is_not_tried_again(rig):
    request = await ask(rig, max_tokens=40)
    rig.prefilled(A, segments=MISSED)
    rig.token(B)
    other = await rig.request("innocent", max_tokens=2)
    for _ in range(6):
        await settle()
        if builds(rig):
            rig.lose(PREFILL)
            rig.connect(PREFILL)
    assert len([spec for spec in rig.prefill.submitted if spec.content_kind is ContentKind.SEGMENT]) == 2
    rig.prefilled(A)
    while rig.decode.held:
        rig.token(B, LENGTH)
    assert [len(await read_all(each)) > 0 for each in (request, other)] == [True, True]
    await ask(rig)
    rig.prefilled(A, LENGTH, segments=MISSED)
    assert await finish_builds(rig) == []


async def test_nothing_is_built_while_draining(rig):
    await ask(rig)
    await ask(rig, TEXT.upper(), reuse=ReuseFields(0.1, (DOCUMENT.upper(),)))
    rig.prefilled(A, LENGTH, segments=MISSED)
    await settle()
    first = [spec.lease_id for spec in builds(rig)]
    draining = asyncio.ensure_future(rig.gateway.reception.drain(5.0))
    await settle()
    assert sorted(rig.prefill.aborted) == sorted(first)
    rig.prefilled(A, LENGTH, segments=(missed(DOCUMENT),))
    rig.obey_aborts()
    await draining
    assert builds(rig) == []
    await rig.assert_all_released()


async def test_quotas_are_not_for_builds(tmp_path):
    (tmp_path / "tenants").write_text(f'[small]\nkeys = ["{key_line("small")}"]\nmax_running = 1\nmax_kv_blocks = 32')
    config = GatewayConfig(queue_policy="fcfs")
    directory = partial(KeyedDirectory, tmp_path / "tenants", bytes(32))
    rig = await Rig(config, byte_model(4096), FakeStore(num_blocks=600), directory).up()
    await ask(rig, tenant="small")
    rig.prefilled(A, segments=MISSED)
    await settle()
    assert rig.decode.held
    assert len(builds(rig)) == 2
    await finish_builds(rig)
    waiting = await ask(rig, tenant="small")
    assert rig.orchestrator.load.num_waiting == 1, "its place is the first one's, until that has ended"
    rig.token(B, LENGTH)
    assert [spec.request_id for spec in rig.prefill.held.values()] == [waiting.request_id]


async def test_usage_says_what_was_reused_how(rig):
    request = await ask(rig, max_tokens=1)
    rig.prefilled(A, LENGTH, cached=32, segments=FOUND, num_publishable_tokens=64)
    (piece,) = await read_all(request)
    assert (piece.usage.num_cached_tokens, piece.usage.num_approximate_tokens) == (32, NUM_APPROXIMATE)
    start = 64 + len(DOCUMENT)
    assert [segment.span for segment in piece.usage.segments] == [Span(64, start), Span(start, start + len(OTHER))]
    assert rig.observations.seen[0].num_cached_tokens == 32 + NUM_APPROXIMATE


async def test_prompt_tokens_are_counted_by_where_their_kv_came_from(rig):
    await ask(rig, max_tokens=1, n=2)
    rig.prefilled(A, LENGTH, cached=32, segments=(found(DOCUMENT), missed(OTHER)), num_publishable_tokens=64)
    await settle()
    num_shared = (len(TEXT) - 1) // 16 * 16
    rig.prefilled(B, LENGTH, cached=num_shared, num_publishable_tokens=64)
    await finish_builds(rig)
    counted = {
        source: rig.registry.get_sample_value("tandem:prompt_tokens_by_source_total", {"source": source})
        for source in ("exact", "approximate", "recomputed", "computed")
    }
    num_approximate = len(DOCUMENT) - 30
    assert counted == {
        "exact": 32 + num_shared - num_approximate,
        "approximate": 2 * num_approximate,
        "recomputed": 30,
        "computed": len(TEXT) - 32 - len(DOCUMENT) + len(TEXT) - num_shared,
    }
    assert sum(counted.values()) == rig.registry.get_sample_value("tandem:prompt_tokens_total") == 2 * len(TEXT)


async def test_what_decode_may_publish_goes_with_the_sequence(rig):
    await ask(rig)
    rig.prefilled(A, segments=FOUND, num_publishable_tokens=64)
    (spec,) = rig.decode.held.values()
    assert (spec.num_publishable_tokens, spec.reuse) == (64, None)
    rig.drop(DECODE, DropReason.PREEMPTED)
    again = rig.prefill.submitted[-1]
    assert (again.num_publishable_tokens, again.reuse is not None, again.token_ids[-1]) == (None, True, A)
    rig.prefilled(B, segments=MISSED)
    (spec,) = rig.decode.held.values()
    assert spec.num_publishable_tokens is None, "it was computed whole this time"


async def test_what_decode_may_compute_anew_goes_with_the_sequence_wherever_it_is_sent(rig):
    """After each prefill what that one has left."""
    request = await ask(rig)
    first, second = (Span(70, 90), Span(95, 96)), (Span(80, 99),)
    rig.prefilled(A, segments=FOUND, num_publishable_tokens=64, approximate=first)
    assert [spec.approximate for spec in rig.decode.held.values()] == [first]
    rig.lose(DECODE)
    assert rig.prefill.submitted[-1].approximate == ()
    rig.prefilled(B, segments=FOUND, num_publishable_tokens=64, approximate=second)
    rig.connect(DECODE)
    ((lease_id, spec),) = rig.decode.held.items()
    assert spec.approximate == second
    outputs = (SequenceOutput(lease_id, A, num_refreshed=16), SequenceOutput(lease_id, B, None, LENGTH, 3))
    rig.decode.held.clear()
    rig.orchestrator.phase_result(DecodeResult(outputs))
    usage = (await read_all(request))[-1].usage
    assert (usage.num_refreshed_tokens, usage.num_approximate_tokens) == (19, NUM_APPROXIMATE)


async def test_several_answers_share_their_prompts_blocks_so_that_nobody_computes_them_anew(rig):
    await ask(rig, n=2)
    rig.prefilled(A, segments=FOUND, num_publishable_tokens=64, approximate=(Span(70, 90),))
    await settle()
    rig.prefilled(B, cached=96, num_publishable_tokens=64)
    assert [spec.approximate for spec in rig.decode.held.values()] == [(), ()]


async def test_a_request_that_is_resumed_goes_on_as_it_asked(rig):
    resume = Resume(Origin(7, 5, ""), (ResumedAnswer(0, (A, B)),))
    request = await ask(rig, resume=resume)
    (spec,) = rig.prefill.submitted
    assert (spec.reuse is not None, spec.token_ids[-2:]) == (True, (A, B))
    assert spec.token_ids[spec.reuse.spans[0].start :][: len(DOCUMENT)] == tuple(DOCUMENT.encode())
    rig.prefilled(A, segments=FOUND, num_publishable_tokens=64)
    rig.token(B, LENGTH)
    pieces = await read_all(request)
    assert tokens_of(pieces) == [A, B]
    assert pieces[-1].usage.num_approximate_tokens == NUM_APPROXIMATE


async def test_other_answers_share_what_answer_0_has(rig):
    request = await ask(rig, n=2, max_tokens=1)
    rig.prefilled(A, LENGTH, cached=32, segments=FOUND, num_publishable_tokens=64)
    await settle()
    sibling = rig.prefill.submitted[-1]
    assert (sibling.reuse, sibling.num_publishable_tokens) == (None, 64)
    num_shared = (len(TEXT) - 1) // 16 * 16
    rig.prefilled(B, LENGTH, cached=num_shared, num_publishable_tokens=64)
    usage = [piece.usage for piece in await read_all(request)]
    assert [each.num_approximate_tokens for each in usage] == [NUM_APPROXIMATE] * 2
    assert [each.num_cached_tokens for each in usage] == [32, num_shared - NUM_APPROXIMATE]
    assert await finish_builds(rig) == []
    await rig.assert_all_released()


async def test_an_answer_that_could_not_share_goes_as_answer_0_did(rig):
    await ask(rig, n=2, max_tokens=4)
    rig.store.away = True
    rig.prefilled(A, segments=FOUND, num_publishable_tokens=64)
    await settle()
    rig.store.away = False
    alone = rig.prefill.submitted[-1]
    assert alone.reuse == rig.prefill.submitted[0].reuse
    rig.lose(PREFILL)
    rig.connect(PREFILL)
    assert rig.prefill.submitted[-1].reuse == alone.reuse


async def test_a_lost_fork_goes_as_answer_0_did(rig):
    await ask(rig, n=2, max_tokens=4)
    rig.prefilled(A, segments=FOUND, num_publishable_tokens=64)
    await settle()
    assert rig.prefill.submitted[-1].reuse is None
    rig.drop(PREFILL, DropReason.LEASE_LOST)
    again = rig.prefill.submitted[-1]
    assert (again.reuse is not None, again.num_publishable_tokens) == (True, None)
