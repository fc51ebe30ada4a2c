"""A simulated deployment under a workload: the policies that serve, over simulated time and a simulated device."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.load.records import RequestRecord
from bench.simulate.control import Control, ControlOptions, Offer, Switch
from bench.simulate.events import EventQueue
from bench.simulate.gateway import SimGateway
from bench.simulate.pace import Activity, CadencePace, Pace, SharedPace
from bench.simulate.process import MS, SimProcess
from bench.simulate.sequences import BlockPool, SimSequence
from bench.simulate.step_times import Device, StepContent
from bench.simulate.systems import Delays, System
from bench.simulate.works import DecodeWork, PrefillWork
from bench.workloads.request import PlannedRequest
from tandem.types import Phase, RequestObservation, Split, StepStatistics


@dataclass(frozen=True, slots=True)
class Outcome:
    """One simulation. Records are in the order of arrival."""

    records: tuple[RequestRecord, ...]
    switches: tuple[Switch, ...]
    num_preemptions: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class Setting:
    """`control` None: both phases in one process on the whole device."""

    system: System
    control: ControlOptions | None
    seed: int
    drain_s: float  # after the last arrival


def simulate(setting: Setting, requests: Sequence[PlannedRequest]) -> Outcome:
    """The same arguments give the same outcome. A turn that follows another is taken to come at its own time."""
    deployment = SimDeployment(setting)
    deployment.gateway.plan_arrivals(requests)
    until_s = max((request.at_s for request in requests), default=0.0) + setting.drain_s
    deployment.events.run(until_s)
    return deployment.outcome(until_s)


class SimDeployment:
    """Gateway, phases, controller, and the pool that both phases draw on."""

    def __init__(self, setting: Setting) -> None:
        system, limits = setting.system, setting.system.limits
        self.events = EventQueue()
        self.pool = BlockPool(limits.num_blocks)
        self._system = system
        self._num_steps = 0
        self._budget = limits.chunk_tokens
        self.gateway = SimGateway(self.events, self.pool, limits.max_running, self._start, self._ended)
        self._prefill = PrefillWork(limits, self.pool, self._step_budget, lambda: self.events.now_s, self._hand_over)
        self._decode = DecodeWork(limits, self.pool, self.gateway.complete, self.gateway.requeue)
        self.device = Device(system.table, system.contention, setting.seed)
        self._processes = _colocated(self) if setting.control is None else _separate(self)
        self._control = None if setting.control is None else self._controlled(setting.control)

    def outcome(self, ended_s: float) -> Outcome:
        """As things stand."""
        sequences = self.gateway.sequences
        return Outcome(
            records=tuple(sequence.record(ended_s) for sequence in sequences),
            switches=() if self._control is None else tuple(self._control.switches),
            num_preemptions=sum(sequence.num_preemptions for sequence in sequences),
            num_steps=self._num_steps,
        )

    def process(self, pace: Pace, *works: PrefillWork | DecodeWork) -> SimProcess:
        """A process that does these works."""
        return SimProcess(works, self.events, pace, lambda one: self._delays(one).between_steps_ms, self._stepped)

    def pace(self, phase: Phase) -> Pace:
        """Of a process that has one phase."""
        cadence = self._system.cadence
        return SharedPace(phase, self.device) if cadence is None else CadencePace(phase, self.device, cadence)

    @property
    def works(self) -> dict[Phase, PrefillWork | DecodeWork]:
        """By phase."""
        return {Phase.DECODE: self._decode, Phase.PREFILL: self._prefill}

    def _delays(self, process: SimProcess) -> Delays:
        """As they are now: services and phases share the cores."""
        is_beside = process.other is not None and process.other.activity is not Activity.ABSENT
        return self._system.limits.delays(is_beside, max(1, self._decode.num_sequences))

    def _controlled(self, options: ControlOptions) -> Control:
        for process in self._processes.values():
            process.split = options.initial
        offer = Offer(self._system.backend, self._system.splits)
        return Control(options, offer, self.events, self._assign, self._system.switch.delay_s)

    def _assign(self, split: Split) -> None:
        for process in self._processes.values():
            process.assign(split, self._system.switch.stall_ms)

    def _step_budget(self) -> int:
        """In one process, decode's rows come first: what they leave of the budget."""
        shared = self._processes[Phase.PREFILL] is self._processes[Phase.DECODE]
        return max(0, self._budget - self._decode.num_sequences) if shared else self._budget

    def _start(self, sequence: SimSequence) -> None:
        self._prefill.submit(sequence)
        self._processes[Phase.PREFILL].wake()

    def _hand_over(self, sequence: SimSequence) -> None:
        delays = self._delays(self._processes[Phase.PREFILL])
        self.events.after(delays.handover_ms * MS, lambda: self._first_token(sequence, delays.join_ms))

    def _first_token(self, sequence: SimSequence, join_ms: float) -> None:
        sequence.token_times_s.append(self.events.now_s)
        if sequence.is_complete:
            self.gateway.complete(sequence)
        else:
            self.events.after(join_ms * MS, lambda: self._join(sequence))

    def _join(self, sequence: SimSequence) -> None:
        self._decode.submit(sequence)
        self._processes[Phase.DECODE].wake()

    def _stepped(self, process: SimProcess, content: StepContent, duration_ms: float) -> None:
        self._num_steps += 1
        if process.other is not None and content.num_decode_rows:
            process.other.yield_cores(self._delays(process).taken_ms)
        if self._control is None:
            return
        phase = Phase.PREFILL if content.num_prompt_rows else Phase.DECODE
        self._control.report_step(phase, step_statistics(self.works[phase], content, duration_ms))

    def _ended(self, sequence: SimSequence) -> None:
        """Its blocks may be what somebody waits for."""
        for process in self._processes.values():
            process.wake()
        if self._control is not None:
            self._control.report_request(observation(sequence, self.gateway.num_waiting))


def step_statistics(work: PrefillWork | DecodeWork, content: StepContent, duration_ms: float) -> StepStatistics:
    """As a phase reports a step."""
    prompt_keys = round(content.num_keys_before * work.num_sequences) + content.num_prompt_rows
    return StepStatistics(
        duration_ms=duration_ms,
        num_sequences=work.num_sequences,
        num_tokens=content.num_prompt_rows or content.num_decode_rows,
        num_context_tokens=prompt_keys if content.num_prompt_rows else content.num_decode_keys,
        num_waiting=work.num_waiting,
        unix_ns=0,
        num_backlog_tokens=work.num_backlog_tokens,
    )


def observation(sequence: SimSequence, num_waiting: int) -> RequestObservation:
    """As the gateway reports a request."""
    record = sequence.record(0.0)
    started_s = sequence.arrived_s if sequence.started_s is None else sequence.started_s
    wait_ms = (started_s - sequence.arrived_s) / MS
    return RequestObservation(
        request_id=str(sequence.lease_id),
        ttft_ms=record.ttft_ms,
        ttft_wait_ms=wait_ms,
        ttft_compute_ms=record.ttft_ms - wait_ms,
        tpot_ms=record.tpot_ms or 0.0,
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_output_tokens=sequence.num_output_tokens,
        num_cached_tokens=0,
        ok=True,
        unix_ns=0,
        num_waiting=num_waiting,
    )


def _separate(deployment: SimDeployment) -> dict[Phase, SimProcess]:
    """A process a phase, each beside the other."""
    works = deployment.works.items()
    processes = {phase: deployment.process(deployment.pace(phase), work) for phase, work in works}
    prefill, decode = processes[Phase.PREFILL], processes[Phase.DECODE]
    prefill.other, decode.other = decode, prefill
    return processes


def _colocated(deployment: SimDeployment) -> dict[Phase, SimProcess]:
    """One process for both: decode prepares first."""
    whole = SharedPace(Phase.PREFILL, deployment.device)
    process = deployment.process(whole, *deployment.works.values())
    return dict.fromkeys(Phase, process)
