"""Both phases over a memd that is killed in the middle of its calls: no wrong token, no drop, no lost block."""

import asyncio
import random
from dataclasses import replace

import pytest

from services.decode.engine import DecodeEngine
from services.prefill.engine import PrefillEngine
from tandem.phase import leases, storage, updates
from tandem.phase.crew import Crew
from tandem.phase.engine import PhaseEngine
from tandem.phase.hold import Hold
from tandem.types import Phase
from tests.support.fake_gateway import FakeGateway
from tests.support.fake_model import VOCAB_SIZE, Slots, continuation
from tests.support.mortal_memd import MortalMemd
from tests.support.phase_fakes import make_rig, make_spec

NUM_REQUESTS = 10
COMMON = [(i * i * 7) % VOCAB_SIZE for i in range(12)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (leases, storage, updates):
        monkeypatch.setattr(module, "RETRY_S", 0.0)


def make_engine(phase: Phase, memd: MortalMemd, slots: Slots, crew: Crew) -> PrefillEngine | DecodeEngine:
    hold = Hold(memd, memd.attach(phase))
    rig = make_rig(phase, memd, slots, crew, ahead_blocks=3)
    outfit = replace(rig.outfit, store=hold, holder_id=hold.holder_id)
    engine = DecodeEngine(outfit) if phase is Phase.DECODE else PrefillEngine(outfit, lambda: 8)
    engine.start()
    crew.spawn(hold.run(engine.resume))
    return engine


async def until_settled(memd: MortalMemd, engines: dict[Phase, PhaseEngine]) -> None:
    """Until the phases and memd mean the same; the test's time limit bounds it."""

    def agree() -> bool:
        holders = {holder.service: holder.num_spare_blocks for holder in memd.ledger.statistics().holders}
        return holders == {phase.value: engine.load().num_spare_blocks for phase, engine in engines.items()}

    async with asyncio.timeout(20):
        while not agree() or memd.ledger.statistics().num_leased_blocks:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("seed", range(12))
async def test_whenever_memd_is_killed_nothing_is_lost(seed: int) -> None:
    chance, crew, slots = random.Random(seed), Crew(), Slots()
    memd = MortalMemd(48, chance, kill_rate=0.08)
    prefill = make_engine(Phase.PREFILL, memd, slots, crew)
    decode = make_engine(Phase.DECODE, memd, slots, crew)
    gateway = FakeGateway(memd, prefill, decode)
    crew.spawn(gateway.run_prefill())
    crew.spawn(gateway.run_decode())
    prompts = {}
    for lease_id in range(1, NUM_REQUESTS + 1):
        start = COMMON[: chance.choice((0, 4, 8, 12))]
        prompts[lease_id] = [*start, *(chance.randrange(VOCAB_SIZE) for _ in range(chance.randint(1, 9)))]
        spec = make_spec(lease_id, prompts[lease_id], max_tokens=chance.randint(1, 14))
        gateway.submit(replace(spec, cache_namespace=b"tenant".ljust(32)))
        for _ in range(chance.randrange(12)):
            await asyncio.sleep(0)
        await chance.choice((prefill, decode)).reclaim(2)
    await gateway.until_done(NUM_REQUESTS)
    await memd.live_on()
    for request in gateway.done:
        assert request.drops == []
        assert request.output == continuation(request.spec.token_ids, request.spec.stop.max_tokens)
    await until_settled(memd, {Phase.PREFILL: prefill, Phase.DECODE: decode})
    memd.ledger.check()
    assert memd.num_deaths >= 3
    await crew.cancel()
