"""A deployment's simulation under the same requests as the deployment. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from bench.load.metrics import Slo, summarise
from bench.load.records import RequestRecord
from bench.simulate.contest import Contest, control_of
from bench.simulate.deployment import Setting, simulate
from bench.simulate.loads import LoadSpec, requests_of
from bench.simulate.systems import Delays, System
from bench.validate.results import LoadCompared
from bench.workloads.request import PlannedRequest, Workload
from tandem.errors import NotReadyError
from tandem.partition.monitor import WindowLimits
from tandem.types import Split

NOT_JUDGED = Slo(1e9, 1e9)
LEAST_MS = 1e-3
NO_DELAYS = Delays(LEAST_MS, LEAST_MS, LEAST_MS)
NUM_CALIBRATING = 16
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

    def again(self, load: LoadAsked, measured: Sequence[RequestRecord]) -> Sequence[RequestRecord]:
        """Of the simulated `calibration_workload`, each request sent when it was sent in truth."""
        sent_s = {record.number: record.intended_s for record in measured}
        requests = calibration_load(load).requests[:NUM_CALIBRATING]
        again = [replace(each, at_s=sent_s[each.number]) for each in requests if each.number in sent_s]
        return self.records(sorted(again, key=lambda each: each.at_s), load.spec)


def calibration_load(load: LoadAsked) -> LoadAsked:
    """Requests of the same kind, but others."""
    duration_s = max(load.spec.duration_s, 2 * NUM_CALIBRATING / load.rate_per_s)
    return replace(load, spec=replace(load.spec, seed=load.spec.seed + OTHER_SEED, duration_s=duration_s))


def calibration_workload(load: LoadAsked, num_users: int) -> Workload:
    """The first of them, from users who each wait for their answer."""
    requests = calibration_load(load).requests[:NUM_CALIBRATING]
    return Workload(f"{num_users} at once", requests, num_users)


def calibrated(twin: Twin, load: LoadAsked, lone: Sequence[RequestRecord], crowd: Sequence[RequestRecord]) -> Twin:
    """With the delays under which the twin shows what was measured of `calibration_workload`, by one user and by more.

    NotReadyError when too few of them succeeded.
    """
    alone = _with_delays(twin, NO_DELAYS, None)
    for _ in range(ROUNDS):
        limits = alone.system.limits
        alone = _with_delays(alone, _corrected(limits.alone, lone, alone.again(load, lone)), None)
    both = alone
    for _ in range(ROUNDS):
        limits = both.system.limits
        beside = _corrected(limits.beside or limits.alone, crowd, both.again(load, crowd))
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


def _corrected(delays: Delays, measured: Sequence[RequestRecord], simulated: Sequence[RequestRecord]) -> Delays:
    """By what medians of requests differ in: later gaps, TTFT, and the first gap beyond a later one."""
    real, made = _delays_seen(measured), _delays_seen(simulated)
    return Delays(
        between_steps_ms=max(LEAST_MS, delays.between_steps_ms + real.between_steps_ms - made.between_steps_ms),
        handover_ms=max(LEAST_MS, delays.handover_ms + real.handover_ms - made.handover_ms),
        join_ms=max(LEAST_MS, delays.join_ms + real.join_ms - made.join_ms),
    )


def _delays_seen(records: Sequence[RequestRecord]) -> Delays:
    """Steps and waits included."""
    good = [record for record in records if record.ok and len(record.gaps_ms) >= FEWEST_GAPS]
    if not good:
        raise NotReadyError(f"no request brought {FEWEST_GAPS + 1} tokens: there is nothing to calibrate by")
    later_ms = median(fmean(record.gaps_ms[1:]) for record in good)
    first_ms = median(record.gaps_ms[0] for record in good)
    return Delays(later_ms, median(record.ttft_ms for record in good), first_ms - later_ms)


def compared(twin: Twin, load: LoadAsked, measured: Sequence[RequestRecord]) -> LoadCompared:
    """`measured`: what became of the load's requests on the deployment."""
    predicted = twin.records(load.requests, load.spec)
    return LoadCompared(load.spec.name, load.rate_per_s, summarise(measured, None), summarise(predicted, None))
