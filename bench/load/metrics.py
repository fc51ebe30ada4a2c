"""Records to numbers. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.load.records import RequestRecord


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of `count` values; all zero when there are none. Percentiles are interpolated linearly."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Slo:
    """A request meets it when its TTFT and its mean time a token are both within."""

    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers. Latencies are of the requests that succeeded; attainment is over all."""

    num_requests: int
    num_errors: int
    errors: dict[str, int]  # how often each message came
    duration_s: float  # from the first request's due time to the last one's end
    requests_per_s: float  # that succeeded
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    cached_share: float | None  # of prompt tokens; None: the server does not say
    ttft_ms: Distribution
    tpot_ms: Distribution
    itl_ms: Distribution
    e2e_ms: Distribution
    send_delay_ms: Distribution  # of the generator itself
    slo: Slo | None
    attainment: float | None  # the share of all requests that met the SLO
    queue_ms: Distribution | None = None  # in the server's queue; None: the server does not say
    longest_queue_ms: float | None = None
    num_cached_tokens: int | None = None  # of prompts; None as of `cached_share`


def distribution(values: Sequence[float]) -> Distribution:
    """See `Distribution`."""
    if not values:
        return Distribution(0, 0.0, 0.0, 0.0, 0.0)
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    return Distribution(len(values), float(np.mean(values)), p50, p90, p99)


def meets(record: RequestRecord, slo: Slo) -> bool:
    """A request that failed meets nothing; one with a single token has no TPOT to miss."""
    if not record.ok:
        return False
    return record.ttft_ms <= slo.ttft_ms and (record.tpot_ms is None or record.tpot_ms <= slo.tpot_ms)


def attainment(records: Sequence[RequestRecord], slo: Slo) -> float:
    """The share of requests that meet `slo`; 0 of none."""
    return sum(meets(record, slo) for record in records) / len(records) if records else 0.0


def tpots_ms(records: Sequence[RequestRecord]) -> list[float]:
    """Of the requests that have one."""
    return [record.tpot_ms for record in records if record.tpot_ms is not None]


def summarise(records: Sequence[RequestRecord], slo: Slo | None) -> Summary:
    """See `Summary`."""
    good = [record for record in records if record.ok]
    queue_ms = [record.queue_ms for record in good if record.queue_ms is not None]
    duration_s = _duration_s(records)
    return Summary(
        num_requests=len(records),
        num_errors=len(records) - len(good),
        errors=_errors(records),
        duration_s=duration_s,
        requests_per_s=_rate(len(good), duration_s),
        output_tokens_per_s=_rate(sum(record.num_output_tokens for record in records), duration_s),
        prompt_tokens_per_s=_rate(sum(record.num_prompt_tokens for record in good), duration_s),
        cached_share=_cached_share(good),
        ttft_ms=distribution([record.ttft_ms for record in good]),
        tpot_ms=distribution(tpots_ms(good)),
        itl_ms=distribution([gap for record in good for gap in record.gaps_ms]),
        e2e_ms=distribution([record.e2e_ms for record in good]),
        send_delay_ms=distribution([record.send_delay_ms for record in records]),
        slo=slo,
        attainment=attainment(records, slo) if slo else None,
        queue_ms=distribution(queue_ms) if queue_ms else None,
        longest_queue_ms=max(queue_ms, default=None),
        num_cached_tokens=_num_cached_tokens(good),
    )


def _duration_s(records: Sequence[RequestRecord]) -> float:
    if not records:
        return 0.0
    return max(record.ended_s for record in records) - min(record.intended_s for record in records)


def _rate(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0


def _errors(records: Sequence[RequestRecord]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        if record.error:
            counts[record.error] = counts.get(record.error, 0) + 1
    return counts


def _cached_share(good: Sequence[RequestRecord]) -> float | None:
    num_cached = _num_cached_tokens(good)
    total = sum(record.num_prompt_tokens for record in good if record.num_cached_tokens is not None)
    return num_cached / total if total and num_cached is not None else None


def _num_cached_tokens(good: Sequence[RequestRecord]) -> int | None:
    told = [record.num_cached_tokens for record in good if record.num_cached_tokens is not None]
    return sum(told) if told else None
