"""The soaked system against a fresh one of the same kind: whether the load has made it slower.

What a shared machine gives changes over an hour by more than is looked for. It gives the same to two systems that are
asked the same within minutes, so their ratio is judged and not either's latency. The fresh one's pool is empty, the
soaked one's is full of what it has served: finding room there is part of what is compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil

from bench.compare import Metric, Ratio, ratios, turns
from bench.deployment.open import Target
from bench.endurance.trend import Verdict
from bench.experiment import Experiment, run_workload
from bench.load.metrics import Summary, summarise
from bench.load.process import Progress
from bench.workloads.build import build_workload

SALT = "control"  # its prompts are in neither cache
MOST_MEDIAN = 1.10
MIN_PAIRS = 3

LATENCIES: Mapping[str, Metric] = {
    "TTFT p50": lambda summary: summary.ttft_ms.p50,
    "TTFT p90": lambda summary: summary.ttft_ms.p90,
    "TPOT p50": lambda summary: summary.tpot_ms.p50,
    "TPOT p90": lambda summary: summary.tpot_ms.p90,
}


class Side(StrEnum):
    """Of a pair."""

    SOAKED = "soaked"
    FRESH = "fresh"


@dataclass(frozen=True, slots=True)
class Pool:
    """A side's KV blocks when it had nothing to do, before the pairs."""

    num_blocks: int
    num_cached_blocks: int


@dataclass(frozen=True, slots=True)
class Pair:
    """The same requests at the same rate to both, one after the other."""

    first: Side
    soaked: Summary
    fresh: Summary


@dataclass(frozen=True, slots=True)
class PairJudgement:
    """Of one latency: soaked over fresh, pair by pair. None: no pair has both."""

    measure: str
    ratio: Ratio | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Control:
    """`pairs` are those that count; one more came before them."""

    pair_s: float
    soaked_pool: Pool
    fresh_pool: Pool
    pairs: tuple[Pair, ...]
    judgements: tuple[PairJudgement, ...]

    @property
    def grew(self) -> bool:
        """Whether any latency did."""
        return any(each.verdict is Verdict.GREW for each in self.judgements)


Measure = Callable[[Side, int], Summary]
"""One side's run of the pair of that number."""


def pair_experiments(experiment: Experiment, num_pairs: int, pair_s: float) -> tuple[Experiment, ...]:
    """The load of each pair, the uncounted first one's too: at the long load's rate, each pair with its own seed.

    ConfigError: the workload does not have so much.
    """
    spec = replace(experiment.spec, num_requests=ceil(experiment.spec.rate_per_s * pair_s))
    specs = [replace(spec, seed=spec.seed + number) for number in range(num_pairs + 1)]
    for each in specs:
        build_workload(each)
    return tuple(replace(experiment, spec=each) for each in specs)


def pair_runner(
    experiments: Sequence[Experiment], targets: Mapping[Side, Target], on_progress: Callable[[Progress], None]
) -> Measure:
    """NotReadyError, when it is called: the side does not answer."""

    def measure(side: Side, number: int) -> Summary:
        experiment = experiments[number]
        workload = build_workload(experiment.spec)
        loaded = run_workload(experiment, targets[side], workload, f"{SALT}/{number}", on_progress)
        return summarise(loaded.records, experiment.slo)

    return measure


def run_pairs(num_pairs: int, measure: Measure) -> tuple[Pair, ...]:
    """Who comes first changes with each pair. One more comes before them, which is warm-up and does not count."""
    pairs = []
    for number, order in enumerate(turns((Side.FRESH, Side.SOAKED), num_pairs + 1)):
        sides = [Side(name) for name in order]
        found = {side: measure(side, number) for side in sides}
        pairs.append(Pair(sides[0], found[Side.SOAKED], found[Side.FRESH]))
    return tuple(pairs[1:])


def judge_pairs(pairs: Sequence[Pair]) -> tuple[PairJudgement, ...]:
    """Grew: the ratios' median is above `MOST_MEDIAN` and the lowest of them above 1."""
    fresh, soaked = [pair.fresh for pair in pairs], [pair.soaked for pair in pairs]
    found = {ratio.metric: ratio for ratio in ratios({Side.FRESH: fresh, Side.SOAKED: soaked}, LATENCIES)}
    return tuple(PairJudgement(name, found.get(name), _verdict(found.get(name))) for name in LATENCIES)


def _verdict(ratio: Ratio | None) -> Verdict:
    if ratio is None or ratio.num_rounds < MIN_PAIRS:
        return Verdict.TOO_SHORT
    if ratio.median <= MOST_MEDIAN:
        return Verdict.HELD
    return Verdict.GREW if ratio.lowest > 1 else Verdict.UNCLEAR
