"""memd killed under load: every stream goes on, nothing is loaded again, and no block is lost."""

import asyncio
import signal

import grpc
import pytest

from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.rpc.stubs.gateway.v1 import gateway_pb2_grpc as pb_grpc
from tests.e2e.test_load import Answer, collect, idle_statistics
from tests.support.deployment import POOL, Deployment, deployment

NUM_CASES = 12
NUM_KILLS = 3
MAX_TOKENS = 90
PHASES = ("prefill", "decode")


@pytest.fixture(scope="module")
def system(tiny_model_dir):
    """Few spare blocks, so that the phases need memd often."""
    spare = {"spare-blocks": 6}
    with deployment(str(tiny_model_dir("llama")), {**POOL, "prefill": spare, "decode": spare}) as running:
        yield running


def case(number: int) -> pb.GenerateRequest:
    """Every other one is sampled; the same number is the same request."""
    ids = [(number * 31 + position * 7) % 200 + 1 for position in range(20 + 5 * number)]
    sampling = pb.SamplingParams(max_tokens=MAX_TOKENS - number, ignore_eos=True, temperature=0.0)
    if number % 2:
        sampling.temperature, sampling.seed = 0.9, number
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), sampling=sampling)


class Load:
    """Clients that repeat their request until they are told to stop, and compare."""

    def __init__(self, stub: pb_grpc.GatewayServiceStub, expected: list[Answer]) -> None:
        self.num_answers = 0
        self._stub = stub
        self._expected = expected
        self._stopping = False

    def start(self) -> list["asyncio.Task[None]"]:
        return [asyncio.create_task(self._repeat(number)) for number in range(NUM_CASES)]

    def stop(self) -> None:
        self._stopping = True

    async def _repeat(self, number: int) -> None:
        while not self._stopping:
            assert await collect(self._stub.Generate(case(number))) == self._expected[number]
            self.num_answers += 1


async def restart_memd(system: Deployment, how: signal.Signals) -> None:
    loop = asyncio.get_running_loop()
    system.processes["memd"].send_signal(how)
    await loop.run_in_executor(None, system.processes["memd"].wait, 60)
    system.start("memd")
    await loop.run_in_executor(None, system.wait_serving, "memd")


async def num_cached_tokens(stub: pb_grpc.GatewayServiceStub, request: pb.GenerateRequest) -> int:
    return [piece async for piece in stub.Generate(request)][-1].usage.num_cached_tokens


async def test_every_stream_goes_on_when_memd_is_killed(system):
    phases = [system.processes[phase].pid for phase in PHASES]
    async with grpc.aio.insecure_channel(system.gateway) as channel:
        stub = pb_grpc.GatewayServiceStub(channel)
        expected = [await collect(stub.Generate(case(number))) for number in range(NUM_CASES)]
        load = Load(stub, expected)
        clients = load.start()
        for _ in range(NUM_KILLS):
            before = load.num_answers
            while load.num_answers < before + NUM_CASES:
                await asyncio.wait(clients, timeout=0.05)
                assert not any(client.done() for client in clients), [client.exception() for client in clients]
            await restart_memd(system, signal.SIGKILL)
        load.stop()
        await asyncio.gather(*clients)
        statistics = await idle_statistics(system)
        cached = await num_cached_tokens(stub, case(NUM_CASES - 1))
    in_pool = statistics.num_free_blocks + statistics.num_spare_blocks + statistics.num_cached_blocks
    assert in_pool == statistics.num_blocks
    assert {holder.pid for holder in statistics.holders} == set(phases), "the phases are the same processes"
    assert cached >= 64, "what was published before the kills is still found"
    log = system.log("memd")
    assert (log.count('"model.loaded"'), log.count('"storage.resumed"')) == (1, NUM_KILLS)
    assert "DROPPED" not in "".join(system.log(phase) for phase in PHASES)


async def test_a_memd_that_drains_leaves_everything_to_the_next(system):
    async with grpc.aio.insecure_channel(system.gateway) as channel:
        stub = pb_grpc.GatewayServiceStub(channel)
        expected = [await collect(stub.Generate(case(number))) for number in range(2)]
        under_way = [asyncio.ensure_future(collect(stub.Generate(case(number)))) for number in range(2)]
        await restart_memd(system, signal.SIGTERM)
        assert await asyncio.gather(*under_way) == expected
    assert system.log("memd").count('"model.loaded"') == 1
