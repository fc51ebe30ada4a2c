"""Both phases in one process: the same answers, the same gateway, the same clients."""

import asyncio

import pytest

from tests.e2e.test_load import idle_statistics
from tests.e2e.test_segment_reuse import refreshed_usage
from tests.e2e.test_services import answers, request
from tests.support.deployment import POOL, deployment


@pytest.fixture(scope="module")
def started(tiny_model_dir):
    settings = POOL | {"colocated": {"step-tokens": 24, "refresh-every": 4}}
    with deployment(str(tiny_model_dir("llama")), settings, "colocated") as running:
        yield running


@pytest.fixture
def together(started):
    """Running, whatever the test before has ended."""
    started.revive()
    return started


async def test_colocated_answers_as_semi_pd_does(system, together):
    requests = [request(number, 40) for number in range(8)]
    requests += [request(number, 40, temperature=0.9, seed=number) for number in range(8)]
    expected = await answers(system.gateway, requests)
    assert await answers(together.gateway, requests) == expected
    statistics = await idle_statistics(together)
    assert {holder.service for holder in statistics.holders} == {"prefill", "decode"}
    assert len({holder.pid for holder in statistics.holders}) == 1


async def test_approximate_kv_is_computed_anew_within_the_steps_budget(together):
    usage = await asyncio.to_thread(refreshed_usage, together.gateway, "colocated")
    assert 0 < usage.num_refreshed_tokens <= usage.num_approximate_tokens


async def test_killed_under_load_it_comes_back_and_nothing_is_lost(together):
    requests = [request(number, 150) for number in range(6)]
    expected = await answers(together.gateway, requests)
    num_prefilled = together.log("colocated").count('"sequence.prefilled"')
    pending = asyncio.ensure_future(answers(together.gateway, requests))
    while together.log("colocated").count('"sequence.prefilled"') <= num_prefilled:
        await asyncio.sleep(0.01)
    together.kill("colocated")
    together.start("colocated")
    assert await pending == expected
    assert (await idle_statistics(together)).num_sequences == 0


async def test_it_drains_on_sigterm(together):
    await answers(together.gateway, [request(1, 4)])
    loop = asyncio.get_running_loop()
    for service in ("gateway", "colocated", "controller", "memd"):
        assert await loop.run_in_executor(None, together.terminate, service) == 0
