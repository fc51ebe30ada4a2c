"""The metrics endpoints of all services, scraped before and after requests: names that are known, values that move."""

import asyncio
import time
import urllib.request
from collections.abc import Mapping

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tandem.config.settings import MODES
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.rpc.stubs.gateway.v1 import gateway_pb2_grpc as pb_grpc
from tests.e2e.test_load import collect, idle_statistics
from tests.e2e.test_segment_reuse import refreshed_usage
from tests.support.deployment import Deployment, deployment
from tests.support.sockets import free_port

NUM_PROMPT_TOKENS = 40
NUM_SHARED_TOKENS = 32  # of the second answer: the prompt's whole blocks
MAX_TOKENS = 6
WITHIN_S = 30.0

Samples = Mapping[tuple[str, ...], float]  # by service, name without the prefix, and values of labels


@pytest.fixture(scope="module")
def system(tiny_model_dir):
    settings = {service: {"metrics-port": free_port()} for service in MODES["semi-pd"]}
    settings["memd"]["kv-bytes"] = 16 << 20
    settings["controller"]["planner"] = "static"
    settings["decode"]["refresh-every"] = 4
    with deployment(str(tiny_model_dir("llama")), settings) as s:
        yield s


def scraped(system: Deployment) -> Samples:
    samples: dict[tuple[str, ...], float] = {}
    for service, flags in system.settings.items():
        with urllib.request.urlopen(f"http://127.0.0.1:{flags['metrics-port']}/metrics") as answer:
            families = text_string_to_metric_families(answer.read().decode())
        for sample in (sample for family in families for sample in family.samples):
            assert sample.name.startswith("tandem:")
            samples[service, sample.name.removeprefix("tandem:"), *sample.labels.values()] = sample.value
    return samples


async def growth(system: Deployment, before: Samples, expected: Samples) -> None:
    """Waits until the samples have grown so; some are published after the request, or now and then."""
    deadline_s = time.monotonic() + WITHIN_S
    while True:
        after = await asyncio.to_thread(scraped, system)
        grown = {key: after.get(key, 0) - before.get(key, 0) for key in expected}
        if grown == expected:
            return
        assert time.monotonic() < deadline_s, grown
        await asyncio.sleep(0.1)


async def serve_requests(address: str) -> None:
    """One that is answered twice over, and one that is refused."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.GatewayServiceStub(channel)
        prompt = pb.TokenIds(ids=[position % 200 + 3 for position in range(NUM_PROMPT_TOKENS)])
        sampling = pb.SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True, n=2)
        await collect(stub.Generate(pb.GenerateRequest(token_ids=prompt, sampling=sampling)))
        with pytest.raises(grpc.aio.AioRpcError):
            await collect(stub.Generate(pb.GenerateRequest(token_ids=prompt, sampling=pb.SamplingParams(top_p=2))))


async def test_values_move_with_the_requests(system):
    before = await asyncio.to_thread(scraped, system)
    await serve_requests(system.gateway)
    expected = {
        ("gateway", "request_success_total", "length"): 1,
        ("gateway", "request_failure_total", "INVALID_ARGUMENT"): 1,
        ("gateway", "prompt_tokens_total"): 2 * NUM_PROMPT_TOKENS,
        ("gateway", "prefix_cache_queries_total"): 2 * NUM_PROMPT_TOKENS,
        ("gateway", "prefix_cache_hits_total"): NUM_SHARED_TOKENS,
        ("gateway", "prompt_tokens_by_source_total", "exact"): NUM_SHARED_TOKENS,
        ("gateway", "prompt_tokens_by_source_total", "computed"): 2 * NUM_PROMPT_TOKENS - NUM_SHARED_TOKENS,
        ("gateway", "generation_tokens_total"): 2 * MAX_TOKENS,
        ("gateway", "time_to_first_token_seconds_count"): 1,
        ("gateway", "inter_token_latency_seconds_count"): 2 * (MAX_TOKENS - 1),
        ("gateway", "e2e_request_latency_seconds_count"): 1,
        ("prefill", "iteration_tokens_total", "prefill"): 2 * NUM_PROMPT_TOKENS - NUM_SHARED_TOKENS,
        ("decode", "iteration_tokens_total", "decode"): 2 * (MAX_TOKENS - 1),
        ("controller", "requests_observed_total"): 1,
    }
    await growth(system, before, expected)


async def test_refreshed_tokens_are_counted_and_told(system):
    """The rows of exact requests, above, are as many as without."""
    before = await asyncio.to_thread(scraped, system)
    usage = await asyncio.to_thread(refreshed_usage, system.gateway, "metrics")
    assert 0 < usage.num_refreshed_tokens <= usage.num_approximate_tokens
    await growth(system, before, {("decode", "refreshed_tokens_total", "decode"): usage.num_refreshed_tokens})


async def test_gauges_are_at_rest_when_the_system_is(system):
    await serve_requests(system.gateway)
    await idle_statistics(system)
    at_rest = {
        ("gateway", "num_requests_waiting"): 0,
        ("gateway", "num_requests_running"): 0,
        ("memd", "kv_cache_usage_perc"): 0,
        ("memd", "num_sequences"): 0,
        ("memd", "num_holders"): 2,
        ("prefill", "num_sequences_running", "prefill"): 0,
        ("decode", "num_sequences_running", "decode"): 0,
        ("controller", "split_percent", "prefill"): 50,
        ("controller", "split_percent", "decode"): 50,
    }
    await growth(system, {}, at_rest)


def test_the_pools_shape_is_a_label(system):
    shapes = [labels for (_, name, *labels) in scraped(system) if name == "cache_config_info"]
    ((block_size, num_blocks),) = shapes
    assert int(block_size) == 16
    assert int(num_blocks) > 0
