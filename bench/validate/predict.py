"""A deployment's simulation under the same requests as the deployment. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from bench.load.metrics import Slo, summarise
from bench.load.records import RequestRecord
from bench.simulate.contest import Contest, control_of
from bench.simulate.deployment import Setting, simulate
from bench.simulate.loads import LoadSpec, planned, requests_of
from bench.simulate.step_times import WHOLE_PERCENT, DeviceTable, StepContent
from bench.simulate.systems import Delays, System
from bench.validate.results import LoadCompared
from bench.workloads.lengths import RequestLength, scaled
from bench.workloads.request import PlannedRequest, Workload
from tandem.errors import NotReadyError
from tandem.partition.monitor import WindowLimits
from tandem.types import Split

NOT_JUDGED = Slo(1e9, 1e9)
LEAST_MS = 1e-3
NO_DELAYS = Delays(LEAST_MS, LEAST_MS, LEAST_MS)
NUM_LONE = 16
ANSWER, NUM_ANSWERS = RequestLength(16, 160), 5
PROMPT, TIMES_BETWEEN_PROMPTS = RequestLength(256, 6), 1.8
HALF_PERCENT = WHOLE_PERCENT / 2
S = 1e-3  # a millisecond
BESIDE_RANK = 0.75  # of the duet's gaps more than a quarter, the longer ones, are beside a prompt
FEWEST_GAPS = 4
OTHER_SEED = 1000
ROUNDS = 3  # a correction changes what waits for what


@dataclass(frozen=True, slots=True)
class LoadAsked:
    """One load of the simulator's, at a rate."""

    spec: LoadSpec
    rate_per_s: float

    @property
    def requests(self) -> tuple[PlannedRequest, ...]:
        """ConfigError when it cannot be had."""
        return requests_of(self.spec, self.rate_per_s)

    @property
    def workload(self) -> Workload:
        """Of them."""
        return Workload(f"{self.spec.name} {self.rate_per_s:g}/s", self.requests)


@dataclass(frozen=True, slots=True)
class Twin:
    """A deployment's simulation: `mode` is ``colocated`` or ``static:X,Y``."""

    system: System
    mode: str
    drain_s: float

    def records(self, requests: Sequence[PlannedRequest], spec: LoadSpec) -> Sequence[RequestRecord]:
        """Of the simulated requests."""
        contest = Contest(
            self.system, spec, NOT_JUDGED, WindowLimits(10.0, 400), 1.0, 0.1, initial=Split(50, 50), warm_up_s=0.0
        )
        setting = Setting(self.system, control_of(contest, self.mode), spec.seed, self.drain_s)
        return simulate(setting, requests).records

    def again(self, asked: Workload, measured: Sequence[RequestRecord], spec: LoadSpec) -> Sequence[RequestRecord]:
        """Of the simulated workload, each request sent when it was sent in truth."""
        sent_s = {record.number: record.intended_s for record in measured}
        requests = [replace(each, at_s=sent_s[each.number]) for each in asked.requests if each.number in sent_s]
        return self.records(sorted(requests, key=lambda each: each.at_s), spec)


def lone_workload(load: LoadAsked) -> Workload:
    """Requests of the same kind, but others, from one user who waits for each answer."""
    duration_s = max(load.spec.duration_s, 2 * NUM_LONE / load.rate_per_s)
    others = replace(load, spec=replace(load.spec, seed=load.spec.seed + OTHER_SEED, duration_s=duration_s))
    return Workload("alone", others.requests[:NUM_LONE], 1)


def duet_workload(table: DeviceTable, context_tokens: int) -> Workload:
    """Long answers one after another, and prompts, so seldom that they seldom wait for each other."""
    answer, prompt = (scaled(length, 1.0, context_tokens) for length in (ANSWER, PROMPT))
    prompt_s = table.ms(StepContent(num_prompt_rows=prompt.num_prompt_tokens), HALF_PERCENT) * S
    token_s = table.ms(StepContent(num_decode_rows=1, num_decode_keys=answer.num_output_tokens), HALF_PERCENT) * S
    answer_s, gap_s = token_s * answer.num_output_tokens, prompt_s * TIMES_BETWEEN_PROMPTS
    answers = [(answer_s * number, answer) for number in range(NUM_ANSWERS)]
    prompts = [(gap_s * number, prompt) for number in range(1, int(NUM_ANSWERS * answer_s / gap_s))]
    times_s, lengths = zip(*sorted(answers + prompts, key=lambda each: each[0]), strict=True)
    return Workload("both phases", planned(times_s, lengths))


def calibrated(twin: Twin, load: LoadAsked, lone: Sequence[RequestRecord], duet: Sequence[RequestRecord]) -> Twin:
    """With the delays under which the twin shows what was measured of `lone_workload`, and then of `duet_workload`.

    NotReadyError when too few of them succeeded.
    """
    alone = _with_delays(twin, NO_DELAYS, None)
    for _ in range(ROUNDS):
        made = alone.again(lone_workload(load), lone, load.spec)
        alone = _with_delays(alone, _corrected(alone.system.limits.alone, _seen(lone), _seen(made)), None)
    both = alone
    for _ in range(ROUNDS):
        limits = both.system.limits
        made = both.again(duet_workload(twin.system.table, load.spec.context_tokens), duet, load.spec)
        beside = _corrected(limits.beside or limits.alone, _seen(duet, BESIDE_RANK), _seen(made, BESIDE_RANK))
        both = _with_delays(both, limits.alone, beside)
    return both


def _with_delays(twin: Twin, alone: Delays, beside: Delays | None) -> Twin:
    limits = replace(
        twin.system.limits,
        between_steps_ms=alone.between_steps_ms,
        handover_ms=alone.handover_ms,
        join_ms=alone.join_ms,
        beside=beside,
    )
    return replace(twin, system=replace(twin.system, limits=limits))


def _corrected(delays: Delays, real: Delays, made: Delays) -> Delays:
    """By what they were seen to differ in."""
    return Delays(
        between_steps_ms=max(LEAST_MS, delays.between_steps_ms + real.between_steps_ms - made.between_steps_ms),
        handover_ms=max(LEAST_MS, delays.handover_ms + real.handover_ms - made.handover_ms),
        join_ms=max(LEAST_MS, delays.join_ms + real.join_ms - made.join_ms),
    )


def _seen(records: Sequence[RequestRecord], rank: float = 0.5) -> Delays:
    """Steps and waits included: a later gap, TTFT, and the first gap beyond a later one.

    Medians but for the later gap, which a part `rank` of all are shorter than.
    """
    good = [record for record in records if record.ok and len(record.gaps_ms) >= FEWEST_GAPS]
    if not good:
        raise NotReadyError(f"no request brought {FEWEST_GAPS + 1} tokens: there is nothing to calibrate by")
    later = sorted(gap_ms for record in good for gap_ms in record.gaps_ms[1:])
    later_ms = later[int(rank * len(later))]
    first_ms = median(record.gaps_ms[0] for record in good)
    return Delays(later_ms, median(record.ttft_ms for record in good), first_ms - later_ms)


def compared(twin: Twin, load: LoadAsked, measured: Sequence[RequestRecord]) -> LoadCompared:
    """`measured`: what became of the load's requests on the deployment."""
    predicted = twin.records(load.requests, load.spec)
    return LoadCompared(load.spec.name, load.rate_per_s, summarise(measured, None), summarise(predicted, None))
