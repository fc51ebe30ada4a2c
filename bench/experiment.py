"""One run of one workload against one serving deployment, and what a lone request takes there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import median

from bench.deployment.open import Target
from bench.deployment.replicas import computed_tokens
from bench.goodput import default_slo
from bench.load.metrics import Slo, summarise, tpots_ms
from bench.load.process import DatedRecords, LoadJob, Progress, run_dated_load
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
    niceness: int = 0  # of the load generator


@dataclass(frozen=True, slots=True)
class LoneLatencies:
    """Medians of requests of which each had the deployment to itself."""

    ttft_ms: float
    tpot_ms: float


def run_once(experiment: Experiment, target: Target, salt: str, on_progress: Callable[[Progress], None]) -> Run:
    """The workload at its rate, with text that `salt` decides. NotReadyError when the deployment does not answer."""
    spec = experiment.spec
    before = computed_tokens(target.prompt_metrics)
    records = run_workload(experiment, target, build_workload(spec), salt, on_progress).records
    after = computed_tokens(target.prompt_metrics)
    facts = WorkloadFacts(spec.name, spec.arrival.text, spec.num_requests, spec.rate_per_s, spec.seed)
    computed = tuple(end - start for start, end in zip(before, after, strict=True))
    summary, latencies = summarise(records, experiment.slo), latencies_of(records)
    return Run(target.name, facts, summary, latencies, target.max_wait_s, computed)


def lone_slo(experiment: Experiment, target: Target, on_progress: Callable[[Progress], None]) -> Slo:
    """7.5 and 10 times what `lone_latencies` says of the experiment's own workload.

    NotReadyError when none of them succeeds.
    """
    alone = replace(experiment.spec, arrival=Arrival(ArrivalKind.CLOSED, 1))
    lone = lone_latencies(experiment, target, build_workload(alone), on_progress)
    return default_slo(lone.ttft_ms, lone.tpot_ms)


def lone_latencies(
    experiment: Experiment, target: Target, workload: Workload, on_progress: Callable[[Progress], None]
) -> LoneLatencies:
    """Of the workload's first requests, sent one after another.

    NotReadyError when none of them succeeds.
    """
    first = replace(_first(workload, NUM_LONE_REQUESTS), num_users=1)
    good = [each for each in run_workload(experiment, target, first, LONE_SALT, on_progress).records if each.ok]
    if not tpots_ms(good):
        raise NotReadyError(f"{target.name}: no lone request brought two tokens; give --slo")
    return LoneLatencies(median(record.ttft_ms for record in good), median(tpots_ms(good)))


def _first(workload: Workload, count: int) -> Workload:
    """Its first requests; whom they follow is among them."""
    return replace(workload, requests=workload.requests[:count])


def run_workload(
    experiment: Experiment, target: Target, workload: Workload, salt: str, on_progress: Callable[[Progress], None]
) -> DatedRecords:
    """Any workload, with text that `salt` decides; of `experiment` the model's limits and what surrounds a run count.

    NotReadyError when the deployment does not answer.
    """
    return run_dated_load(load_job(experiment, target, workload, salt), on_progress)


def load_job(experiment: Experiment, target: Target, workload: Workload, salt: str) -> LoadJob:
    """What the load generator is told; of `experiment` as in `run_workload`."""
    return LoadJob(
        endpoint=target.endpoint,
        workload=workload,
        tokens=ordinary_tokens(experiment.spec.limits),
        warm_up=tuple(_warm_up(experiment)),
        drain_s=experiment.drain_s,
        salt=salt,
        niceness=experiment.niceness,
    )


def _warm_up(experiment: Experiment) -> Iterable[PlannedRequest]:
    """Prompts that no workload has, so that the run finds no cache warm."""
    context = experiment.spec.limits.max_context_tokens
    num_prompt, num_output = min(WARM_UP_PROMPT_TOKENS, context // 2), min(WARM_UP_OUTPUT_TOKENS, context // 2)
    for number in range(experiment.num_warm_up):
        yield PlannedRequest(number, 0.0, (Span(f"warm-up/{number}", num_prompt),), num_output)
