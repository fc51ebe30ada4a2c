"""Which reports cannot be true. Pure; the time is passed in."""

import math

from tandem.partition.samples import MAX_COUNT, MAX_DURATION_MS
from tandem.types import RequestObservation, StepStatistics

FUTURE_NS = 60 * 10**9  # a sender's clock may be ahead by less


def step_fault(step: StepStatistics, now_unix_ns: int) -> str | None:
    """What is wrong with it, by the field's name; None when it may be true."""
    counts = {
        "num_sequences": step.num_sequences,
        "num_tokens": step.num_tokens,
        "num_context_tokens": step.num_context_tokens,
        "num_waiting": step.num_waiting,
        "num_backlog_tokens": step.num_backlog_tokens,
    }
    return _fault({"duration_ms": step.duration_ms}, counts, step.unix_ns - now_unix_ns)


def observation_fault(observation: RequestObservation, now_unix_ns: int) -> str | None:
    """As `step_fault`."""
    latencies_ms = {
        "ttft_ms": observation.ttft_ms,
        "ttft_wait_ms": observation.ttft_wait_ms,
        "ttft_compute_ms": observation.ttft_compute_ms,
        "tpot_ms": observation.tpot_ms,
    }
    counts = {
        "num_prompt_tokens": observation.num_prompt_tokens,
        "num_output_tokens": observation.num_output_tokens,
        "num_cached_tokens": observation.num_cached_tokens,
        "num_waiting": observation.num_waiting,
    }
    return _fault(latencies_ms, counts, observation.unix_ns - now_unix_ns)


def _fault(durations_ms: dict[str, float], counts: dict[str, int], ahead_ns: int) -> str | None:
    for name, value_ms in durations_ms.items():
        if not (math.isfinite(value_ms) and 0 <= value_ms <= MAX_DURATION_MS):
            return f"{name} is {value_ms}"
    for name, count in counts.items():
        if not 0 <= count <= MAX_COUNT:
            return f"{name} is {count}"
    return f"unix_ns is {ahead_ns / 1e9:.0f} s ahead" if ahead_ns > FUTURE_NS else None
