"""The small parts: output buffer, states, rates, leases' loops, the pool."""

import asyncio
import itertools

import pytest

from services.gateway.leases import LeaseKeeper
from services.gateway.output import OutputBuffer, Piece, Usage, merged
from services.gateway.pool import PoolWatch
from services.gateway.rates import RateMeter, retry_delay_s
from services.gateway.requests import TRANSITIONS, Arrival, State, new_request
from services.gateway.validation import Limits, SamplingFields, resolve
from tandem.clock import ManualClock
from tandem.errors import DeadlineError, NotReadyError, SlowReaderError
from tandem.types import FinishReason, TokenLogprobs
from tests.support.gateway_fakes import settle
from tests.support.gateway_world import ByteTokenizer, FakeStore

USAGE = Usage(1, 2, 0)


def piece(index=0, text="a", tokens=(1,), **fields):
    return Piece(index, text, tokens, **fields)


async def test_unread_pieces_come_as_one_for_each_answer():
    buffer = OutputBuffer(2, 100)
    buffer.put(piece(1, "x", (7,)))
    buffer.put(piece(0, "a", (1,)))
    buffer.put(piece(1, "y", (8,), finish_reason=FinishReason.STOP, matched_stop="z", usage=USAGE))
    buffer.put(piece(0, "b", (2,)))
    assert await buffer.get() == piece(1, "xy", (7, 8), finish_reason=FinishReason.STOP, matched_stop="z", usage=USAGE)
    assert await buffer.get() == piece(0, "ab", (1, 2))
    buffer.put(piece(0, "", (), finish_reason=FinishReason.ABORT))
    assert (await buffer.get()).finish_reason is FinishReason.ABORT
    assert await buffer.get() is None


def test_merging_keeps_one_logprob_a_token():
    one, two = TokenLogprobs(-1.0), TokenLogprobs(-2.0)
    assert merged([piece(logprobs=(one,)), piece(logprobs=(two,))]).logprobs == (one, two)


async def test_the_bound_counts_what_is_unread():
    buffer = OutputBuffer(1, 3)
    for _ in range(3):
        buffer.put(piece())
    assert len((await buffer.get()).token_ids) == 3
    for _ in range(3):
        buffer.put(piece())
    with pytest.raises(SlowReaderError):
        buffer.put(piece())


async def test_an_error_comes_before_what_is_unread_and_the_first_stays():
    buffer = OutputBuffer(1, 10)
    buffer.put(piece())
    buffer.fail(DeadlineError("first"))
    buffer.fail(NotReadyError("second"))
    for _ in range(2):
        with pytest.raises(DeadlineError):
            await buffer.get()


async def test_a_reader_is_woken():
    buffer = OutputBuffer(1, 10)
    reader = asyncio.ensure_future(buffer.get())
    await settle()
    assert not reader.done()
    buffer.put(piece())
    assert await reader == piece()


def request_of(n=1):
    limits = Limits(256, 64, 8, 16, ())
    arrival = Arrival("r", (1, 2), resolve(SamplingFields(n=n), 2, 0, limits), 0, 0.0, 0, b"")
    return new_request(arrival, ByteTokenizer(), 10)


def test_the_first_answer_is_queued_and_the_others_held():
    assert [sequence.state for sequence in request_of(3).sequences] == [State.QUEUED, State.HELD, State.HELD]


@pytest.mark.parametrize(("start", "end"), [*itertools.product(State, State)])
def test_only_the_tables_transitions_are_allowed(start, end):
    sequence = request_of().sequences[0]
    sequence.state = start
    if end in TRANSITIONS[start]:
        sequence.to(end)
        assert sequence.state is end
    else:
        with pytest.raises(ValueError, match=r"answer 0 of r"):
            sequence.to(end)


def test_every_state_can_end_and_the_end_is_final():
    assert all(State.FINISHED in TRANSITIONS[state] for state in State if state is not State.FINISHED)
    assert TRANSITIONS[State.FINISHED] == frozenset()


def test_rates_forget_what_is_long_ago():
    clock = ManualClock(50.0)
    meter = RateMeter(clock)
    clock.advance(2)
    meter.add(10)
    assert meter.per_second() == pytest.approx(5.0)
    clock.advance(7)
    meter.add(20)
    clock.advance(1)
    assert meter.per_second() == pytest.approx(3.0)
    clock.advance(2.5)
    assert meter.per_second() == pytest.approx(2.0)
    clock.advance(100)
    assert meter.per_second() == 0.0
    assert meter.num_total == 30


@pytest.mark.parametrize(
    ("num_waiting", "rate", "delay_s"), [(256, 0.0, 1.0), (256, 1000.0, 1.0), (20, 1.0, 10.0), (256, 0.1, 30.0)]
)
def test_retry_delays(num_waiting, rate, delay_s):
    assert retry_delay_s(num_waiting, rate) == delay_s


async def test_releases_run_by_themselves():
    store = FakeStore()
    keeper = LeaseKeeper(store, itertools.count(1).__next__)
    task = asyncio.ensure_future(keeper.run_releases())
    try:
        for lease_id in (keeper.open(), keeper.open()):
            store.leases.add(lease_id)
            keeper.release(lease_id)
        await settle()
        assert store.leases == set()
        assert store.num_release_calls == 1
    finally:
        task.cancel()


async def test_renewals_run_three_times_in_a_ttl(monkeypatch):
    store = FakeStore()
    keeper = LeaseKeeper(store, itertools.count(1).__next__)
    lease_id = keeper.open()
    slept: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(seconds):
        slept.append(seconds)
        store.away = len(slept) == 2
        await real_sleep(0)

    monkeypatch.setattr("services.gateway.leases.asyncio.sleep", sleep)
    task = asyncio.ensure_future(keeper.run_renewals(lambda: 30.0))
    try:
        while len(slept) < 4:
            await real_sleep(0)
    finally:
        task.cancel()
    assert slept == [10.0] * len(slept)
    assert set(store.renewed) == {frozenset({lease_id})}
    assert len(store.renewed) == len(slept) - 2, "one failed, and it went on"


async def test_without_a_live_lease_there_is_nothing_to_renew():
    store = FakeStore()
    keeper = LeaseKeeper(store, itertools.count(1).__next__)
    await keeper.renew()
    keeper.release(keeper.open())
    await keeper.renew()
    assert store.renewed == []


async def test_the_pool_bounds_what_one_sequence_can_have():
    seen: list[bool] = []
    store = FakeStore(num_blocks=10, num_reserve_blocks=2)
    watch = PoolWatch(store, seen.append)
    with pytest.raises(NotReadyError):
        _ = watch.pool
    store.away = True
    assert await watch.poll() is False
    store.away = False
    assert await watch.poll() is True
    assert await watch.poll() is True
    assert watch.pool.max_tokens == 8 * 16
    assert watch.lease_ttl_s() == 30.0
    store.away = True
    assert await watch.poll() is False
    assert watch.pool.max_tokens == 8 * 16, "as last seen"
    assert seen == [False, True, False]
