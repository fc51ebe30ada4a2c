"""What the gateway knows of its replicas, event by event."""

import math
from functools import cache

import pytest

from tandem.clock import ManualClock
from tandem.errors import NotReadyError
from tandem.kv.cache_store import CacheNews, CachePosition
from tandem.kv.contents import block_keys
from tandem.kv.journal import BlockRemoved, BlockStored
from tandem.routing.fleet import DECODE_LOAD_S, UNKNOWN_SECONDS_A_TOKEN, Fleet
from tandem.routing.load import RECENT_S
from tandem.routing.prompt import Prompt
from tandem.routing.published import PublishedBlocks
from tandem.routing.router import LeastLoaded, Prospect
from tandem.routing.routers import make_router

BLOCK = 16
NUM_BLOCKS = 1000


@cache
def prompt(text, num_tokens=801):
    """Of one text, so that shorter ones are beginnings of longer ones."""
    keys = block_keys(text.encode(), list(range(num_tokens - 1)), BLOCK)
    return Prompt(num_tokens, BLOCK, keys)


class Watched:
    """Notes what a router is shown."""

    def __init__(self, router):
        self._router = router
        self.shown: dict[str, Prospect] = {}

    def choose(self, prospects):
        self.shown = {each.replica_id: each for each in prospects}
        return self._router.choose(prospects)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def router():
    return Watched(make_router("cache-aware", 1))


def nothing_published():
    return PublishedBlocks(lambda: NUM_BLOCKS)


@pytest.fixture
def published():
    """By replica."""
    return {replica_id: nothing_published() for replica_id in ("a", "b", "c")}


@pytest.fixture
def fleet(router, clock, published):
    fleet = Fleet(router, clock)
    for replica_id, blocks in published.items():
        fleet.join(replica_id, lambda: NUM_BLOCKS, blocks)
    return fleet


def news(*events):
    return CacheNews(events, CachePosition(1, 1), BLOCK)


def stored(keys):
    return [BlockStored(b"", b"", key) for key in keys]


def test_a_prefix_that_was_just_sent_leads_its_followers(fleet, clock):
    leader = fleet.route(0, prompt("x"))
    clock.advance(0.5)
    followers = [fleet.route(number, prompt("x", 801 + number)) for number in range(1, 4)]
    assert {each.replica_id for each in followers} == {leader.replica_id}
    assert {each.num_exact_tokens for each in followers} == {800}
    assert fleet.route(4, prompt("y")).replica_id != leader.replica_id


def test_what_its_memd_published_is_found_and_what_it_removed_is_not(fleet, router, published):
    keys = prompt("x").keys
    published["b"].hear(news(*stored(keys)))
    assert fleet.route(0, prompt("x")).replica_id == "b"
    fleet.end(0)
    published["b"].hear(news(*map(BlockRemoved, keys[10:])))
    fleet.route(1, prompt("x"))
    assert {name: each.num_exact_tokens for name, each in router.shown.items()} == {"a": 0, "b": 160, "c": 0}


def test_what_is_placed_counts_as_sent_and_no_router_is_asked(fleet, router):
    fleet.place(0, "b", prompt("x", 500))
    assert fleet.items("b") == (0,)
    assert not router.shown
    fleet.route(1, prompt("y"))
    assert {name: each.wait_s > 0 for name, each in router.shown.items()} == {"a": False, "b": True, "c": False}
    with pytest.raises(ValueError, match="already"):
        fleet.place(0, "a", prompt("x"))
    with pytest.raises(KeyError):
        fleet.place(2, "nobody", prompt("x"))
    fleet.end(0)
    assert fleet.items("b") == ()


def test_an_end_without_news_is_no_cache(fleet, router):
    chosen = fleet.route(0, prompt("x")).replica_id
    fleet.end(0)
    fleet.route(1, prompt("x"))
    assert router.shown[chosen].num_exact_tokens == 0


def test_the_wait_is_the_work_before_at_the_pace_that_was_seen(fleet, router, clock):
    for number in range(6):
        fleet.route(number, prompt(f"text {number}", 1000))
    clock.advance(2.0)
    fleet.prefilled(0, 1000)
    clock.advance(0.5)
    fleet.route(6, prompt("other", 500))
    one, other = router.shown["a"], router.shown["b"]
    assert one.compute_s == other.compute_s == pytest.approx(500 * 0.002), "as fast as those that are known"
    assert one.wait_s == pytest.approx(1000 * 0.002 - 0.5), "its second one is under way"
    assert other.wait_s == pytest.approx(2000 * 0.002 - 2.0), "it is late: only its first one can be done"
    assert one.load_s == pytest.approx(DECODE_LOAD_S * 63 / NUM_BLOCKS)
    assert other.load_s == 0
    fleet.prefilled(0, 7)
    fleet.end(0)
    fleet.route(7, prompt("one more", 500))
    assert router.shown["a"].load_s == 0


def test_use_is_what_was_routed_of_late(fleet, router, clock):
    fleet.route(0, prompt("x", 1000))
    clock.advance(1.0)
    fleet.prefilled(0, 1000)
    fleet.route(1, prompt("y", 1000))
    assert router.shown["a"].utilisation == pytest.approx(1000 * 0.001 / RECENT_S * math.exp(-1.0 / RECENT_S))
    assert router.shown["b"].utilisation == 0
    clock.advance(20 * RECENT_S)
    fleet.route(2, prompt("z", 1000))
    assert router.shown["a"].utilisation < 1e-6


def test_before_anything_is_known_all_are_equal(fleet, router):
    fleet.route(0, prompt("x", 1000))
    assert [each.compute_s for each in router.shown.values()] == [pytest.approx(1000 * UNKNOWN_SECONDS_A_TOKEN)] * 3


def test_who_leaves_is_never_chosen_and_ends_what_it_has(fleet):
    leader = fleet.route(0, prompt("x")).replica_id
    fleet.leave(leader)
    others = {fleet.route(number, prompt("x")).replica_id for number in range(1, 400)}
    assert leader not in others
    assert fleet.items(leader) == (0,)
    fleet.prefilled(0, 801)
    fleet.end(0)
    assert fleet.items(leader) == ()
    assert fleet.lose(leader) == ()
    fleet.join(leader, lambda: NUM_BLOCKS, nothing_published())
    assert fleet.membership.serving[-1] == leader


def test_what_the_lost_one_had_can_be_sent_again(fleet):
    homes = {number: fleet.route(number, prompt(f"text {number}")).replica_id for number in range(6)}
    fleet.prefilled(0, 801)
    lost = fleet.lose("a")
    assert set(lost) == {number for number, home in homes.items() if home == "a"}
    assert len(lost) == 2
    assert all(fleet.route(number, prompt(f"text {number}")).replica_id != "a" for number in lost)
    with pytest.raises(ValueError, match="gone"):
        fleet.lose("a")


def test_who_joins_cold_is_chosen_where_the_warm_ones_are_busy(fleet, published):
    system = prompt("system", 161).keys

    def conversation(text):
        return Prompt(961, BLOCK, (*system, *prompt(text).keys))

    for blocks in published.values():
        blocks.hear(news(*stored(system)))
    for number in range(6):
        fleet.route(number, conversation(f"text {number}"))
    fleet.join("cold", lambda: NUM_BLOCKS, nothing_published())
    chosen = fleet.route(6, conversation("text 6"))
    assert (chosen.replica_id, chosen.num_exact_tokens) == ("cold", 0)
    assert fleet.route(7, conversation("text 6")).replica_id == "cold"
    assert fleet.route(8, conversation("text 0")).replica_id == "a"


def test_what_cannot_be(fleet):
    fleet.route(0, prompt("x"))
    with pytest.raises(ValueError, match="already"):
        fleet.route(0, prompt("x"))
    with pytest.raises(KeyError):
        fleet.end(1)
    with pytest.raises(ValueError, match="joined"):
        fleet.join("a", lambda: 1, nothing_published())
    nobody: Fleet[int] = Fleet(LeastLoaded(), ManualClock())
    with pytest.raises(NotReadyError):
        nobody.route(0, prompt("x"))
