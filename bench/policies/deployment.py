"""A simulated deployment at a fixed split: the dispatcher and schedulers that serve, prompts that share blocks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from bench.policies.feed import CacheFeed
from bench.policies.gateway import GatewayOptions, PolicyGateway
from bench.policies.prefill import SharingPrefill
from bench.policies.sequences import CachingPool, SharingSequence
from bench.simulate.events import EventQueue
from bench.simulate.sequences import SimSequence
from bench.simulate.step_times import Device, StepContent
from bench.simulate.systems import System
from bench.simulate.works import DecodeWork
from tandem.routing.published import PublishedBlocks
from tandem.types import Phase, Split

MS = 1e-3
FOREVER_S = float("inf")
NEWS_DELAY_S = 0.05


class PhaseWork(Protocol):
    """One phase's steps."""

    def prepare(self) -> StepContent | None:
        """The next step; None when there is nothing to do now."""
        ...

    def finish(self, now_s: float) -> None:
        """The step that was prepared is done."""
        ...


class PhaseLoop:
    """Step after step of one phase; at rest when there is nothing to do."""

    def __init__(self, work: PhaseWork, events: EventQueue, step_ms: Callable[[StepContent], float]) -> None:
        """`step_ms`: with what lies between two steps."""
        self._work = work
        self._events = events
        self._step_ms = step_ms
        self.is_busy = False

    def wake(self) -> None:
        """There may be something to do."""
        if self.is_busy:
            return
        content = self._work.prepare()
        if content is not None:
            self.is_busy = True
            self._events.after(self._step_ms(content) * MS, self._end)

    def _end(self) -> None:
        self._work.finish(self._events.now_s)
        self.is_busy = False
        self._events.after(0.0, self.wake)


@dataclass(frozen=True, slots=True)
class Setting:
    """A machine, its split, and the gateway's settings."""

    system: System
    split: Split
    gateway: GatewayOptions
    news_delay_s: float = NEWS_DELAY_S  # of the cache's events, to the gateway


class Onlooker(Protocol):
    """Whoever is told what becomes of sequences."""

    def prefilled(self, sequence: SharingSequence) -> None:
        """It has its first token, or, having lost its blocks, one more."""
        ...

    def ended(self, sequence: SharingSequence) -> None:
        """It has its whole answer."""
        ...


def simulate(setting: Setting, seed: int, arrivals: Sequence[SharingSequence]) -> None:
    """Notes in the arrivals what becomes of them, of each to its end. The same arguments give the same outcome."""
    events = EventQueue()
    deployment = PolicyDeployment(setting, seed, events)
    for sequence in arrivals:
        events.after(sequence.arrived_s, partial(deployment.arrive, sequence))
    events.run(FOREVER_S)


class PolicyDeployment:
    """Gateway, phases, and the pool that both phases draw on."""

    def __init__(self, setting: Setting, seed: int, events: EventQueue, onlooker: Onlooker | None = None) -> None:
        limits = setting.system.limits
        self._events = events
        self._onlooker = onlooker
        self._limits = limits
        self._split = setting.split
        self._device = Device(setting.system.table, setting.system.contention, seed)
        self.pool = CachingPool(limits.num_blocks, limits.block_size)
        self.published = PublishedBlocks(lambda: limits.num_blocks)  # as the gateway hears
        self._gateway = PolicyGateway(setting.gateway, limits, self.published, events, self._start)
        CacheFeed(self.pool, events, setting.news_delay_s, lambda: self.published.position, self._gateway.hear)
        self._prefill = SharingPrefill(limits, self.pool, self._prefilled)
        self._decode = DecodeWork(limits, self.pool, self._completed, self._preempted)
        works: dict[Phase, PhaseWork] = {Phase.PREFILL: self._prefill, Phase.DECODE: self._decode}
        self._loops = {phase: PhaseLoop(work, events, partial(self._step_ms, phase)) for phase, work in works.items()}

    def arrive(self, sequence: SharingSequence) -> None:
        """It comes to the gateway now."""
        self._gateway.arrive(sequence)

    def _step_ms(self, phase: Phase, content: StepContent) -> float:
        other = Phase.DECODE if phase is Phase.PREFILL else Phase.PREFILL
        other_percent = self._split.percent(other) if self._loops[other].is_busy else 0.0
        step_ms = self._device.step_ms(content, self._split.percent(phase), other_percent)
        return step_ms + self._limits.between_steps_ms

    def _start(self, sequence: SharingSequence) -> None:
        self._prefill.submit(sequence)
        self._loops[Phase.PREFILL].wake()

    def _prefilled(self, sequence: SharingSequence) -> None:
        self._events.after(self._limits.handover_ms * MS, lambda: self._first_token(sequence))

    def _first_token(self, sequence: SharingSequence) -> None:
        sequence.token_times_s.append(self._events.now_s)
        if self._onlooker:
            self._onlooker.prefilled(sequence)
        self._gateway.prefilled(sequence)
        if sequence.is_complete:
            self._end(sequence)
        else:
            self._decode.submit(sequence)
            self._loops[Phase.DECODE].wake()

    def _completed(self, sequence: SimSequence) -> None:
        self._end(_sharing(sequence))

    def _end(self, sequence: SharingSequence) -> None:
        self.pool.take_back(sequence)
        self._gateway.complete(sequence)
        if self._onlooker:
            self._onlooker.ended(sequence)
        self._loops[Phase.PREFILL].wake()  # its blocks may be what somebody waits for

    def _preempted(self, sequence: SimSequence) -> None:
        self._gateway.preempted(_sharing(sequence))


def _sharing(sequence: SimSequence) -> SharingSequence:
    """Of one that was submitted here."""
    if not isinstance(sequence, SharingSequence):
        raise TypeError(f"{sequence!r} is not of this simulation")
    return sequence
