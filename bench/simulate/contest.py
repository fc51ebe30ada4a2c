"""Modes against each other on one load: the same requests, the same machine, the same SLO."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.goodput import Goodput, Search, default_slo, find_goodputs
from bench.load.metrics import Slo, summarise
from bench.simulate.control import ControlOptions
from bench.simulate.deployment import Setting, simulate
from bench.simulate.loads import LoadSpec, requests_of
from bench.simulate.systems import System
from tandem.errors import ConfigError
from tandem.partition.monitor import WindowLimits
from tandem.partition.registry import PLANNERS, PlannerOptions, make_planner
from tandem.partition.slo import Slo as PlannedSlo
from tandem.partition.slo import SloPolicy
from tandem.types import Split

COLOCATED = "colocated"
STATIC = "static"
DRAIN_S = 30.0
NUM_LONE_REQUESTS = 24
LONE_GAP_S = 100.0
LONE_RATE_PER_S = 1.0


@dataclass(frozen=True, slots=True)
class Contest:
    """What all modes have in common. Requests that arrive before `warm_up_s` are served, and not counted."""

    system: System
    load: LoadSpec
    slo: Slo
    limits: WindowLimits
    interval_s: float
    margin: float
    initial: Split
    warm_up_s: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One simulation of one mode in numbers."""

    mode: str
    rate_per_s: float
    seed: int
    num_requests: int
    attainment: float
    ttft_p90_ms: float
    tpot_p90_ms: float
    num_switches: int
    switches_per_10_windows: float
    num_preemptions: int


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker process needs to make a trial."""

    contest: Contest
    mode: str
    rate_per_s: float
    seed: int


Mapper = Callable[[Callable[[Job], Trial], Sequence[Job]], Iterable[Trial]]


def run_trial(job: Job) -> Trial:
    """Switches count while requests arrive. ConfigError: no such mode, or a load that cannot be had."""
    contest = job.contest
    load = replace(contest.load, seed=job.seed)
    setting = Setting(contest.system, control_of(contest, job.mode), job.seed, DRAIN_S)
    outcome = simulate(setting, requests_of(load, job.rate_per_s))
    counted = [record for record in outcome.records if record.intended_s >= contest.warm_up_s]
    switches = [switch for switch in outcome.switches if contest.warm_up_s <= switch.at_s <= load.duration_s]
    summary = summarise(counted, contest.slo)
    num_windows = max(1.0, (load.duration_s - contest.warm_up_s) / contest.limits.window_s)
    return Trial(
        mode=job.mode,
        rate_per_s=job.rate_per_s,
        seed=job.seed,
        num_requests=len(counted),
        attainment=summary.attainment or 0.0,
        ttft_p90_ms=summary.ttft_ms.p90,
        tpot_p90_ms=summary.tpot_ms.p90,
        num_switches=len(switches),
        switches_per_10_windows=10.0 * len(switches) / num_windows,
        num_preemptions=outcome.num_preemptions,
    )


def control_of(contest: Contest, mode: str) -> ControlOptions | None:
    """``colocated``, ``static:X,Y``, or a planner's name. ConfigError."""
    name, _, shares = mode.partition(":")
    if name == COLOCATED:
        return None
    if name not in PLANNERS or bool(shares) is not (name == STATIC):
        raise ConfigError("mode", f"{mode!r} is none of {COLOCATED}, {STATIC}:X,Y, semi-pd, predictive")
    initial = parse_split(shares) if shares else contest.initial
    slos = SloPolicy(PlannedSlo(contest.slo.ttft_ms, contest.slo.tpot_ms))
    options = PlannerOptions(initial, slos, contest.margin)
    interval_s = math.inf if name == STATIC else contest.interval_s  # there is nothing to decide
    return ControlOptions(make_planner(name, options), initial, contest.limits, interval_s)


def parse_split(text: str) -> Split:
    """``X,Y`` in percent. ConfigError."""
    try:
        prefill_percent, decode_percent = (int(number) for number in text.split(","))
    except ValueError:
        raise ConfigError("split", f"{text!r} is not X,Y in percent") from None
    if not (0 < prefill_percent <= 100 and 0 < decode_percent <= 100):
        raise ConfigError("split", f"{text!r} has a share outside (0, 100]")
    return Split(prefill_percent, decode_percent)


def static_modes(splits: Iterable[Split]) -> tuple[str, ...]:
    """One for each split."""
    return tuple(f"{STATIC}:{split.prefill_percent},{split.decode_percent}" for split in splits)


def lone_slo(system: System, load: LoadSpec) -> Slo:
    """7.5 and 10 times the medians of the load's first requests, each alone on the whole device."""
    first = requests_of(load, LONE_RATE_PER_S)[:NUM_LONE_REQUESTS]
    alone = [replace(request, at_s=number * LONE_GAP_S) for number, request in enumerate(first)]
    summary = summarise(simulate(Setting(system, None, load.seed, LONE_GAP_S), alone).records, None)
    return default_slo(summary.ttft_ms.p50, summary.tpot_ms.p50)


def goodputs(
    contest: Contest, modes: Sequence[str], seeds: Sequence[int], search: Search, run_all: Mapper
) -> Mapping[str, Goodput]:
    """Each mode's, by bisection over the rate; attainment is the mean over the seeds."""

    def measure(names: Sequence[str], rate_per_s: float) -> Mapping[str, Sequence[float]]:
        trials = run_all(run_trial, [Job(contest, name, rate_per_s, seed) for name in names for seed in seeds])
        found: dict[str, list[float]] = {name: [] for name in names}
        for trial in trials:
            found[trial.mode].append(trial.attainment)
        return found

    return find_goodputs(modes, measure, search)
