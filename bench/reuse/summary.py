"""What reuse saves, from samples: pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression, median

from bench.reuse.rounds import Sample, Warmth

REUSING = (Warmth.HALF, Warmth.CACHED)
KILO = 1e3


@dataclass(frozen=True, slots=True)
class Series:
    """The prompts of one length and warmth, round by round."""

    warmth: Warmth
    length: int
    ttft_ms: tuple[float, ...]
    num_cached_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """`value` of the rounds' pairs of cold and `warmth`: a ratio or a difference."""

    warmth: Warmth
    length: int
    median: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many answers to equal prompts differ from the cold ones, all lengths together.

    KV in bfloat16 may turn a near tie: a cached prompt is computed in chunks of other shapes.
    """

    warmth: Warmth
    num_answers: int
    num_other_first_tokens: int
    num_other_answers: int  # in any token


@dataclass(frozen=True, slots=True)
class Growth:
    """The line through the median TTFTs over the length, by least squares."""

    warmth: Warmth
    at_zero_ms: float
    ms_per_1000_tokens: float


@dataclass(frozen=True, slots=True)
class Savings:
    """What a run says."""

    series: tuple[Series, ...]
    speedups: tuple[Comparison, ...]  # TTFT cold over warm
    marginal_ms: tuple[Comparison, ...]  # TTFT cached, less that of a cold prompt of one token
    growth: tuple[Growth, ...]  # none with a single length
    agreements: tuple[Agreement, ...]


def summarise(samples: Sequence[Sample]) -> Savings:
    """See `Savings`. Every round has every warmth of every length."""
    series = _series(samples)
    ttfts = {(entry.warmth, entry.length): entry.ttft_ms for entry in series}
    lengths = [entry.length for entry in series if entry.warmth is Warmth.COLD]
    (bare,) = [entry.ttft_ms for entry in series if entry.warmth is Warmth.LEAST]
    speedups = [
        _comparison(warmth, length, _ratios(ttfts[Warmth.COLD, length], ttfts[warmth, length]))
        for length in lengths
        for warmth in REUSING
    ]
    marginal = [
        _comparison(Warmth.CACHED, length, _differences(ttfts[Warmth.CACHED, length], bare)) for length in lengths
    ]
    growth = [_growth(warmth, series) for warmth in (Warmth.COLD, *REUSING)] if len(lengths) > 1 else []
    agreements = tuple(_agreement(warmth, samples) for warmth in REUSING)
    return Savings(series, tuple(speedups), tuple(marginal), tuple(growth), agreements)


def _series(samples: Sequence[Sample]) -> tuple[Series, ...]:
    """By length, then by warmth."""
    found: dict[tuple[int, Warmth], list[Sample]] = {}
    for sample in sorted(samples, key=lambda each: (each.length, list(Warmth).index(each.warmth), each.number)):
        found.setdefault((sample.length, sample.warmth), []).append(sample)
    return tuple(
        Series(
            warmth,
            length,
            tuple(sample.reply.ttft_ms for sample in group),
            tuple(sample.reply.num_cached_tokens for sample in group),
        )
        for (length, warmth), group in found.items()
    )


def _ratios(cold: Sequence[float], warm: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(cold, warm, strict=True)]


def _differences(warm: Sequence[float], bare: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(warm, bare, strict=True)]


def _comparison(warmth: Warmth, length: int, values: Sequence[float]) -> Comparison:
    return Comparison(warmth, length, median(values), min(values), max(values))


def _growth(warmth: Warmth, series: Sequence[Series]) -> Growth:
    points = [(entry.length / KILO, median(entry.ttft_ms)) for entry in series if entry.warmth is warmth]
    line = linear_regression([length for length, _ in points], [ttft for _, ttft in points])
    return Growth(warmth, line.intercept, line.slope)


def _agreement(warmth: Warmth, samples: Sequence[Sample]) -> Agreement:
    cold = {(each.number, each.length): each.reply.token_ids for each in samples if each.warmth is Warmth.COLD}
    pairs = [(each.reply.token_ids, cold[each.number, each.length]) for each in samples if each.warmth is warmth]
    return Agreement(
        warmth,
        len(pairs),
        sum(ours[0] != theirs[0] for ours, theirs in pairs),
        sum(ours != theirs for ours, theirs in pairs),
    )
