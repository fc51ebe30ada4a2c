"""More requests than can be served: who is refused, how early, and what is kept of them."""

import tracemalloc

import pytest

from tandem.config.settings import GatewayConfig
from tandem.errors import NotReadyError, QueueFullError
from tests.support.gateway_fakes import Rig


async def rig_with(**settings: int) -> Rig:
    return await Rig(config=GatewayConfig(max_running=1, **settings)).up()


async def test_the_prompts_that_wait_have_a_bound_in_tokens():
    rig = await rig_with(max_waiting_tokens=100)
    kept = [await rig.request("running")]
    kept.append(await rig.request("x" * 150))  # nobody else waits
    with pytest.raises(QueueFullError, match="150 tokens"):
        await rig.request("y")
    rig.gateway.frontend.cancel(kept.pop())
    kept += [await rig.request("x" * 60), await rig.request("x" * 40)]
    with pytest.raises(QueueFullError) as caught:
        await rig.request("y")
    assert caught.value.retry_delay_s > 0
    for request in kept:
        rig.gateway.frontend.cancel(request)
    await rig.assert_all_released()


async def test_a_tenant_whose_prompts_fill_the_queue_shuts_out_nobody_else():
    rig = await rig_with(max_waiting_tokens=100)
    kept = [await rig.request(prompt, tenant="flood") for prompt in ("running", "x" * 50, "x" * 50)]
    kept.append(await rig.request("x" * 50, tenant="other"))
    for tenant in ("flood", "other"):
        with pytest.raises(QueueFullError, match="150 tokens"):
            await rig.request("y", tenant=tenant)
    kept.append(await rig.request("x" * 33, tenant="third"))
    for request in kept:
        rig.gateway.frontend.cancel(request)
    await rig.assert_all_released()


async def test_what_is_refused_is_not_even_tokenised(monkeypatch):
    rig = await rig_with(max_waiting=1)
    kept = [await rig.request() for _ in range(2)]
    monkeypatch.setattr(type(rig.model.tokenizer), "encode", None)
    with pytest.raises(QueueFullError):
        await rig.request("x" * 100_000)
    for request in kept:
        rig.gateway.frontend.cancel(request)
    await rig.assert_all_released()
    await rig.gateway.reception.drain(0.0)
    with pytest.raises(NotReadyError):
        await rig.request("x")


async def test_refusals_leave_nothing_behind():
    rig = await rig_with(max_waiting=1)
    kept = [await rig.request() for _ in range(2)]

    async def refuse(times: int) -> int:
        for number in range(times):
            with pytest.raises(QueueFullError):
                await rig.request("x" * 200, request_id=f"refused-{number}")
        ours = [tracemalloc.Filter(True, f"*/{folder}/*") for folder in ("services", "tandem")]  # not the captured log
        return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(ours).traces)

    tracemalloc.start()
    try:
        before = await refuse(20)
        after = await refuse(200)
    finally:
        tracemalloc.stop()
    assert after - before < 5_000
    for request in kept:
        rig.gateway.frontend.cancel(request)
    await rig.assert_all_released()
