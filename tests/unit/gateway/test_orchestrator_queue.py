"""Who is taken on, and whose turn is next."""

import pytest

from tandem.errors import (
    DeadlineError,
    DuplicateRequestError,
    QueueFullError,
    TandemError,
)
from tandem.types import DropReason, FinishReason, Phase
from tests.support.gateway_fakes import Rig, read_all, rig_with, text_of

STOP, LENGTH, ABORT = FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT
PREFILL, DECODE = Phase.PREFILL, Phase.DECODE
A, B, C = b"abc"


@pytest.fixture
async def rig() -> Rig:
    return await Rig().up()


async def test_a_preempted_sequence_stands_before_younger_ones():
    rig = await rig_with(max_running=1)
    old = await rig.request("old")
    await rig.request("young")
    rig.prefilled(A)
    rig.drop(DECODE, DropReason.PREEMPTED)
    assert rig.prefill.submitted[-1].request_id == old.request_id


async def test_an_answer_says_how_long_it_waited_until_it_was_first_sent():
    rig = await rig_with(max_running=1)
    first = await rig.request(max_tokens=3)
    second = await rig.request(max_tokens=3)
    rig.prefilled(A, LENGTH)
    sent_unix_ns = rig.prefill.submitted[-1].arrival_unix_ns
    rig.prefilled(A)
    arrived_unix_ns = rig.decode.submitted[-1].arrival_unix_ns
    rig.drop(DECODE, DropReason.PREEMPTED)
    rig.prefilled(B, LENGTH)
    (usage,) = [piece.usage for piece in await read_all(second) if piece.usage is not None]
    assert usage.queue_ms == (sent_unix_ns - arrived_unix_ns) / 1e6 > 0
    assert (await read_all(first))[-1].usage.queue_ms < usage.queue_ms


async def test_the_queue_has_a_bound_and_says_when_to_come_back():
    rig = await rig_with(max_running=1, max_waiting=2)
    kept = [await rig.request() for _ in range(3)]
    with pytest.raises(QueueFullError) as caught:
        await rig.request()
    assert caught.value.retry_delay_s == 1.0
    rig.prefilled(A, LENGTH)
    await read_all(kept[0])
    kept.append(await rig.request())
    rig.clock.advance(8)
    with pytest.raises(QueueFullError) as caught:
        await rig.request()
    assert caught.value.retry_delay_s == pytest.approx(8.0), "one request in 8 s, two in the queue"
    for request in kept:
        rig.gateway.frontend.cancel(request)
    await rig.assert_all_released()


async def test_refused_requests_are_counted_and_not_observed():
    rig = await rig_with(max_running=1, max_waiting=1)
    with pytest.raises(TandemError):
        await rig.request(top_p=2.0)
    kept = [await rig.request() for _ in range(2)]
    with pytest.raises(TandemError):
        await rig.request()
    counted = (
        rig.registry.get_sample_value("tandem:request_failure_total", {"code": code})
        for code in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")
    )
    assert list(counted) == [1, 1]
    assert rig.observations.seen == []
    for request in kept:
        rig.gateway.frontend.cancel(request)


async def test_sequences_that_come_back_take_nobodys_place_in_the_queue():
    rig = await rig_with(max_running=1, max_waiting=1)
    await rig.request()
    rig.prefilled(A)
    rig.lose(PREFILL)
    rig.lose(DECODE)
    await rig.request()
    with pytest.raises(QueueFullError):
        await rig.request()


async def test_no_more_than_max_running_are_in_the_phases():
    rig = await rig_with(max_running=2)
    for _ in range(4):
        await rig.request(max_tokens=2)
    assert (rig.orchestrator.load.num_waiting, len(rig.prefill.held)) == (2, 2)
    rig.prefilled(A)
    assert len(rig.prefill.held) == 1
    rig.token(B, LENGTH)
    assert len(rig.prefill.held) == 2


async def test_higher_priority_goes_first():
    rig = await rig_with(max_running=1)
    for priority in (0, 5, 1, 5):
        await rig.request(priority=priority)
    for _ in range(4):
        rig.prefilled(A, LENGTH)
    assert [spec.priority for spec in rig.prefill.submitted] == [0, 5, 5, 1]


async def test_a_running_request_id_is_refused_and_free_afterwards(rig):
    request = await rig.request(request_id="twin")
    with pytest.raises(DuplicateRequestError, match="twin"):
        await rig.request(request_id="twin")
    rig.prefilled(A, LENGTH)
    assert text_of(await read_all(request)) == "a"
    await rig.request(request_id="twin")


def sent(rig: Rig) -> list[str]:
    return [bytes(spec.token_ids[:1]).decode() for spec in rig.prefill.submitted]


async def test_a_tenant_that_fills_the_queue_shuts_out_nobody_else():
    rig = await rig_with(max_running=1, max_waiting=4)
    for _ in range(5):
        await rig.request(tenant="flood")
    with pytest.raises(QueueFullError):
        await rig.request(tenant="flood")
    for _ in range(2):
        await rig.request(tenant="other")
    with pytest.raises(QueueFullError):
        await rig.request(tenant="other")
    await rig.request(tenant="third")
    for _ in range(5):
        rig.prefilled(A, LENGTH)
    await rig.request(tenant="flood")


async def test_prefill_gets_a_bounded_number_of_tokens_behind_what_it_works_on():
    rig = await rig_with(prefill_backlog_tokens=20)
    for text in ("a" * 100, *(letter * 10 for letter in "bcdef")):
        await rig.request(text)
    assert sent(rig) == ["a", "b", "c"]
    rig.prefilled(A)
    assert sent(rig) == ["a", "b", "c", "d"]
    rig.lose(PREFILL)
    rig.connect(PREFILL)
    assert sent(rig)[4:] == ["b", "c", "d"], "what was lost is no backlog"


async def test_an_abort_is_backlog_until_prefill_has_let_go():
    rig = await rig_with(prefill_backlog_tokens=1)
    first, second = [await rig.request(letter * 10) for letter in "ab"]
    await rig.request("c" * 10)
    rig.gateway.frontend.cancel(second)
    assert sent(rig) == ["a", "b"]
    rig.obey_aborts()
    assert sent(rig) == ["a", "b", "c"]
    assert first.unfinished


async def test_the_shortest_work_goes_first_in_kvshare():
    rig = await rig_with(queue_policy="kvshare", max_running=1)
    for text in ("a", "b" * 400, "c" * 100, "d" * 5):
        await rig.request(text)
        rig.clock.advance(0.001)
    for _ in range(3):
        rig.prefilled(A, LENGTH)
    assert sent(rig) == ["a", "d", "c", "b"]


async def test_a_conversations_next_turn_goes_before_strangers():
    rig = await rig_with(queue_policy="longest-prefix", max_running=1)
    first = await rig.request("x" * 40, max_tokens=25)
    await rig.request("b" * 70)
    await rig.request("x" * 40 + "a" * 24 + "more")
    await rig.request("x" * 40 + "z" * 24 + "more")
    rig.prefilled(A)
    for _ in range(23):
        rig.token(A)
    rig.token(A, LENGTH)
    assert first.finished
    assert rig.prefill.submitted[-1].token_ids[40] == A, "its fourth block holds the answer"
    rig.prefilled(A, LENGTH)
    assert rig.prefill.submitted[-1].token_ids[40] == ord("z")


@pytest.mark.parametrize(("salt_of_the_last", "next_one"), [("", "x"), ("other", "s")])
async def test_what_is_expected_in_the_cache_is_the_same_namespaces(salt_of_the_last, next_one):
    rig = await rig_with(queue_policy="longest-prefix", max_running=1)
    await rig.request("x" * 40)
    await rig.request("s" * 40)
    await rig.request("x" * 40, cache_salt=salt_of_the_last)
    rig.prefilled(A, LENGTH)
    assert sent(rig)[-1] == next_one


async def test_a_memory_daemon_that_went_away_holds_no_prefixes():
    rig = await rig_with(queue_policy="longest-prefix", max_running=1)
    first = await rig.request("x" * 40)
    for text in ("s" * 40, "x" * 40):
        await rig.request(text)
    rig.store.away = True
    await rig.replica.pool.poll()
    rig.gateway.frontend.cancel(first)
    rig.obey_aborts()
    assert sent(rig) == ["x", "s"]


async def test_prefill_keeps_to_the_gateways_order_and_decode_to_that_of_arrival():
    rig = await rig_with(queue_policy="kvshare", max_running=1)
    for text in ("a", "b" * 400, "c"):
        await rig.request(text)
    arrivals = []
    for _ in range(3):
        rig.prefilled(A)
        arrivals.append(rig.decode.submitted[-1].arrival_unix_ns)
        rig.token(B, LENGTH)
    stamps = [spec.arrival_unix_ns for spec in rig.prefill.submitted]
    assert stamps == sorted(stamps)
    assert sorted(arrivals) == [arrivals[0], arrivals[2], arrivals[1]], "b came before c and went after it"


async def test_a_deadline_that_cannot_be_kept_is_refused_before_prefill():
    rig = await rig_with(max_running=1)
    await rig.request("a" * 100)
    late, soon, short = [
        await rig.request(letter * length, remaining_s=remaining_s)
        for letter, length, remaining_s in (("b", 400, 3.0), ("c", 400, 5.0), ("d", 10, 3.0))
    ]
    rig.prefilled(A, LENGTH, compute_ms=1000.0)  # 100 tokens a second
    with pytest.raises(DeadlineError, match="before the prompt"):
        await read_all(late)
    assert sent(rig) == ["a", "c"]
    rig.prefilled(A, LENGTH, compute_ms=4000.0)
    assert sent(rig) == ["a", "c", "d"]
    assert soon.finished
    rig.prefilled(A, LENGTH)
    assert short.finished
    await rig.assert_all_released()
