"""Prompts that reuse segments, over a small pool and a memd that is killed in the middle of its calls."""

import asyncio
import random
from dataclasses import replace

import pytest

from services.decode.engine import DecodeEngine
from services.decode.refreshes import Refreshes
from services.prefill.engine import PrefillEngine
from tandem.kv.contents import namespace, segment_namespace
from tandem.phase import leases, storage, updates
from tandem.phase.crew import Crew
from tandem.phase.hold import Hold
from tandem.phase.outfit import Outfit
from tandem.reuse.plan import ReusePolicy
from tandem.reuse.refresh import RefreshPolicy
from tandem.types import DropReason, Phase, SegmentReuse, SequenceSpec, Span
from tests.support.fake_gateway import FakeGateway
from tests.support.fake_model import VOCAB_SIZE, Slots, continuation
from tests.support.mortal_memd import MortalMemd
from tests.support.phase_fakes import make_rig, make_spec

NUM_REQUESTS = 14
PROMPTS = namespace(b"tenant")
SEGMENTS = segment_namespace(PROMPTS)
POLICY = ReusePolicy(head_tokens=1, min_reused_tokens=4, max_computed_share=1.0)
REFRESH = RefreshPolicy(every_tokens=2, num_tokens=3)
FIRST = 96


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (leases, storage, updates):
        monkeypatch.setattr(module, "RETRY_S", 0.0)


def surroundings(phase: Phase, memd: MortalMemd, slots: Slots, crew: Crew) -> tuple[Outfit, Hold]:
    hold = Hold(memd, memd.attach(phase))
    rig = make_rig(phase, memd, slots, crew, ahead_blocks=3)
    return replace(rig.outfit, store=hold, holder_id=hold.holder_id), hold


def random_spec(lease_id: int, chance: random.Random, documents: list[list[int]]) -> SequenceSpec:
    """A document's entry, or a prompt that has two documents."""
    first, second = chance.sample(documents, 2)
    if chance.random() < 0.3:
        return replace(make_spec(lease_id, [FIRST, *first], max_tokens=1), cache_namespace=SEGMENTS)
    start = [chance.randrange(VOCAB_SIZE) for _ in range(chance.randint(0, 5))]
    spans = (Span(len(start), len(start) + len(first)), Span(len(start) + len(first), len(start + first + second)))
    spec = make_spec(lease_id, [*start, *first, *second, lease_id], max_tokens=chance.randint(1, 9))
    return replace(spec, cache_namespace=PROMPTS, reuse=SegmentReuse(0.3, spans, SEGMENTS, FIRST))


async def run_over_mortal_memd(seed: int) -> tuple[int, int, int]:
    """How many tokens prefill left approximate, how many of them decode computed anew, and how often memd died."""
    chance, crew, slots = random.Random(seed), Crew(), Slots()
    memd = MortalMemd(56, chance, kill_rate=0.05)
    for_decode, decode_hold = surroundings(Phase.DECODE, memd, slots, crew)
    for_prefill, prefill_hold = surroundings(Phase.PREFILL, memd, slots, crew)
    prefill = PrefillEngine(for_prefill, lambda: 8, POLICY)
    decode = DecodeEngine(for_decode, Refreshes(REFRESH))
    gateway = FakeGateway(memd, prefill, decode)
    for engine, hold in ((prefill, prefill_hold), (decode, decode_hold)):
        engine.start()
        crew.spawn(hold.run(engine.resume))
    crew.spawn(gateway.run_prefill())
    crew.spawn(gateway.run_decode())
    documents = [[chance.randrange(VOCAB_SIZE) for _ in range(chance.randint(7, 22))] for _ in range(3)]
    for lease_id in range(1, NUM_REQUESTS + 1):
        gateway.submit(random_spec(lease_id, chance, documents))
        for _ in range(chance.randrange(60)):
            await asyncio.sleep(0)
    await gateway.until_done(NUM_REQUESTS)
    await memd.live_on()
    for request in gateway.done:
        assert set(request.drops) <= {DropReason.LEASE_LOST, DropReason.PREEMPTED}
        assert request.output == continuation(request.spec.token_ids, request.spec.stop.max_tokens)
    memd.ledger.check()
    await crew.cancel()
    prefilled = [each for request in gateway.done for each in request.prefilled]
    num_approximate = sum(outcome.num_approximate for each in prefilled for outcome in each.segments)
    return num_approximate, sum(request.num_refreshed for request in gateway.done), memd.num_deaths


async def test_answers_are_right_whenever_memd_is_killed_and_whatever_is_evicted() -> None:
    counts = [await run_over_mortal_memd(seed) for seed in range(4)]
    assert all(map(sum, zip(*counts, strict=True)))
