"""The order kvshare, against its definition."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.scheduler.fair_share import HALF_LIFE_TOKENS, MAX_REMEMBERED, FairShare
from tandem.scheduler.kvshare import KvShare
from tandem.scheduler.response_ratio import CLASSES_AN_OCTAVE, LEAST_WORK_TOKENS, Place, RatioLine
from tandem.scheduler.waiting import WaitingEntry

S = 10**9


def entry(arrival_s=0.0, work=100, *, priority=0, tenant="") -> WaitingEntry:
    return WaitingEntry(priority, int(arrival_s * S), 0, tenant, num_tokens=work)


def ratio(place: Place, now_unix_ns: int) -> float:
    work = place.entry.work_tokens + LEAST_WORK_TOKENS
    return (now_unix_ns - place.entry.arrival_unix_ns) / work


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 10**5)), min_size=1, max_size=60))
def test_the_best_ratio_is_found_but_for_the_width_of_a_class(works):
    line: RatioLine[int] = RatioLine()
    places = [Place(number, entry(at, work), number) for number, (at, work) in enumerate(works)]
    for place in places:
        line.add(place)
    now = 1001 * S
    while places:
        best = line.best(now)
        assert ratio(best, now) * 2 ** (1 / CLASSES_AN_OCTAVE) >= max(ratio(place, now) for place in places)
        line.discard(best)
        places.remove(best)
    assert not line


def test_short_work_goes_first_and_long_work_goes_when_it_has_waited_in_proportion():
    queue: KvShare[str] = KvShare(max_wait_s=1e6)
    queue.push("long", entry(0, 10_000 - LEAST_WORK_TOKENS))
    queue.push("short", entry(9, 100 - LEAST_WORK_TOKENS))
    assert queue.pop(10 * S) == "short"
    queue.push("short", entry(9.95, 100 - LEAST_WORK_TOKENS))
    assert queue.pop(10 * S) == "long"


def test_what_turns_out_to_be_cached_goes_earlier():
    queue: KvShare[str] = KvShare(max_wait_s=1e6)
    queue.push("first", entry(0, 1000))
    queue.push("second", entry(1, 1000))
    queue.update("second", WaitingEntry(0, S, 0, num_tokens=1000, num_cached_tokens=992))
    assert queue.pop(10 * S) == "second"


def test_beyond_the_bound_the_oldest_goes_first_whatever_its_work_and_priority():
    queue: KvShare[str] = KvShare(max_wait_s=30)
    queue.push("long", entry(0, 10**6, priority=-5))
    queue.push("next", entry(1, 10**6, priority=-5))
    queue.push("urgent", entry(29, 1, priority=9))
    assert queue.pop(int(29.9 * S)) == "urgent"
    queue.push("urgent", entry(29.9, 1, priority=9))
    assert queue.pop(30 * S) == "long"
    assert queue.pop(30 * S) == "urgent"
    assert queue.pop(30 * S) == "next"


def test_every_overdue_request_goes_before_any_that_is_not():
    drawn = random.Random(3)
    queue: KvShare[int] = KvShare(max_wait_s=30)
    arrivals = {number: drawn.uniform(0, 60) for number in range(300)}
    for number, at_s in arrivals.items():
        queue.push(number, entry(at_s, drawn.randrange(1, 5000)))
    popped = [queue.pop(60 * S) for _ in arrivals]
    overdue = [number for number in popped if arrivals[number] <= 30]
    assert popped[: len(overdue)] == sorted(overdue, key=arrivals.__getitem__)


def test_tenants_get_equal_work_however_many_requests_they_have():
    queue: KvShare[int] = KvShare(max_wait_s=1e6)
    works = {"flood": 100, "few": 400}
    had = dict.fromkeys(works, 0)
    tenants = {}
    for number in range(120):
        tenant = "few" if number % 6 == 0 else "flood"
        tenants[number] = tenant
        queue.push(number, entry(0, works[tenant], tenant=tenant))
    for _ in range(60):
        tenant = tenants[queue.pop(S)]
        queue.charge(tenant, works[tenant])
        had[tenant] += works[tenant]
    assert abs(had["few"] - had["flood"]) <= max(works.values())


def test_a_flood_is_overdue_in_vain():
    queue: KvShare[str] = KvShare(max_wait_s=30)
    for number in range(50):
        queue.push(f"flood {number}", entry(0, 1000, tenant="flood"))
    queue.push("one", entry(99, 1000, tenant="other"))
    queue.push("two", entry(99, 1000, tenant="other"))
    order = []
    for _ in range(4):
        order.append(queue.pop(100 * S))
        queue.charge(order[-1].split()[0] if "flood" in order[-1] else "other", 1000)
    assert sum("flood" in each for each in order) == 2


def test_priority_comes_before_fair_share():
    queue: KvShare[str] = KvShare(max_wait_s=1e6)
    queue.charge("rich", 10**6)
    queue.push("poor", entry(0, tenant="poor"))
    queue.push("rich", entry(0, tenant="rich", priority=1))
    assert queue.pop(S) == "rich"


def first(share: FairShare) -> str:
    return share.first().tenant


def test_who_keeps_to_a_part_goes_before_who_floods_for_as_long_as_its_burst_lasts():
    share = FairShare()
    share.enter("flood", 0)
    for _ in range(30):
        share.charge("flood", 1000)
    share.enter("burst", 0)
    for _ in range(25):
        assert first(share) == "burst"
        share.charge("burst", 1000)
    for _ in range(5):
        share.charge(first(share), 1000)
    turns = [share.first().tenant for _ in range(20) if share.charge(first(share), 1000) is None]
    assert turns.count("burst") == 10, "then they share"


def test_what_was_long_ago_is_forgotten_by_half_with_each_half_life_of_work():
    share = FairShare()
    for tenant in ("long ago", "of late"):
        share.enter(tenant, 0)
    share.charge("long ago", 8_000)
    share.charge("others", 2 * HALF_LIFE_TOKENS)
    share.charge("of late", 1_900)
    assert first(share) == "of late"
    share.charge("of late", 200)
    assert first(share) == "long ago"


def test_counters_keep_their_order_however_much_was_computed():
    share = FairShare()
    share.charge("others", 10.0**13)  # half a century at 6,000 tokens a second
    for tenant in ("a", "b"):
        share.enter(tenant, 0)
    share.charge("a", 2000)
    share.charge("b", 1000)
    assert first(share) == "b"


def test_work_that_was_not_done_is_given_back():
    share = FairShare()
    for tenant in ("a", "b"):
        share.enter(tenant, 0)
    share.charge("a", 100)
    share.charge("b", 60)
    assert first(share) == "b"
    share.charge("a", -90)
    assert first(share) == "a"


def test_tenants_that_never_come_back_are_forgotten():
    share = FairShare()
    share.enter("waits", 0)
    for number in range(MAX_REMEMBERED + 50):
        share.enter(str(number), 0)
        share.charge(str(number), 10)
        share.leave(str(number), 0)
    assert len(share._accounts) <= MAX_REMEMBERED + 1
    assert first(share) == "waits"


def test_an_empty_share_has_no_first():
    share = FairShare()
    with pytest.raises(IndexError):
        share.first()
