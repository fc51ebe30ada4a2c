"""What the policies are tried on: a trace whose prompts share blocks, of several tenants, and one more that floods."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bench.policies.sequences import SharingSequence, content_keys
from bench.workloads.arrivals import Arrival, ArrivalKind
from bench.workloads.build import TRACE_STRIDE, WorkloadSpec, build_workload
from bench.workloads.request import ModelLimits, PlannedRequest

NO_VOCABULARY = 1  # no text is ever made
CONTEXT_TOKENS = 131_072
FLOOD = "flood"
FLOOD_BEGIN, FLOOD_END = 0.25, 0.75  # parts of the time of arrivals


@dataclass(frozen=True, slots=True)
class TraceLoad:
    """`rate_per_s` of the tenants together; their conversations stay whole. `seed` is a part of the trace."""

    data: Path | None
    num_requests: int
    rate_per_s: float
    seed: int
    length_scale: float
    num_tenants: int = 1
    flood_rate_per_s: float = 0.0  # of one more tenant, over the middle half of the time


def arrivals(load: TraceLoad, block_size: int) -> list[SharingSequence]:
    """The tenants' requests, then the flood's. ConfigError: no data, or not so much of it."""
    requests = [
        (_tenant_of(request, load.num_tenants), request)
        for request in _requests(load, load.num_requests, load.rate_per_s, load.seed)
    ]
    requests += [(FLOOD, request) for request in _flood(load)]
    return [_sequence(number, *each, block_size) for number, each in enumerate(requests)]


def _flood(load: TraceLoad) -> Iterator[PlannedRequest]:
    """From the part of the trace behind the tenants'."""
    if not load.flood_rate_per_s:
        return
    duration_s = load.num_requests / load.rate_per_s
    count = max(1, round(load.flood_rate_per_s * duration_s * (FLOOD_END - FLOOD_BEGIN)))
    behind = load.seed + -(-load.num_requests // TRACE_STRIDE)
    for request in _requests(load, count, load.flood_rate_per_s, behind):
        yield replace(request, at_s=request.at_s + FLOOD_BEGIN * duration_s)


def _requests(load: TraceLoad, count: int, rate_per_s: float, seed: int) -> tuple[PlannedRequest, ...]:
    limits = ModelLimits(NO_VOCABULARY, CONTEXT_TOKENS)
    arrival = Arrival(ArrivalKind.TRACE)
    spec = WorkloadSpec("mooncake", count, rate_per_s, arrival, limits, seed, load.data, load.length_scale)
    return build_workload(spec).requests


def _tenant_of(request: PlannedRequest, num_tenants: int) -> str:
    """By the first block that only its conversation has: the trace's first one is everybody's."""
    own = request.spans[min(1, len(request.spans) - 1)]
    return f"tenant-{zlib.crc32(own.content.encode()) % num_tenants}"


def _sequence(number: int, tenant: str, request: PlannedRequest, block_size: int) -> SharingSequence:
    return SharingSequence(
        number,
        request.at_s,
        request.num_new_tokens,
        request.max_tokens,
        tenant=tenant,
        keys=content_keys(request.spans, block_size, tenant),
    )
