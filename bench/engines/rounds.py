"""Engines in turn, and their speeds side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.engines.cases import Case
from bench.engines.engine import Engine


@dataclass(frozen=True, slots=True)
class Speed:
    """One engine on one case, round by round."""

    engine: str
    case: Case
    tokens_per_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SpeedRatio:
    """The first engine's tokens/s over another's, of the rounds' ratios."""

    engine: str  # the other
    case: Case
    median: float
    lowest: float
    highest: float


def measure(
    engines: Mapping[str, Engine], cases: Sequence[Case], num_rounds: int, advance: Callable[[], None]
) -> tuple[Speed, ...]:
    """After one round that is not counted. All engines do a case one after another, in an order that changes."""
    found: dict[tuple[str, Case], list[float]] = {}
    for number in range(num_rounds + 1):
        for name, case in _turns(list(engines), cases, number):
            seconds = engines[name].seconds(case)
            advance()
            if number > 0:
                found.setdefault((name, case), []).append(case.num_tokens / seconds)
    return tuple(Speed(name, case, tuple(found[name, case])) for name in engines for case in cases)


def ratios(speeds: Sequence[Speed]) -> tuple[SpeedRatio, ...]:
    """Of the engine that comes first over each other."""
    first = {speed.case: speed for speed in speeds if speed.engine == speeds[0].engine}
    others = (speed for speed in speeds if speed.engine != speeds[0].engine)
    return tuple(_ratio(first[speed.case], speed) for speed in others)


def _turns(names: Sequence[str], cases: Sequence[Case], number: int) -> Iterator[tuple[str, Case]]:
    start = number % len(names)
    for case in cases:
        for name in (*names[start:], *names[:start]):
            yield name, case


def _ratio(first: Speed, other: Speed) -> SpeedRatio:
    values = [ours / theirs for ours, theirs in zip(first.tokens_per_s, other.tokens_per_s, strict=True)]
    return SpeedRatio(other.engine, other.case, median(values), min(values), max(values))
