"""One run of one workload against one serving deployment, and what a lone request takes there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import median

from bench.deployment.open import Target
from bench.goodput import default_slo
from bench.load.metrics import Slo, summarise, tpots_ms
from bench.load.process import LoadJob, Progress, run_load
from bench.load.records import RequestRecord
from bench.results import Run, WorkloadFacts, latencies_of
from bench.workloads.arrivals import Arrival, ArrivalKind
from bench.workloads.build import WorkloadSpec, build_workload
from bench.workloads.request import PlannedRequest, Span, Workload
from bench.workloads.tokens import ordinary_tokens
from tandem.errors import NotReadyError

NUM_LONE_REQUESTS = 8
LONE_SALT = "lone"
WARM_UP_PROMPT_TOKENS = 64
WARM_UP_OUTPUT_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Experiment:
    """What every run of a comparison has in common."""

    spec: WorkloadSpec
    num_warm_up: int
    drain_s: float
    slo: Slo | None = None


def run_once(experiment: Experiment, target: Target, salt: str, on_progress: Callable[[Progress], None]) -> Run:
    """The workload at its rate, with text that `salt` decides. NotReadyError when the deployment does not answer."""
    spec = experiment.spec
    records = _records(experiment, target, build_workload(spec), salt, on_progress)
    facts = WorkloadFacts(spec.name, spec.arrival.text, spec.num_requests, spec.rate_per_s, spec.seed)
    return Run(target.name, facts, summarise(records, experiment.slo), latencies_of(records))


def lone_slo(experiment: Experiment, target: Target, on_progress: Callable[[Progress], None]) -> Slo:
    """7.5 times and 10 times the median TTFT and TPOT of the workload's first requests, sent one after another.

    NotReadyError when none of them succeeds.
    """
    spec = experiment.spec
    alone = replace(spec, arrival=Arrival(ArrivalKind.CLOSED, 1))
    first = _first(build_workload(alone), NUM_LONE_REQUESTS)
    good = [record for record in _records(experiment, target, first, LONE_SALT, on_progress) if record.ok]
    if not tpots_ms(good):
        raise NotReadyError(f"{target.name}: no lone request brought two tokens; give --slo")
    return default_slo(median(record.ttft_ms for record in good), median(tpots_ms(good)))


def _first(workload: Workload, count: int) -> Workload:
    """Its first requests; whom they follow is among them."""
    return replace(workload, requests=workload.requests[:count])


def _records(
    experiment: Experiment, target: Target, workload: Workload, salt: str, on_progress: Callable[[Progress], None]
) -> tuple[RequestRecord, ...]:
    job = LoadJob(
        endpoint=target.endpoint,
        workload=workload,
        tokens=ordinary_tokens(experiment.spec.limits),
        warm_up=tuple(_warm_up(experiment)),
        drain_s=experiment.drain_s,
        salt=salt,
    )
    return run_load(job, on_progress)


def _warm_up(experiment: Experiment) -> Iterable[PlannedRequest]:
    """Prompts that no workload has, so that the run finds no cache warm."""
    context = experiment.spec.limits.max_context_tokens
    num_prompt, num_output = min(WARM_UP_PROMPT_TOKENS, context // 2), min(WARM_UP_OUTPUT_TOKENS, context // 2)
    for number in range(experiment.num_warm_up):
        yield PlannedRequest(number, 0.0, (Span(f"warm-up/{number}", num_prompt),), num_output)
