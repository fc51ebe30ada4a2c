"""What simulated deployments are loaded with: a rate and a seed in, requests over a fixed stretch of time out. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.workloads.arrivals import Arrival, ArrivalKind, send_times
from bench.workloads.build import WorkloadSpec, build_workload
from bench.workloads.lengths import LengthMix, LogNormal, RequestLength, scaled
from bench.workloads.request import ModelLimits, PlannedRequest, Span
from tandem.errors import ConfigError

BURST_VARIATION = 3.0
CONTEXT_TOKENS = 8192
NO_VOCABULARY = 1  # no text is ever made

# Prompt-heavy and answer-heavy; alike in what a request costs the device.
PROMPT_HEAVY = LengthMix(LogNormal(1800, 0.4), LogNormal(40, 0.4))
ANSWER_HEAVY = LengthMix(LogNormal(120, 0.4), LogNormal(400, 0.4))


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """`period_s`: of the loads that change, from one kind to the other and back."""

    name: str
    duration_s: float
    seed: int
    period_s: float
    data: Path | None = None
    length_scale: float = 1.0  # of prompts and answers: what suits the machine
    context_tokens: int = CONTEXT_TOKENS  # prompt and answer together


def requests_of(spec: LoadSpec, rate_per_s: float) -> tuple[PlannedRequest, ...]:
    """ConfigError names what is wrong. Another rate is the same kinds of requests at the same times of day."""
    if spec.name not in LOADS:
        raise ConfigError("load", f"{spec.name!r} is none of {', '.join(LOADS)}")
    return LOADS[spec.name](spec, rate_per_s)


def _named(workload: str, arrival: Arrival) -> "Builder":
    def build(spec: LoadSpec, rate_per_s: float) -> tuple[PlannedRequest, ...]:
        limits = ModelLimits(NO_VOCABULARY, spec.context_tokens)
        count = max(1, round(rate_per_s * spec.duration_s))
        asked = WorkloadSpec(workload, count, rate_per_s, arrival, limits, spec.seed, spec.data, spec.length_scale)
        return build_workload(asked).requests

    return build


def _alternating(first: LengthMix, second: LengthMix) -> "Builder":
    def build(spec: LoadSpec, rate_per_s: float) -> tuple[PlannedRequest, ...]:
        rng = np.random.default_rng(spec.seed)
        count = max(1, round(rate_per_s * spec.duration_s))
        times_s = send_times(Arrival(ArrivalKind.POISSON), rng, count, rate_per_s, ())
        pairs = zip(first.sample(rng, count), second.sample(rng, count), strict=True)
        lengths = [_at(at_s, spec.period_s, *pair) for at_s, pair in zip(times_s, pairs, strict=True)]
        return planned(times_s, [scaled(length, spec.length_scale, spec.context_tokens) for length in lengths])

    return build


def _at(at_s: float, period_s: float, first: RequestLength, second: RequestLength) -> RequestLength:
    return first if at_s % period_s < period_s / 2 else second


def planned(times_s: Sequence[float], lengths: Iterable[RequestLength]) -> tuple[PlannedRequest, ...]:
    """Requests that have nothing in common."""
    return tuple(
        PlannedRequest(number, at_s, (Span(str(number), length.num_prompt_tokens),), length.num_output_tokens)
        for number, (at_s, length) in enumerate(zip(times_s, lengths, strict=True))
    )


Builder = Callable[[LoadSpec, float], tuple[PlannedRequest, ...]]

LOADS: dict[str, Builder] = {
    "azure": _named("azure", Arrival(ArrivalKind.TRACE)),
    "azure-poisson": _named("azure", Arrival(ArrivalKind.POISSON)),
    "sharegpt": _named("sharegpt", Arrival(ArrivalKind.POISSON)),
    "longbench": _named("longbench", Arrival(ArrivalKind.POISSON)),
    "bursts": _named("sharegpt", Arrival(ArrivalKind.GAMMA, BURST_VARIATION)),
    "shift": _alternating(PROMPT_HEAVY, ANSWER_HEAVY),
    "square": _alternating(PROMPT_HEAVY, ANSWER_HEAVY),
}
