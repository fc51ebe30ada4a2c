"""What was reported, as planners may rely on it: times of the controller's own clock, values that can be true."""

import math
from dataclasses import dataclass

from tandem.types import RequestClass, RequestObservation, Split, StepStatistics

MIN_STEP_MS = 1e-3
MAX_DURATION_MS = 3.6e6
MAX_COUNT = 10**8


@dataclass(frozen=True, slots=True)
class StepSample:
    """One step of a phase. `percent` is its share when the step was reported."""

    at_s: float
    percent: int
    duration_ms: float
    num_sequences: int  # at least 1
    num_tokens: int  # at least 1: rows of the forward pass
    num_context_tokens: int  # keys attended over, summed over the sequences
    num_waiting: int
    num_backlog_tokens: int  # of prompts, left to compute
    beside: float = 1.0  # the part of it in which the other phase was at work, as far as that is known

    @property
    def begun_s(self) -> float:
        """By the clock of `at_s`."""
        return self.at_s - self.duration_ms / 1e3


@dataclass(frozen=True, slots=True)
class RequestSample:
    """One request that was served. A latency that cannot be true, or that there is none of, is NaN."""

    at_s: float
    split: Split  # in force when it was reported
    request_class: RequestClass
    ttft_ms: float
    ttft_wait_ms: float
    tpot_ms: float
    num_prompt_tokens: int  # that had to be computed, at least 1
    num_output_tokens: int
    num_waiting: int  # requests in the gateway's queue when it ended


def size_of(num_rows: int) -> int:
    """Steps of one size differ by less than a factor of two in their rows."""
    return num_rows.bit_length()


def step_sample(step: StepStatistics, at_s: float, percent: int) -> StepSample | None:
    """None when what a step is compared by cannot be true."""
    counts = (step.num_sequences, step.num_tokens, step.num_context_tokens)
    if not MIN_STEP_MS <= step.duration_ms <= MAX_DURATION_MS or min(counts) < 1 or max(counts) > MAX_COUNT:
        return None
    return StepSample(
        at_s=at_s,
        percent=percent,
        duration_ms=step.duration_ms,
        num_sequences=step.num_sequences,
        num_tokens=step.num_tokens,
        num_context_tokens=step.num_context_tokens,
        num_waiting=_count(step.num_waiting),
        num_backlog_tokens=_count(step.num_backlog_tokens),
    )


def request_sample(request: RequestObservation, at_s: float, split: Split) -> RequestSample | None:
    """None of a request that failed, or whose lengths cannot be true."""
    lengths = (request.num_prompt_tokens, request.num_output_tokens)
    if not request.ok or min(lengths) < 1 or max(lengths) > MAX_COUNT:
        return None
    return RequestSample(
        at_s=at_s,
        split=split,
        request_class=request.request_class,
        ttft_ms=_latency(request.ttft_ms),
        ttft_wait_ms=_latency(request.ttft_wait_ms),
        tpot_ms=_latency(request.tpot_ms) if request.num_output_tokens > 1 else math.nan,
        num_prompt_tokens=max(1, request.num_prompt_tokens - _count(request.num_cached_tokens)),
        num_output_tokens=request.num_output_tokens,
        num_waiting=_count(request.num_waiting),
    )


def _count(value: int) -> int:
    return value if 0 <= value <= MAX_COUNT else 0


def _latency(value_ms: float) -> float:
    return value_ms if 0 <= value_ms <= MAX_DURATION_MS else math.nan
