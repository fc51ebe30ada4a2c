"""From the queue into prefill: forecasts that follow the cache, and how much prefill has at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.kv.cache_store import CacheNews
from tandem.kv.contents import block_keys
from tandem.kv.journal import BlockRemoved, BlockStored, CacheCleared
from tandem.routing.published import PublishedBlocks, PublishedPrefixes
from tandem.scheduler.dispatch import REFRESH_A_TURN, Claim, Dispatcher
from tandem.scheduler.fcfs import first_come_first_served
from tandem.scheduler.forecast import Forecast
from tandem.scheduler.longest_prefix import longest_prefix_first
from tandem.scheduler.waiting import WaitingEntry

BLOCK = 16
PROMPTS = st.lists(st.integers(0, 2), max_size=5)  # a block is a token


def view_of(num_blocks) -> PublishedPrefixes:
    return PublishedPrefixes(lambda: num_blocks, PublishedBlocks(lambda: num_blocks))


def news(*events) -> CacheNews:
    return CacheNews(events, None, BLOCK)


def stored(keys) -> CacheNews:
    return news(*(BlockStored(b"ns", b"ns", key) for key in keys))


def keys_of(token_ids):
    return block_keys(b"ns", token_ids, 1)


@given(st.lists(PROMPTS, max_size=12), st.lists(PROMPTS, max_size=12))
def test_forecasts_follow_the_cache(waiting, sent):
    view = view_of(6)
    forecast: Forecast[int] = Forecast(view)
    known = {number: forecast.enter(number, keys_of(prompt)) for number, prompt in enumerate(waiting)}
    for prompt in sent:
        forecast.note(view.sent(keys_of(prompt)))
        known.update(forecast.refresh(1000))
        assert known == {number: view.num_present(keys_of(each)) for number, each in enumerate(waiting)}
    for number in known:
        forecast.leave(number)
    forecast.note(view.hear(news(CacheCleared())))
    assert list(forecast.refresh(1000)) == []


def test_a_turn_looks_at_few_of_those_whom_a_prefix_concerns():
    view = view_of(100)
    forecast: Forecast[int] = Forecast(view)
    for number in range(50):
        forecast.enter(number, keys_of([1, 2, number]))
    forecast.note(view.sent(keys_of([1, 2])))
    assert [len(list(forecast.refresh(20))) for _ in range(4)] == [20, 20, 10, 0]


def claim(number=0, num_tokens=100, *, keys=(), tenant="", held=0) -> Claim:
    return Claim(0, number, 0, tenant, num_tokens, keys, BLOCK, held)


def dispatcher(policy=None, max_backlog_tokens=250) -> Dispatcher:
    policy = first_come_first_served() if policy is None else policy
    return Dispatcher(policy, view_of(1000), max_backlog_tokens)


def taken(queue: Dispatcher) -> list:
    items = []
    while (item := queue.take(10**9)) is not None:
        items.append(item)
    return items


def test_prefill_gets_the_first_and_a_bounded_backlog_behind_it():
    queue = dispatcher()
    for number in range(8):
        queue.push(number, claim(number))
    assert taken(queue) == [0, 1, 2, 3], "300 tokens stand behind the first, the last of them from below the bound"
    assert queue.num_backlog_tokens == 300
    queue.finish(0, 100)
    assert taken(queue) == [4]
    assert len(queue) == 3


def test_a_long_prompt_holds_nobody_back_behind_it_but_by_its_work():
    queue = dispatcher()
    queue.push("long", claim(0, 100_000))
    for number in range(1, 6):
        queue.push(number, claim(number))
    assert taken(queue) == ["long", 1, 2, 3]


def test_a_prompt_larger_than_the_bound_goes_alone():
    queue = dispatcher(max_backlog_tokens=1)
    queue.push("a", claim(0, 5000))
    queue.push("b", claim(1, 5000))
    assert taken(queue) == ["a", "b"]
    assert queue.num_backlog_tokens == 5000


def test_what_is_cached_is_no_work():
    queue = dispatcher()
    shared = keys_of([1] * 6)
    queue.push("leader", claim(0, 100, keys=shared))
    for number in range(20):
        queue.push(number, claim(1 + number, 100, keys=shared))
    assert len(taken(queue)) == 21, "each of them has 4 tokens to compute behind the leader"
    assert queue.num_backlog_tokens == 20 * 4


def test_followers_go_right_behind_their_leader():
    queue = dispatcher(longest_prefix_first(), max_backlog_tokens=1)
    shared = keys_of([1, 2, 3])
    queue.push("leader", claim(0, 64, keys=shared))
    queue.push("stranger", claim(1, 64, keys=keys_of([9, 9, 9])))
    queue.push("follower", claim(2, 64, keys=shared))
    assert queue.take(0) == "leader"
    assert queue.take(0) == "follower"


def test_a_cache_that_is_gone_is_no_help():
    queue = dispatcher(longest_prefix_first(), max_backlog_tokens=10**6)
    shared = keys_of([1, 2, 3])
    queue.hear(stored(shared))
    queue.push("first", claim(0, 64))
    queue.push("second", claim(1, 64, keys=shared))
    queue.hear(news(CacheCleared()))
    assert taken(queue) == ["first", "second"]


def test_who_leaves_the_queue_is_forgotten():
    queue = dispatcher()
    queue.push("a", claim(0, keys=keys_of([1])))
    queue.discard("a")
    queue.discard("a")
    assert (len(queue), queue.take(0)) == (0, None)
    queue.hear(stored(keys_of([1])))
    queue.push("a", claim(0, keys=keys_of([1])))
    assert queue.take(0) == "a"


def test_a_lease_that_holds_the_prompt_is_no_work():
    queue = dispatcher()
    queue.push("first", claim(0, 4000))
    queue.push("fork", claim(1, 100, held=96))
    taken(queue)
    assert queue.num_backlog_tokens == 4


def test_the_order_follows_what_memd_tells_while_prompts_wait():
    queue = dispatcher(longest_prefix_first(), max_backlog_tokens=1)
    one, other = keys_of([1, 2, 3]), keys_of([4, 5, 6])
    for number, keys in enumerate((one, other, one)):
        queue.push(number, claim(number, 64, keys=keys))
    queue.hear(stored(other))
    assert queue.take(0) == 1
    queue.finish(1, 16)
    queue.hear(news(*map(BlockRemoved, other)))
    queue.push("late", claim(3, 64, keys=other))
    queue.hear(stored(one[:1]))
    assert [queue.take(0), queue.take(0)] == [0, 2], "what was given away is no help"


@pytest.mark.parametrize(("num_computed", "next_one"), [(64, "follower"), (None, "stranger"), (0, "stranger")])
def test_what_prefill_has_computed_is_there_and_what_it_has_not_is_not(num_computed, next_one):
    queue = dispatcher(longest_prefix_first(), max_backlog_tokens=1)
    shared = keys_of([1, 2, 3])
    queue.push("leader", claim(0, 64, keys=shared))
    assert queue.take(0) == "leader"
    queue.finish("leader", num_computed)
    queue.push("stranger", claim(1, 64))
    queue.push("follower", claim(2, 64, keys=shared))
    assert queue.take(0) == next_one


class Charges:
    """A policy that keeps what it is told of tenants."""

    def __init__(self) -> None:
        self._queue = first_come_first_served()
        self.had: dict[str, float] = {}

    def __getattr__(self, name):
        return getattr(self._queue, name)

    def charge(self, tenant: str, num_tokens: float) -> None:
        self.had[tenant] = self.had.get(tenant, 0) + num_tokens


def test_tenants_are_charged_for_what_was_computed():
    policy = Charges()
    queue = dispatcher(policy)
    keys = keys_of([1, 2, 3])
    queue.push("a", claim(0, 100, tenant="t"))
    queue.push("b", claim(1, 100, keys=keys, tenant="u"))
    queue.push("c", claim(2, 100, keys=keys, tenant="v"))
    taken(queue)
    assert policy.had == {"t": 100, "u": 100, "v": 52}
    queue.finish("a", 100)
    queue.finish("b", 20)
    queue.finish("c")
    queue.finish("c", 0)
    assert policy.had == {"t": 100, "u": 20, "v": 52}


def test_an_entry_has_at_least_one_token_of_work():
    assert WaitingEntry(0, 0, 0, num_tokens=5, num_cached_tokens=9).work_tokens == 1


def test_more_are_stale_than_one_turn_looks_at():
    queue = dispatcher(longest_prefix_first(), max_backlog_tokens=10**9)
    shared = keys_of([1, 2])
    num = 3 * REFRESH_A_TURN
    for number in range(num):
        queue.push(number, claim(number, 64, keys=shared))
    assert sorted(taken(queue)) == list(range(num))
