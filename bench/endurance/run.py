"""Load for a long time on one deployment, its processes watched, and what came of it judged."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.deployment.open import Target
from bench.endurance.results import REQUESTS, EnduranceResult, Judgement, LatencyWindow, ProcessSeries
from bench.endurance.trend import Allowance, Trend, peaks_of, trend_of
from bench.endurance.watch import Watch
from bench.experiment import Experiment, load_job
from bench.load.lasting import Ended, Started, Tick, lasting_load
from bench.load.metrics import Slo, distribution
from bench.load.process import Progress
from bench.results import WorkloadFacts, provenance
from bench.workloads.build import build_workload
from tandem.clock import MonotonicClock

LOAD, BENCH = "load generator", "this command"
SALT = "endurance"
MIB = 1 << 20
MEMORY = Allowance(share=0.02, amount=4.0)  # MiB
TTFT = Allowance(share=0.2, amount=20.0)  # ms
TPOT = Allowance(share=0.2, amount=2.0)  # ms


@dataclass(frozen=True, slots=True)
class Endurance:
    """`experiment` has as many requests as are due in `duration_s`."""

    experiment: Experiment
    duration_s: float
    sample_s: float
    window_s: float


def endure(endurance: Endurance, target: Target, on_progress: Callable[[Progress], None]) -> EnduranceResult:
    """The run. NotReadyError when the deployment does not answer, or one of its processes ends."""
    experiment, watch, ended = endurance.experiment, Watch(endurance.window_s), list[Ended]()
    job = load_job(experiment, target, build_workload(experiment.spec), SALT)
    for event in lasting_load(job, endurance.sample_s, MonotonicClock()):
        match event:
            case Started():
                watch.add({**target.pids, LOAD: event.pid, BENCH: os.getpid()})
            case Tick():
                watch.look(event.at_s)
            case Ended():
                ended.append(event)
                on_progress(Progress(not event.error))
    return _result(endurance, target, watch.series(), ended)


def _result(
    endurance: Endurance, target: Target, processes: tuple[ProcessSeries, ...], ended: Sequence[Ended]
) -> EnduranceResult:
    spec, slo = endurance.experiment.spec, endurance.experiment.slo
    latencies = latency_windows(ended, endurance.window_s, slo)
    requests = request_judgements(latencies, endurance.duration_s)
    watched = [each for series in processes for each in process_judgements(series, endurance.duration_s)]
    return EnduranceResult(
        provenance=provenance(),
        deployment=target.name,
        workload=WorkloadFacts(spec.name, spec.arrival.text, spec.num_requests, spec.rate_per_s, spec.seed),
        slo=slo,
        duration_s=endurance.duration_s,
        window_s=endurance.window_s,
        errors=dict(Counter(each.error for each in ended if each.error)),
        latencies=latencies,
        processes=processes,
        judgements=(*requests, *watched),
    )


def latency_windows(ended: Sequence[Ended], window_s: float, slo: Slo | None) -> tuple[LatencyWindow, ...]:
    """By when requests were due; windows without any are left out."""
    windows: dict[int, list[Ended]] = {}
    for each in ended:
        windows.setdefault(int(each.due_s // window_s), []).append(each)
    return tuple(_latency_window((number + 0.5) * window_s, windows[number], slo) for number in sorted(windows))


def _latency_window(at_s: float, ended: Sequence[Ended], slo: Slo | None) -> LatencyWindow:
    return LatencyWindow(
        at_s=at_s,
        num_requests=len(ended),
        num_failed=sum(bool(each.error) for each in ended),
        num_met=None if slo is None else sum(_met(each, slo) for each in ended),
        ttft_ms=distribution([each.ttft_ms for each in ended if each.ttft_ms is not None]),
        tpot_ms=distribution([each.tpot_ms for each in ended if each.tpot_ms is not None]),
    )


def _met(ended: Ended, slo: Slo) -> bool:
    in_time = ended.ttft_ms is not None and ended.ttft_ms <= slo.ttft_ms
    return in_time and (ended.tpot_ms is None or ended.tpot_ms <= slo.tpot_ms)


def request_judgements(windows: Sequence[LatencyWindow], duration_s: float) -> list[Judgement]:
    """Of TTFT and TPOT."""
    at_s = [each.at_s for each in windows]
    columns = {
        "TTFT p50": ([each.ttft_ms.p50 for each in windows], TTFT),
        "TTFT p90": ([each.ttft_ms.p90 for each in windows], TTFT),
        "TPOT p50": ([each.tpot_ms.p50 for each in windows], TPOT),
        "TPOT p90": ([each.tpot_ms.p90 for each in windows], TPOT),
    }
    return [
        Judgement(REQUESTS, name, "ms", trend_of(at_s, values, duration_s, allowance))
        for name, (values, allowance) in columns.items()
    ]


def process_judgements(series: ProcessSeries, duration_s: float) -> list[Judgement]:
    """Of memory, descriptors and threads."""
    at_s = [each.at_s for each in series.windows]

    def counted(counts: Sequence[int]) -> Trend:
        return peaks_of(at_s, counts, duration_s)

    anonymous = trend_of(at_s, [each.anonymous_bytes / MIB for each in series.windows], duration_s, MEMORY)
    return [
        Judgement(series.name, "memory", "MiB", anonymous),
        Judgement(series.name, "descriptors", "", counted([each.num_descriptors for each in series.windows])),
        Judgement(series.name, "threads", "", counted([each.num_threads for each in series.windows])),
    ]
