"""Services that die or run short: phases killed while idle, a pool too small for the load, a drain."""

import asyncio
import json
from pathlib import Path

import grpc
import pytest

from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.rpc.stubs.gateway.v1 import gateway_pb2_grpc as pb_grpc
from tests.e2e.test_load import Answer, collect, idle_statistics
from tests.support.deployment import POOL, deployment

SMALL_POOL_TOKENS = 640


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return str(tiny_model_dir("llama"))


def request(number: int, max_tokens: int, **sampling: float) -> pb.GenerateRequest:
    ids = [(number * 31 + position * 7) % 200 + 1 for position in range(20 + number)]
    params = pb.SamplingParams(max_tokens=max_tokens, ignore_eos=True, **(sampling or {"temperature": 0.0}))
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), sampling=params)


async def answers(address: str, requests: list[pb.GenerateRequest]) -> list[Answer]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.GatewayServiceStub(channel)
        return await asyncio.gather(*(collect(stub.Generate(each)) for each in requests))


@pytest.mark.parametrize("service", ["prefill", "decode"])
async def test_a_phase_killed_while_idle_comes_back_without_loading_weights(system, service):
    before = await answers(system.gateway, [request(1, 12)])
    await idle_statistics(system)
    system.kill(service)
    system.start(service)
    system.wait_serving(service)
    assert await answers(system.gateway, [request(1, 12)]) == before
    assert system.log("memd").count('"model.loaded"') == 1
    assert (await idle_statistics(system)).num_sequences == 0


async def test_a_request_sent_while_decode_is_away_waits_for_it(system):
    before = await answers(system.gateway, [request(2, 12)])
    system.kill("decode")
    pending = asyncio.ensure_future(answers(system.gateway, [request(2, 12)]))
    await asyncio.sleep(0)
    system.start("decode")
    assert await pending == before


async def test_sequences_that_outgrow_the_pool_come_back_with_nothing_lost(system, model):
    requests = [request(number, 120) for number in range(6)]
    requests += [request(number, 120, temperature=0.9, seed=number) for number in range(6)]
    expected = await answers(system.gateway, requests)
    roomy = await idle_statistics(system)
    kv_bytes = roomy.kv_bytes // roomy.num_blocks * SMALL_POOL_TOKENS // 16
    spare = {"spare-blocks": 4}
    tight = {"memd": {"kv-bytes": kv_bytes, "dtype": "float32", "reserve-blocks": 2}, "prefill": spare, "decode": spare}
    with deployment(model, tight) as small:
        assert await answers(small.gateway, requests) == expected
        assert "PREEMPTED" in small.log("decode")
        statistics = await idle_statistics(small)
    in_pool = statistics.num_free_blocks + statistics.num_spare_blocks + statistics.num_cached_blocks
    assert in_pool == statistics.num_blocks


async def test_every_service_drains_on_sigterm(model):
    with deployment(model, POOL) as running:
        pending = asyncio.ensure_future(answers(running.gateway, [request(3, 60)]))
        async with grpc.aio.insecure_channel(running.gateway) as channel:
            stub = pb_grpc.GatewayServiceStub(channel)
            while (await stub.GetStatus(pb.GetStatusRequest())).num_decoding == 0 and not pending.done():
                await asyncio.sleep(0.01)
        statuses = {}
        loop = asyncio.get_running_loop()
        for service in ("gateway", "decode", "prefill", "controller", "memd"):
            statuses[service] = await loop.run_in_executor(None, running.terminate, service)
        assert len((await pending)[0].token_ids) == 60
        for service in statuses:
            lines = running.log(service).splitlines()
            assert [line for line in lines if not is_event(line)] == []
    assert statuses == dict.fromkeys(statuses, 0)


def is_event(line: str) -> bool:
    """Whether a line of a log is a JSON object with what every event has."""
    try:
        return {"timestamp", "level", "service", "event"} <= json.loads(line).keys()
    except ValueError:
        return False


async def test_phases_share_one_copy_of_the_weights(default_model_path):
    with deployment(str(default_model_path), {"memd": {"kv-bytes": 64 << 20}}) as running:
        await answers(running.gateway, [request(1, 4)])  # so that both have read every weight
        pids = [running.processes[service].pid for service in ("memd", "prefill", "decode")]
        shared = [mapping_bytes(pid) for pid in pids]
    resident = [entry["Rss"] for entry in shared if entry["Rss"]]
    proportional = sum(entry["Pss"] for entry in shared)
    assert len(resident) >= 2, "both phases map the weights"
    assert proportional <= max(resident) * 1.02


def mapping_bytes(pid: int) -> dict[str, int]:
    """Rss and Pss of the process's mappings of the weight segment, from /proc."""
    totals = {"Rss": 0, "Pss": 0}
    inside = False
    with Path(f"/proc/{pid}/smaps").open() as lines:
        for line in lines:
            key, *rest = line.split()
            if not key.endswith(":"):
                inside = "tandem-weights" in line
            elif inside and key[:-1] in totals:
                totals[key[:-1]] += int(rest[0]) * 1024
    return totals
