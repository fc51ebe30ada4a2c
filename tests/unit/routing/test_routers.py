"""What each router goes by."""

import random
from dataclasses import replace

from tandem.routing.cache_aware import IMBALANCE_S, CacheAware, cost_s
from tandem.routing.router import LeastLoaded, Prospect, RoundRobin

COLD = Prospect("cold", 0, 0, 1000, wait_s=1.0, compute_s=1.0, utilisation=0.5, load_s=0.0, last_turn=9)
WARM = Prospect("warm", 900, 0, 100, wait_s=1.5, compute_s=0.1, utilisation=0.5, load_s=0.0, last_turn=8)


class NeverExploring(random.Random):
    def random(self):
        return 0.5


def cache_aware():
    return CacheAware(NeverExploring(0))


def test_the_warm_one_is_worth_waiting_for_as_long_as_it_saves():
    assert cache_aware().choose([COLD, WARM]) is WARM
    saved_s = 0.9 + 2 * 0.9  # its own, and what others wait longer
    busier = replace(WARM, wait_s=1.0 + 1.01 * saved_s)
    assert cache_aware().choose([COLD, replace(WARM, wait_s=1.0 + 0.99 * saved_s)]).replica_id == "warm"
    assert cache_aware().choose([COLD, busier]) is COLD
    assert LeastLoaded().choose([COLD, WARM]) is COLD
    assert RoundRobin().choose([COLD, WARM]) is WARM


def test_work_goes_where_it_delays_fewer():
    busier = replace(COLD, replica_id="busier", utilisation=0.7, compute_s=0.9, wait_s=1.0)
    assert busier.ttft_s < COLD.ttft_s
    assert cache_aware().choose([busier, COLD]) is COLD
    assert cost_s(replace(COLD, utilisation=7.0)) < 20.0, "too much is not infinitely much"


def test_blocks_that_decode_holds_count():
    full = replace(WARM, load_s=2.3)
    assert cache_aware().choose([COLD, full]) is COLD
    assert LeastLoaded().choose([COLD, replace(COLD, replica_id="free", wait_s=0.9, load_s=0.2)]) is COLD


def test_a_prefix_that_everybody_has_does_not_gather_everybody():
    long = replace(COLD, compute_s=60.0)
    busy = replace(WARM, wait_s=2.0 + IMBALANCE_S)
    assert cost_s(busy) < cost_s(long)
    assert cache_aware().choose([long, busy]) is long
    assert cache_aware().choose([replace(long, wait_s=4.0), replace(busy, wait_s=7.5)]).replica_id == "warm"


def test_one_choice_in_a_hundred_is_any():
    router = CacheAware(random.Random(0))
    dear = [replace(COLD, replica_id=name, wait_s=50.0) for name in "abc"]
    chosen = [router.choose([WARM, *dear]).replica_id for _ in range(20_000)]
    assert 90 < sum(name != "warm" for name in chosen) < 210, "of 20,000 3/4 %"
    assert {"a", "b", "c"} <= set(chosen)
