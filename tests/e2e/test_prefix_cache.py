"""What was computed once is not computed again, and no answer changes by it."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial

import grpc
import pytest

from bench.commands.soak import kv_bytes
from bench.reuse.asking import asker
from bench.reuse.soak import SoakPlan, revive, soak
from bench.workloads.tokens import TokenRange
from tandem.clock import MonotonicClock
from tandem.rpc.gateway_client import GatewayClient
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.rpc.stubs.gateway.v1 import gateway_pb2_grpc as pb_grpc
from tests.e2e.test_load import idle_statistics
from tests.support.deployment import POOL, deployment

NUM_REQUESTS = 120
AT_ONCE = 24


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return str(tiny_model_dir("llama"))


@pytest.fixture
async def stub(system) -> AsyncIterator[pb_grpc.GatewayServiceStub]:
    async with grpc.aio.insecure_channel(system.gateway) as channel:
        yield pb_grpc.GatewayServiceStub(channel)


def text(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(1, 200), k=length)


async def ask(stub, ids: list[int], salt: str = "", num_tokens: int = 6) -> tuple[list[int], int]:
    """The answer's tokens, and how many of the prompt's were reused."""
    sampling = pb.SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), sampling=sampling, cache_salt=salt)
    answer = (await stub.GenerateOnce(pb.GenerateOnceRequest(request=request))).answers[0]
    return list(answer.token_ids), answer.usage.num_cached_tokens


async def test_a_prompt_seen_before_is_reused_and_answered_alike(stub):
    first, num_first = await ask(stub, text(1, 100))
    again, num_again = await ask(stub, text(1, 100))
    assert (num_first, num_again) == (0, 96)
    assert again == first
    other, num_other = await ask(stub, [*text(1, 50), *text(2, 50)])
    assert num_other == 50
    assert other == (await ask(stub, [*text(1, 50), *text(2, 50)], salt="cold"))[0]


async def test_a_prompt_that_is_there_whole_computes_one_token(stub):
    first, _ = await ask(stub, text(6, 96))
    again, num_again = await ask(stub, text(6, 96))
    assert (again, num_again) == (first, 95)


async def test_a_salt_shares_with_itself_alone(stub):
    await ask(stub, text(3, 40), salt="one")
    assert (await ask(stub, text(3, 40), salt="other"))[1] == 0
    assert (await ask(stub, text(3, 40)))[1] == 0
    assert (await ask(stub, text(3, 40), salt="one"))[1] == 32


async def test_the_next_turn_reuses_the_answer_before_it(stub):
    prompt = text(4, 30)
    answer, _ = await ask(stub, prompt, num_tokens=60)
    _, num_cached = await ask(stub, [*prompt, *answer, *text(5, 10)])
    assert num_cached == 80


async def test_reuse_can_be_switched_off(model):
    with deployment(model, {**POOL, "gateway": {"prefix-cache": False}}) as system:
        async with grpc.aio.insecure_channel(system.gateway) as channel:
            plain = pb_grpc.GatewayServiceStub(channel)
            assert [(await ask(plain, text(1, 40)))[1] for _ in range(2)] == [0, 0]


def test_shared_prefixes_under_load_eviction_and_kills_give_the_cold_answers(model):
    """`tandem bench soak`, short: the pool holds a part of the prompts only."""
    plan = SoakPlan(NUM_REQUESTS, AT_ONCE, 3, TokenRange(1, 199))
    small = {"memd": {"kv-bytes": kv_bytes(model, 90), "dtype": "float32", "reserve-blocks": 4}}
    with deployment(model, small) as tight, closing(GatewayClient(tight.gateway)) as client:
        result = soak(plan, asker(client, MonotonicClock()), partial(revive, tight), lambda: None)
        statistics = asyncio.run(idle_statistics(tight))
        assert '"lease.expired"' not in tight.log("memd")
    assert result.num_other_answers == 0
    assert result.num_reusing_requests > NUM_REQUESTS // 4
    assert statistics.num_claimed_tokens >= result.num_cached_tokens
    assert statistics.num_evictions > 0
    assert statistics.num_free_blocks + statistics.num_spare_blocks + statistics.num_cached_blocks == (
        statistics.num_blocks
    )
