"""What lies around a deployment's steps, found by its twin: under which delays does it show what was measured? Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.load.records import RequestRecord
from bench.simulate.systems import Delays, EngineLimits, Several
from bench.validate.predict import Twin
from bench.validate.probes import Seen, ensemble_workload, lone_workload, mean_of, seen_alone, seen_beside
from bench.validate.results import Calibration, ProbeCompared
from bench.validate.system import with_alone
from bench.workloads.request import Workload

LEAST_MS = 1e-3
NO_DELAYS = Delays(LEAST_MS, LEAST_MS, LEAST_MS)
NUM_SEVERAL = 4
LONE_GAP_S = 30.0
ROUNDS = 5  # a correction changes what waits for what


@dataclass(frozen=True, slots=True)
class ProbesSeen:
    """Of the workloads of `probe_workloads`."""

    lone: Seen
    one: Seen
    several: Seen


def probe_workloads(twin: Twin) -> tuple[Workload, Workload, Workload]:
    """Prompts from one user, and prompts beside one answer and beside several."""
    table = twin.system.table
    return lone_workload(), ensemble_workload(table, 1), ensemble_workload(table, NUM_SEVERAL)


def seen_probes(records: Sequence[Sequence[RequestRecord]]) -> ProbesSeen:
    """What became of them on the deployment. NotReadyError: too little succeeded."""
    lone, one, several = records
    return ProbesSeen(seen_alone(lone), seen_beside(one), seen_beside(several))


def between(before: ProbesSeen, after: ProbesSeen) -> ProbesSeen:
    """As the machine was in the middle: its speed changes within minutes."""
    return ProbesSeen(
        mean_of(before.lone, after.lone), mean_of(before.one, after.one), mean_of(before.several, after.several)
    )


def calibrated(twin: Twin, real: ProbesSeen) -> Twin:
    """With the delays under which the twin shows `real`."""
    twin = _with_limits(twin, _start(twin.system.limits))
    for _ in range(ROUNDS):
        twin = _nearer_alone(twin, real.lone, _lone_of(twin))
    twin = _with_limits(twin, _beside_as_alone(twin.system.limits))
    for _ in range(ROUNDS):
        one, several = _beside_of(twin)
        limits = _nearer_one(twin.system.limits, real.one, one)
        twin = _with_limits(twin, _nearer_several(limits, real.several, several))
    return twin


def calibration(twin: Twin, real: ProbesSeen) -> Calibration:
    """What a calibrated twin rests on, and how well it shows what it was calibrated by."""
    lone, one, several = (workload.name for workload in probe_workloads(twin))
    made_one, made_several = _beside_of(twin)
    limits = twin.system.limits
    return Calibration(
        contention=twin.system.contention,
        alone=limits.alone,
        beside=limits.beside,
        several=limits.several,
        probes=(
            ProbeCompared(lone, real.lone, _lone_of(twin)),
            ProbeCompared(one, real.one, made_one),
            ProbeCompared(several, real.several, made_several),
        ),
    )


def _lone_of(twin: Twin) -> Seen:
    """One request long after another."""
    requests = lone_workload().requests
    return seen_alone(twin.records([replace(each, at_s=LONE_GAP_S * place) for place, each in enumerate(requests)]))


def _beside_of(twin: Twin) -> tuple[Seen, Seen]:
    """With one answer, and with several."""
    _, one, several = probe_workloads(twin)
    return seen_beside(twin.records(one.requests)), seen_beside(twin.records(several.requests))


def _start(limits: EngineLimits) -> EngineLimits:
    return with_alone(replace(limits, beside=None, several=None), NO_DELAYS)


def _beside_as_alone(limits: EngineLimits) -> EngineLimits:
    return replace(
        limits, beside=limits.alone, several=Several(NUM_SEVERAL, limits.between_steps_ms, beside=limits.alone)
    )


def _nearer_alone(twin: Twin, real: Seen, made: Seen) -> Twin:
    contention, alone = twin.system.contention, twin.system.limits.alone
    between_ms = alone.between_steps_ms + real.gap_ms - made.gap_ms
    delays = replace(_nearer_waits(alone, real, made), between_steps_ms=between_ms)
    factor = contention.lone_prefill_factor * max(LEAST_MS, real.rows_ms) / made.rows_ms
    system = replace(twin.system, contention=replace(contention, lone_prefill_factor=factor))
    return _with_limits(replace(twin, system=system), with_alone(system.limits, delays))


def _nearer_one(limits: EngineLimits, real: Seen, made: Seen) -> EngineLimits:
    return replace(limits, beside=_nearer_beside(limits.beside or limits.alone, real, made))


def _nearer_several(limits: EngineLimits, real: Seen, made: Seen) -> EngineLimits:
    if limits.several is None:
        return limits
    several = replace(
        limits.several,
        between_steps_ms=limits.several.between_steps_ms + real.gap_ms - made.gap_ms,
        beside=_nearer_beside(limits.several.beside, real, made),
    )
    return replace(limits, several=several)


def _nearer_beside(delays: Delays, real: Seen, made: Seen) -> Delays:
    num_steps = made.rows_ms / made.beside_gap_ms  # of decode's, while the rows are computed
    return replace(
        _nearer_waits(delays, real, made),
        between_steps_ms=delays.between_steps_ms + real.beside_gap_ms - made.beside_gap_ms,
        taken_ms=delays.taken_ms + (real.rows_ms - made.rows_ms) / num_steps,
    )


def _nearer_waits(delays: Delays, real: Seen, made: Seen) -> Delays:
    return replace(
        delays,
        handover_ms=max(LEAST_MS, delays.handover_ms + real.short_ttft_ms - made.short_ttft_ms),
        join_ms=max(LEAST_MS, delays.join_ms + real.joining_ms - made.joining_ms),
    )


def _with_limits(twin: Twin, limits: EngineLimits) -> Twin:
    return replace(twin, system=replace(twin.system, limits=limits))
