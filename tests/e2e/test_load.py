"""Many requests at once through the real system: whoever is left alone gets the right answer, and no block is lost."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest

from tandem.rpc.memd_client import MemdClient
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.rpc.stubs.gateway.v1 import gateway_pb2_grpc as pb_grpc
from tests.support.deployment import Deployment, deployment

NUM_REQUESTS = 200
AT_ONCE = 32
NUM_CASES = 40


@dataclass(frozen=True)
class Answer:
    """What came over one stream."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: int


@pytest.fixture(scope="module")
def system(default_model_path):
    """Float32, so that the shape of a batch cannot turn a near tie."""
    settings = {"memd": {"dtype": "float32", "kv-bytes": 400 << 20}, "gateway": {"max-waiting": 300}}
    with deployment(str(default_model_path), settings) as running:
        yield running


def case(number: int) -> pb.GenerateRequest:
    """A request of mixed length and parameters; the same number is the same request."""
    rng = random.Random(number)
    num_prompt_tokens = rng.choice([1, 5, 15, 16, 17, 40, 120, 300])
    ids = [rng.randrange(1000, 40000) for _ in range(num_prompt_tokens)]
    sampling = pb.SamplingParams(max_tokens=rng.choice([1, 2, 8, 16, 24]), ignore_eos=True)
    if number % 2:
        sampling.temperature, sampling.top_p, sampling.seed = 0.8, 0.95, number
    else:
        sampling.temperature = 0.0
    if number % 5 == 0:
        sampling.repetition_penalty = 1.2
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), sampling=sampling)


async def collect(call: AsyncIterator[pb.GenerateResponse]) -> Answer:
    pieces = [piece async for piece in call]
    token_ids = tuple(token for piece in pieces for token in piece.token_ids)
    return Answer(token_ids, "".join(piece.text_delta for piece in pieces), pieces[-1].finish_reason)


async def idle_statistics(system: Deployment):
    """The pool once every lease has been released; fails when that does not come."""
    client = MemdClient(system.socket("memd"))
    try:
        for _ in range(200):
            statistics = await client.statistics()
            if statistics.num_sequences == 0 and statistics.num_leased_blocks == 0:
                return statistics
            await asyncio.sleep(0.05)
        raise AssertionError(f"leases are left: {statistics}")
    finally:
        await client.close()


async def test_mixed_load_is_right_and_leaves_nothing_behind(system):
    async with grpc.aio.insecure_channel(system.gateway) as channel:
        stub = pb_grpc.GatewayServiceStub(channel)
        expected = [await collect(stub.Generate(case(number))) for number in range(NUM_CASES)]
        for number, answer in enumerate(expected):
            assert len(answer.token_ids) == case(number).sampling.max_tokens
        slots = asyncio.Semaphore(AT_ONCE)
        outcomes = await asyncio.gather(*(one(stub, number, slots, expected) for number in range(NUM_REQUESTS)))
    assert outcomes.count("right") == sum(kind(number) == "plain" for number in range(NUM_REQUESTS))
    assert {"right", "cancelled", "late", "refused"} == set(outcomes)
    statistics = await idle_statistics(system)
    assert statistics.num_free_blocks + statistics.num_spare_blocks + statistics.num_cached_blocks == (
        statistics.num_blocks
    )


def kind(number: int) -> str:
    """What the client does with request `number`."""
    return {3: "cancel", 5: "late", 7: "bad"}.get(number % 10, "plain")


async def one(stub, number: int, slots: asyncio.Semaphore, expected: list[Answer]) -> str:
    """Runs one request of the load; returns what became of it."""
    request = case(number % NUM_CASES)
    async with slots:
        match kind(number):
            case "cancel":
                return await cancelled(stub, number)
            case "late":
                return await late(stub, number)
            case "bad":
                return await refused(stub, request)
            case _:
                answer = await collect(stub.Generate(request))
                assert answer == expected[number % NUM_CASES]
                return "right"


def long_request(number: int) -> pb.GenerateRequest:
    request = case(number % NUM_CASES)
    request.sampling.max_tokens = 400
    return request


async def cancelled(stub, number: int) -> str:
    call = stub.Generate(long_request(number))
    if number % 20 == 3:
        await anext(aiter(call))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await collect(call)
    return "cancelled"


async def late(stub, number: int) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(stub.Generate(long_request(number), timeout=0.05 + (number % 4) * 0.3))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    return "late"


async def refused(stub, request: pb.GenerateRequest) -> str:
    request.sampling.top_p = 2.0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(stub.Generate(request))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "top_p" in caught.value.details()
    return "refused"
