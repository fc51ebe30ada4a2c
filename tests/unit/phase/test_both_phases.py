"""Prefill and decode over one small pool, with the gateway played: whatever happens, no token is lost or wrong."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from services.decode.engine import DecodeEngine
from services.prefill.engine import PrefillEngine
from tandem.phase.crew import Crew
from tandem.types import DropReason, FinishReason, Phase
from tests.support.fake_gateway import FakeGateway
from tests.support.fake_model import BLOCK_SIZE, VOCAB_SIZE, Slots, continuation
from tests.support.fake_store import DECODE_HOLDER, FakeStore
from tests.support.phase_fakes import make_rig, make_spec


@dataclass
class Deployment:
    store: FakeStore
    prefill: PrefillEngine
    decode: DecodeEngine
    gateway: FakeGateway


Deployed = Callable[..., AbstractAsyncContextManager[Deployment]]


@pytest.fixture(params=["apart", "colocated"])
def deployed(request: pytest.FixtureRequest) -> Deployed:
    """Two step loops, or one whose steps are both phases'."""
    return partial(_deployed, colocated=request.param == "colocated")


@asynccontextmanager
async def _deployed(num_blocks: int, *, colocated: bool, reserve: int = 2) -> AsyncIterator[Deployment]:
    store, slots, crew = FakeStore(num_blocks, reserve), Slots(), Crew()
    decode_rig = make_rig(Phase.DECODE, store, slots, crew, ahead_blocks=3)
    steps = decode_rig.outfit.steps
    prefill_rig = make_rig(Phase.PREFILL, store, slots, crew, ahead_blocks=3, steps=steps if colocated else None)
    prefill = PrefillEngine(prefill_rig.outfit, lambda: max(0, 8 - steps.num_rows) if colocated else 8)
    decode = DecodeEngine(decode_rig.outfit)
    gateway = FakeGateway(store, prefill, decode)

    def ask_the_other(holder_id: int, num_blocks: int) -> None:
        other = prefill if holder_id == DECODE_HOLDER else decode
        crew.spawn(other.reclaim(num_blocks))

    store.on_short = ask_the_other
    prefill.start()
    decode.start()
    crew.spawn(gateway.run_prefill())
    crew.spawn(gateway.run_decode())
    failing = asyncio.create_task(crew.failure())
    yield Deployment(store, prefill, decode, gateway)
    assert not failing.done(), failing.exception()
    failing.cancel()
    await crew.cancel()


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple((seed * 31 + i * 7) % VOCAB_SIZE for i in range(length))


async def test_one_request_through_both_phases(deployed: Deployed) -> None:
    async with deployed(32) as site:
        site.gateway.submit(make_spec(1, prompt(1, 11), max_tokens=15))
        await site.gateway.until_done(1)
        assert site.gateway.done[0].output == continuation(prompt(1, 11), 15)
        site.store.check()


@pytest.mark.parametrize("seed", range(6))
async def test_more_sequences_than_the_pool_holds_all_end_with_the_tokens_of_a_lone_run(
    deployed: Deployed, seed: int
) -> None:
    chance = random.Random(seed)
    async with deployed(num_blocks=chance.randint(10, 16)) as site:
        lengths = {lease_id: (chance.randint(1, 14), chance.randint(1, 16)) for lease_id in range(1, 13)}
        for lease_id, (length, max_tokens) in lengths.items():
            priority = chance.choice((0, 0, 1))
            site.gateway.submit(make_spec(lease_id, prompt(lease_id, length), max_tokens=max_tokens, priority=priority))
        await site.gateway.until_done(12)
        for request in site.gateway.done:
            tokens = request.spec.token_ids
            assert request.output == continuation(tokens, request.spec.stop.max_tokens)
            assert request.finish_reason is FinishReason.LENGTH
            assert set(request.drops) <= {DropReason.PREEMPTED}
        assert site.store.leases == {}
        site.store.check()


async def test_preempted_sequences_come_back(deployed: Deployed) -> None:
    async with deployed(num_blocks=12) as site:
        for lease_id in range(1, 5):
            site.gateway.submit(make_spec(lease_id, prompt(lease_id, 2 * BLOCK_SIZE), max_tokens=5 * BLOCK_SIZE))
        await site.gateway.until_done(4)
        assert sum(len(request.drops) for request in site.gateway.done) >= 1
        first = next(request for request in site.gateway.done if request.spec.lease_id == 1)
        assert first.drops == []
        for request in site.gateway.done:
            assert request.output == continuation(request.spec.token_ids, 5 * BLOCK_SIZE)


@pytest.mark.parametrize("seed", range(4))
async def test_aborts_at_any_moment_disturb_nobody_else(deployed: Deployed, seed: int) -> None:
    chance = random.Random(seed)
    async with deployed(num_blocks=20) as site:
        for lease_id in range(1, 17):
            site.gateway.submit(make_spec(lease_id, prompt(lease_id, chance.randint(1, 12)), max_tokens=12))
            for _ in range(chance.randint(0, 30)):
                await asyncio.sleep(0)
            if lease_id % 3 == 0 and site.gateway.requests:
                site.gateway.abort(chance.choice(list(site.gateway.requests)))
        await site.gateway.until_done(16)
        for request in site.gateway.done:
            expected = continuation(request.spec.token_ids, 12)
            if DropReason.ABORTED in request.drops:
                assert request.output == expected[: len(request.output)]
            else:
                assert request.output == expected
        assert site.store.leases == {}
        site.store.check()


async def test_idle_phases_keep_no_block_from_one_another(deployed: Deployed) -> None:
    async with deployed(num_blocks=8, reserve=0) as site:
        site.gateway.submit(make_spec(1, prompt(1, 7 * BLOCK_SIZE), max_tokens=BLOCK_SIZE))
        await site.gateway.until_done(1)
        assert site.gateway.done[0].output == continuation(prompt(1, 7 * BLOCK_SIZE), BLOCK_SIZE)
