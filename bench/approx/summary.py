"""What a set of items says: pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from bench.approx import statistics
from bench.approx.cases import AT_EACH_RATIO, Case, Method
from bench.approx.record import ItemRecord, Outcome, Stage
from bench.approx.statistics import Interval, interval

RIGHT = 0


@dataclass(frozen=True, slots=True)
class CaseSummary:
    """KL in nats; `score`: of the items that full recompute answers, those answered; `speedup`: full TTFT over its."""

    method: Method
    ratio: float
    kl_mean: Interval
    kl_p95: Interval
    kl_max: float
    top1: Interval
    num_agreeing_tokens: float  # before the first other one, mean of the items
    score: Interval | None  # None: full recompute answers no item
    computed_share: float
    speedup: Interval


@dataclass(frozen=True, slots=True)
class Comparison:
    """Mean KL of `method`, less that of DHD at the same ratio, item by item: above 0, DHD is nearer to full."""

    method: Method
    ratio: float
    kl_more: Interval


@dataclass(frozen=True, slots=True)
class StageSummary:
    """One way to spend tokens; `kl_less`: by how much less KL than without them."""

    stage: Stage
    kl_mean: Interval
    kl_less: Interval
    top1: Interval


@dataclass(frozen=True, slots=True)
class SetSummary:
    """A set of items; times are medians of its items."""

    name: str
    num_items: int
    num_answered: int  # rightly, by full recompute
    mean_tokens: float
    mean_reused: float
    full_ms: float
    build_ms: float
    step_ms: float
    refresh_ms: float
    cases: tuple[CaseSummary, ...]
    comparisons: tuple[Comparison, ...]
    stages: tuple[StageSummary, ...]


def summarise(name: str, records: Sequence[ItemRecord]) -> SetSummary:
    """See above; at least one record, all of the same cases."""
    cases = [outcome.case for outcome in records[0].outcomes]
    return SetSummary(
        name=name,
        num_items=len(records),
        num_answered=sum(record.picked == RIGHT for record in records),
        mean_tokens=fmean(record.num_tokens for record in records),
        mean_reused=fmean(record.num_reused for record in records),
        full_ms=median(record.full_ms for record in records),
        build_ms=median(record.build_ms for record in records),
        step_ms=median(record.step_ms for record in records),
        refresh_ms=median(record.refresh_ms for record in records),
        cases=tuple(_case(case, records) for case in cases),
        comparisons=tuple(_comparisons(cases, records)),
        stages=tuple(_stages(records)),
    )


def _case(case: Case, records: Sequence[ItemRecord]) -> CaseSummary:
    outcomes = [_outcome(record, case) for record in records]
    kl = [outcome.kl for outcome in outcomes]
    pairs = list(zip(records, outcomes, strict=True))
    answered = [[float(outcome.picked == RIGHT)] for record, outcome in pairs if record.picked == RIGHT]
    return CaseSummary(
        method=case.method,
        ratio=case.ratio,
        kl_mean=interval(kl, statistics.mean),
        kl_p95=interval(kl, statistics.p95),
        kl_max=max(map(max, kl)),
        top1=interval([outcome.agrees for outcome in outcomes], statistics.mean),
        num_agreeing_tokens=fmean(_agreeing(outcome.agrees) for outcome in outcomes),
        score=interval(answered, statistics.mean) if answered else None,
        computed_share=fmean(outcome.num_computed / record.num_tokens for record, outcome in pairs),
        speedup=interval([[record.full_ms / outcome.ttft_ms] for record, outcome in pairs], statistics.median),
    )


def _comparisons(cases: Sequence[Case], records: Sequence[ItemRecord]) -> Iterator[Comparison]:
    for case in cases:
        reference = Case(Method.DHD, case.ratio)
        if case.method not in AT_EACH_RATIO or case == reference or reference not in cases:
            continue
        more = [[fmean(_outcome(record, case).kl) - fmean(_outcome(record, reference).kl)] for record in records]
        yield Comparison(case.method, case.ratio, interval(more, statistics.mean))


def _stages(records: Sequence[ItemRecord]) -> Iterator[StageSummary]:
    for index, stage in enumerate(records[0].stages):
        kl = [record.stages[index].kl for record in records]
        agrees = [record.stages[index].agrees for record in records]
        without = [next(each.kl for each in record.stages if each.stage is Stage.NOTHING) for record in records]
        less = [[fmean(other) - fmean(own)] for own, other in zip(kl, without, strict=True)]
        yield StageSummary(
            stage.stage,
            interval(kl, statistics.mean),
            interval(less, statistics.mean),
            interval(agrees, statistics.mean),
        )


def _outcome(record: ItemRecord, case: Case) -> Outcome:
    return next(outcome for outcome in record.outcomes if outcome.case == case)


def _agreeing(agrees: Sequence[bool]) -> int:
    """Equal tokens before the first that differs: where a free-running answer would part from full recompute's."""
    return next((index for index, agree in enumerate(agrees) if not agree), len(agrees))
