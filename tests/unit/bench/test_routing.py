"""Routers against each other over simulated time, on prompts that share blocks."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from bench.commands.routing import routing
from bench.policies.deployment import Setting
from bench.policies.feed import CacheFeed
from bench.policies.gateway import GatewayOptions
from bench.policies.loads import TraceLoad, arrivals
from bench.policies.sequences import CachingPool, SharingSequence, content_keys
from bench.routing.results import spread
from bench.routing.simulation import FleetSetting, FleetSimulation, Routed, Stay, simulate_fleet
from bench.routing.trials import Job, balance, newcomer_share, run_trial
from bench.simulate.events import EventQueue
from bench.simulate.systems import h200_system
from bench.workloads.request import Span
from tandem.kv.journal import CacheJournal
from tandem.routing.fleet import Fleet
from tandem.routing.membership import ReplicaState
from tandem.routing.prompt import Prompt
from tandem.routing.published import PublishedBlocks
from tandem.routing.router import Prospect
from tandem.routing.routers import ROUTERS, make_router
from tandem.types import Split

REPLICA = Setting(h200_system(), Split(73, 27), GatewayOptions("kvshare", 30.0, 4096))
SETTING = FleetSetting(REPLICA, 3, "cache-aware")
BLOCK = REPLICA.system.limits.block_size
NUM_REQUESTS = 240
RATE_PER_S = 60.0


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Conversations of up to six turns, all begun with the same block."""
    rows = []
    for number in range(NUM_REQUESTS):
        turn, conversation = number // 40, number % 40
        blocks = [0, *(1000 * conversation + block for block in range(4 + 3 * turn))]
        row = {"timestamp": 50 * number, "input_length": 512 * len(blocks) - 7, "output_length": 20}
        rows.append({**row, "hash_ids": blocks})
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def load(trace):
    return TraceLoad(trace, NUM_REQUESTS, RATE_PER_S, 0, 0.5)


def trial(load, router, **others):
    return run_trial(Job(replace(SETTING, router=router, **others), load))


@pytest.fixture(scope="module")
def found(load):
    return {router: trial(load, router) for router in ROUTERS}


def test_the_cache_aware_one_reuses_more_and_answers_sooner(found):
    for other in ("round-robin", "least-loaded"):
        assert found["cache-aware"].hit_rate > found[other].hit_rate + 0.05
        assert found["cache-aware"].ttft_mean_ms < 0.95 * found[other].ttft_mean_ms
    assert found["cache-aware"].balance < 1.3


def test_what_the_router_expects_comes_about(found):
    for trial in found.values():
        assert trial.mistaken_share < 0.03
        assert trial.ttft_error_ms < trial.ttft_mean_ms


def test_a_simulation_says_the_same_again(load, found):
    assert trial(load, "cache-aware") == found["cache-aware"]


def test_every_request_comes_to_its_end_though_a_replica_leaves_and_another_joins(load):
    middle_s = NUM_REQUESTS / RATE_PER_S / 2
    setting = replace(SETTING, change_s=middle_s)
    sequences = arrivals(load, BLOCK)
    stays = simulate_fleet(setting, 0, sequences)
    assert all(each.is_complete for each in sequences)
    assert sum(each.num_blocks for each in sequences) == 0
    assert sorted(each.sequence.lease_id for stay in stays for each in stay.routed) == list(range(NUM_REQUESTS))
    assert [stay.joined_s for stay in stays] == [0, 0, 0, middle_s]
    assert [stay.left_s for stay in stays] == [middle_s, None, None, None]
    assert all(each.sequence.arrived_s <= middle_s for each in stays[0].routed)
    assert any(each.sequence.arrived_s > middle_s for each in stays[1].routed)
    assert newcomer_share(stays, 3) > 0.5


def test_who_leaves_is_gone_when_it_has_nothing_more(load):
    simulation = FleetSimulation(SETTING, 0)
    first, second = arrivals(load, BLOCK)[:2]
    simulation.arrive(first)
    (home,) = (replica_id for replica_id, each in simulation.stays.items() if each.routed)
    assert home == simulation.fleet.membership.serving[0]
    simulation.change()
    assert simulation.fleet.membership.state(home) is ReplicaState.LEAVING
    simulation.arrive(second)
    simulation.events.run(1000.0)
    assert first.is_complete
    assert simulation.fleet.membership.state(home) is ReplicaState.GONE
    assert simulation.fleet.membership.serving == ("replica-1", "replica-2", "replica-3")


class Peeking:
    """A router that tells how much of a prompt the first replica is believed to have."""

    def __init__(self):
        self._router = make_router("round-robin", 0)
        self.num_exact_tokens = 0

    def choose(self, prospects):
        self.num_exact_tokens = prospects[0].num_exact_tokens
        return self._router.choose(prospects)


@pytest.mark.parametrize("capacity", [8192, 5], ids=["in time", "too late for the ring"])
def test_news_come_after_their_delay_and_are_the_pools(capacity):
    events, router, pool = EventQueue(), Peeking(), CachingPool(40, 4)
    pool.journal = CacheJournal(capacity)
    fleet: Fleet[int] = Fleet(router, events)
    published = PublishedBlocks(lambda: 40)
    fleet.join("a", lambda: 40, published)
    CacheFeed(pool, events, 0.05, lambda: published.position, published.hear)

    def known(content, num_tokens):
        fleet.route(0, Prompt(num_tokens, 4, content_keys([Span(content, num_tokens)], 4, "")))
        fleet.end(0)
        return router.num_exact_tokens

    def compute(content, num_tokens):
        each = SharingSequence(0, 0.0, num_tokens, 1, keys=content_keys([Span(content, num_tokens)], 4, ""))
        pool.claim(each)
        pool.give(each, each.num_missing_blocks(4))
        each.num_computed = each.num_tokens
        pool.publish(each)
        pool.take_back(each)

    compute("x", 81)
    events.run(0.04)
    assert known("x", 81) == 0
    events.run(0.06)
    assert known("x", 81) == 80
    events.after(1.0, lambda: compute("y", 121))
    events.run(1.07)
    assert (known("x", 81), known("y", 121)) == (80, 0), "on the way"
    events.run(2.0)
    assert (known("x", 81), known("y", 121)) == (36, 120), "the ends of the older ones were given away"


def stay(joined_s, left_s, *arrived_s):
    prospect = Prospect("", 0, 0, 90, 0.0, 0.1, 0.0, 0.0, 0)
    return Stay(joined_s, left_s, [Routed(SharingSequence(0, each, 90, 5), prospect) for each in arrived_s])


def test_work_is_counted_by_the_time_that_a_replica_was_there():
    assert balance([stay(0.0, None, 1, 2), stay(0.0, 5.0, 3), stay(5.0, None, 6)], 10.0) == 1.0
    assert balance([stay(0.0, None, 1, 2, 3), stay(0.0, None, 4)], 10.0) == 1.5


def test_a_newcomers_share_is_of_what_came_since():
    assert newcomer_share([stay(0.0, None, 1, 2), stay(0.0, None, 3)], 2) is None
    assert newcomer_share([stay(0.0, 2.0, 1), stay(0.0, None, 3, 4, 5), stay(2.0, None, 6)], 2) == 0.5


def test_a_spread_is_the_median_with_its_range():
    assert spread([3.0, 1.0, 2.0], "{:.1f}") == "2.0\n1.0 to 3.0"
    assert spread([], "{:.1f}") == ""


def test_the_command_writes_what_it_shows(trace, tmp_path):
    out = tmp_path / "result.json"
    arguments = f"--data {trace} --rates 20 --seeds 0 --num-requests 40 --replicas 2 --change --out {out}"
    done = CliRunner(env={"COLUMNS": "120"}).invoke(routing, arguments.split(), catch_exceptions=False)
    assert done.exit_code == 0
    written = json.loads(out.read_text())
    assert [(each["router"], each["change_s"]) for each in written["trials"]] == [
        (router, change_s) for change_s in (None, 1.0) for router in ROUTERS
    ]
    assert "cache-aware" in done.output
    assert "one leaves, one joins" in done.output
