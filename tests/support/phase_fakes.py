"""What a phase's engine works among: a controller, a backend, a step loop, and the sequences that it is sent."""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from tandem.clock import Clock, MonotonicClock
from tandem.device.partition import Applied, RestartRequired
from tandem.phase.crew import Crew
from tandem.phase.joint import JointWork
from tandem.phase.limits import PhaseLimits
from tandem.phase.loop import Reporter, StepLoop
from tandem.phase.outfit import Outfit
from tandem.phase.share import ShareKeeper
from tandem.phase.stepper import Stepper
from tandem.phase.supply import SupplyPolicy
from tandem.runner.steps import LogitsThenDraws
from tandem.telemetry.metrics import PhaseMetrics
from tandem.types import Phase, SamplingSpec, SequenceSpec, Split, StepStatistics, StopSpec
from tests.support.fake_model import BLOCK_SIZE, VOCAB_SIZE, FakeRunner, FakeSegments, Slots, greedy
from tests.support.fake_store import DECODE_HOLDER, PREFILL_HOLDER, FakeStore


@dataclass
class FakeController:
    """Plays the controller's link."""

    assignments: list[tuple[int, Split]] = field(default_factory=list)
    steps: list[StepStatistics] = field(default_factory=list)
    applied: list[tuple[int, str]] = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)  # of an applied share
    stepped: asyncio.Event = field(default_factory=asyncio.Event)

    def pending(self) -> tuple[int, Split] | None:
        return self.assignments.pop(0) if self.assignments else None

    def report_step(self, step: StepStatistics) -> None:
        self.steps.append(step)
        self.stepped.set()

    def report_applied(self, decision_id: int, outcome: Applied | RestartRequired, apply_ms: float) -> None:
        self.applied.append((decision_id, outcome.detail))
        self.told.set()


class FakeBackend:
    """Says on which thread it was applied."""

    name = "fake"

    def apply(self, phase: Phase, split: Split) -> Applied | RestartRequired:
        return Applied(f"{phase} {split.prefill_percent}/{split.decode_percent} on {threading.current_thread().name}")

    def turn(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass
class Rig:
    """An engine's surroundings, kept at hand for the test."""

    runner: FakeRunner
    segments: FakeSegments
    controller: FakeController
    metrics: PhaseMetrics
    outfit: Outfit


def make_rig(
    phase: Phase,
    store: FakeStore,
    slots: Slots,
    crew: Crew,
    *,
    max_sequences: int = 8,
    ahead_blocks: int = 4,
    max_context_tokens: int = 1000,
    clock: Clock | None = None,
    steps: JointWork | None = None,
) -> Rig:
    """Surroundings with short retries, and a running step loop unless the engine is to join the `steps` of another."""
    clock = clock or MonotonicClock()
    runner, controller = FakeRunner(slots), FakeController()
    metrics = PhaseMetrics.create(CollectorRegistry(), phase)
    segments = FakeSegments(slots)
    stepper = Stepper(LogitsThenDraws(runner, greedy), open_segments=lambda: segments, wipe=runner.wiped.extend)
    reserve = store.reserve_blocks if phase is Phase.PREFILL else 0
    outfit = Outfit(
        store=store,
        holder_id=PREFILL_HOLDER if phase is Phase.PREFILL else DECODE_HOLDER,
        limits=PhaseLimits(max_sequences, BLOCK_SIZE, store.num_blocks - reserve, VOCAB_SIZE, max_context_tokens),
        supply_policy=SupplyPolicy(ahead_blocks, first_retry_s=0.002, last_retry_s=0.01, lean_s=0.005),
        steps=steps or JointWork(),
        metrics=metrics,
        crew=crew,
        clock=clock,
    )
    if steps is None:
        share = ShareKeeper(phase, controller, FakeBackend(), stepper, metrics=metrics, clock=clock)
        reporter = Reporter(controller, metrics, lambda: 7)
        loop = StepLoop(
            outfit.steps, wake=outfit.steps.wake, stepper=stepper, share=share, reporter=reporter, clock=clock
        )
        crew.spawn(loop.run())
    return Rig(runner, segments, controller, metrics, outfit)


def make_spec(
    lease_id: int,
    prompt: Sequence[int],
    *,
    output: Sequence[int] = (),
    max_tokens: int = 8,
    min_tokens: int = 0,
    stop_token_ids: tuple[int, ...] = (),
    priority: int = 0,
    arrival: int | None = None,
) -> SequenceSpec:
    """A greedy sequence; it arrives in the order of its id unless told otherwise."""
    return SequenceSpec(
        lease_id=lease_id,
        request_id=f"request-{lease_id}",
        token_ids=(*prompt, *output),
        num_prompt_tokens=len(prompt),
        sampling=SamplingSpec(temperature=0.0),
        stop=StopSpec(max_tokens, min_tokens, stop_token_ids),
        priority=priority,
        arrival_unix_ns=lease_id if arrival is None else arrival,
    )
