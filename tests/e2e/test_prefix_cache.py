"""What was computed once is not computed again, and no answer changes by it."""

import asyncio
import random
from collections.abc import AsyncIterator

import grpc
import pytest

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
    assert num_other == 48
    assert other == (await ask(stub, [*text(1, 50), *text(2, 50)], salt="cold"))[0]


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


def shared_prefix(number: int) -> list[int]:
    rng = random.Random(number)
    return [*text(rng.randrange(6), rng.choice([16, 40, 90, 160])), *text(1000 + number, rng.randrange(1, 30))]


async def test_shared_prefixes_under_load_eviction_and_kills_give_the_cold_answers(system, stub, model):
    """The pool holds a part of the prompts only; prefill and decode are killed on the way."""
    cold = [await ask(stub, shared_prefix(number), salt=str(number)) for number in range(NUM_REQUESTS)]
    assert not any(num_cached for _, num_cached in cold)
    roomy = await idle_statistics(system)
    kv_bytes = roomy.kv_bytes // roomy.num_blocks * 90
    small = {"memd": {"kv-bytes": kv_bytes, "dtype": "float32", "reserve-blocks": 4}}
    with deployment(model, small) as tight:
        async with grpc.aio.insecure_channel(tight.gateway) as channel:
            warm = await load_with_kills(tight, pb_grpc.GatewayServiceStub(channel))
        statistics = await idle_statistics(tight)
        assert '"lease.expired"' not in tight.log("memd")
    assert [tokens for tokens, _ in warm] == [tokens for tokens, _ in cold]
    assert sum(num_cached > 0 for _, num_cached in warm) > NUM_REQUESTS // 4
    assert statistics.num_claimed_blocks > 0
    assert statistics.num_free_blocks + statistics.num_spare_blocks + statistics.num_cached_blocks == (
        statistics.num_blocks
    )


async def load_with_kills(system, stub) -> list[tuple[list[int], int]]:
    slots = asyncio.Semaphore(AT_ONCE)
    num_done = 0

    async def one(number: int) -> tuple[list[int], int]:
        nonlocal num_done
        async with slots:
            answer = await ask(stub, shared_prefix(number))
        num_done += 1
        if num_done in (30, 60, 90):
            service = "decode" if num_done == 60 else "prefill"
            system.kill(service)
            system.start(service)
        return answer

    return await asyncio.gather(*(one(number) for number in range(NUM_REQUESTS)))
