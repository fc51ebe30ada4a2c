"""Orders against each other over simulated time, on prompts that share blocks."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from bench.commands.policies import policies
from bench.policies.deployment import Setting, simulate
from bench.policies.gateway import GatewayOptions
from bench.policies.loads import FLOOD, TraceLoad, arrivals
from bench.policies.sequences import CachingPool, SharingSequence, content_keys
from bench.policies.trials import run_trial
from bench.simulate.systems import h200_system
from bench.workloads.request import Span
from tandem.scheduler.policies import POLICIES
from tandem.types import Split

SETTING = Setting(h200_system(), Split(73, 27), GatewayOptions("fcfs", 30.0, 4096))
BLOCK = SETTING.system.limits.block_size


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Bursts of conversations, of which every third goes on from an earlier one."""
    rows = []
    for number in range(1200):
        blocks = [0, *range(10 * number, 10 * number + 1 + number % 9)]
        if number % 3 == 0 and number > 30:
            blocks = [*rows[number - 30]["hash_ids"], 10 * number]
        rows.append(
            {
                "timestamp": number // 10 * 3000,
                "input_length": 512 * len(blocks) - 7,
                "output_length": 10 + number % 50,
                "hash_ids": blocks,
            }
        )
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def load(trace, **others) -> TraceLoad:
    return replace(TraceLoad(trace, 90, 12.0, 0, 0.5), **others)


def test_equal_beginnings_have_equal_keys_and_others_have_not():
    def keys(*spans, namespace=""):
        return content_keys([Span(*span) for span in spans], 16, namespace)

    whole = keys(("a", 40), ("b", 41))
    assert len(whole) == 5, "the last token is computed"
    assert len(keys(("a", 40), ("b", 40))) == 4
    assert keys(("a", 40), ("c", 41))[:2] == whole[:2]
    assert keys(("a", 40), ("c", 41))[2] != whole[2], "it has tokens of both"
    assert keys(("a", 32), ("b", 41))[2] != whole[2]
    assert not set(keys(("a", 40), ("b", 41), namespace="other")) & set(whole)


def sequence(number, content, num_tokens) -> SharingSequence:
    return SharingSequence(number, 0.0, num_tokens, 1, keys=content_keys([Span(content, num_tokens)], 4, ""))


def computed(pool: CachingPool, each: SharingSequence) -> None:
    pool.claim(each)
    pool.give(each, each.num_missing_blocks(4))
    each.num_computed = each.num_tokens
    pool.publish(each)


def test_the_pool_counts_a_shared_block_once_and_keeps_it_until_room_is_needed():
    pool = CachingPool(10, 4)
    first, second = sequence(0, "x", 17), sequence(1, "x", 17)
    computed(pool, first)
    assert pool.num_free == 5
    computed(pool, second)
    assert (second.num_blocks, pool.num_free) == (5, 4)
    for each in (first, second):
        pool.take_back(each)
    assert pool.num_free == 10
    third = sequence(2, "x", 17)
    pool.claim(third)
    assert third.num_computed == 16
    pool.take_back(third)
    computed(pool, sequence(3, "y", 32))
    pool.claim(third)
    assert third.num_computed == 8, "two blocks were left, the first ones"


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_comes_to_its_end_and_no_block_is_lost(trace, policy):
    sequences = arrivals(load(trace), BLOCK)
    setting = replace(SETTING, gateway=replace(SETTING.gateway, policy=policy))
    simulate(setting, 0, sequences)
    assert all(each.is_complete for each in sequences)
    assert all(each.num_cached_tokens <= each.num_prompt_tokens for each in sequences)
    assert sum(each.num_blocks for each in sequences) == 0


def test_one_computes_what_many_wait_for():
    sequences = [
        SharingSequence(number, 0.0, 4001, 2, keys=content_keys([Span("x", 4001)], 16, "")) for number in range(9)
    ]
    simulate(SETTING, 0, sequences)
    assert sum(each.num_cached_tokens for each in sequences) == 8 * 4000


def test_a_simulation_says_the_same_again(trace):
    assert run_trial(SETTING, "kvshare", load(trace)) == run_trial(SETTING, "kvshare", load(trace))


def test_kvshare_answers_sooner_and_within_its_bound(trace):
    found = {policy: run_trial(SETTING, policy, load(trace, rate_per_s=30.0)) for policy in POLICIES}
    assert found["kvshare"].ttft_mean_ms < 0.9 * found["fcfs"].ttft_mean_ms
    assert found["kvshare"].ttft_mean_ms < found["longest-prefix"].ttft_mean_ms
    assert found["kvshare"].max_wait_s < SETTING.gateway.max_wait_s
    assert found["kvshare"].hit_rate > 0.1


def test_a_flood_is_the_flooders_own(trace):
    calm = load(trace, rate_per_s=4.0, num_tenants=2)
    flooded = replace(calm, flood_rate_per_s=40.0)
    assert {each.tenant for each in arrivals(flooded, BLOCK)} == {"tenant-0", "tenant-1", FLOOD}

    def worse(policy):
        return run_trial(SETTING, policy, flooded).ttft_p99_ms / run_trial(SETTING, policy, calm).ttft_p99_ms

    assert worse("kvshare") < 2.5
    assert worse("fcfs") > 4 * worse("kvshare")


def test_the_command_writes_what_it_shows(trace, tmp_path):
    out = tmp_path / "result.json"
    arguments = f"--data {trace} --rates 8 --seeds 0 --num-requests 40 --tenants 2 --flood 10 --out {out}"
    done = CliRunner().invoke(policies, arguments.split(), catch_exceptions=False)
    assert done.exit_code == 0
    written = json.loads(out.read_text())
    assert [(trial["policy"], bool(trial["flood_rate_per_s"])) for trial in written["trials"]] == [
        (policy, flooded) for flooded in (False, True) for policy in POLICIES
    ]
    assert "kvshare" in done.output
