"""One policy on one load, in numbers."""

from dataclasses import dataclass, replace

import numpy as np

from bench.policies.deployment import Setting, simulate
from bench.policies.loads import FLOOD, TraceLoad, arrivals
from bench.policies.sequences import SharingSequence
from tandem.config.settings import QueuePolicy

MS = 1e-3


@dataclass(frozen=True, slots=True)
class Trial:
    """TTFT and waiting are of all tenants but the flood. Every request came to its end."""

    policy: QueuePolicy
    rate_per_s: float
    seed: int
    flood_rate_per_s: float
    ttft_mean_ms: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    max_wait_s: float  # at the gateway
    hit_rate: float  # of prompt tokens


def run_trial(setting: Setting, policy: QueuePolicy, load: TraceLoad) -> Trial:
    """ConfigError: no data, or not so much of it."""
    sequences = arrivals(load, setting.system.limits.block_size)
    simulate(replace(setting, gateway=replace(setting.gateway, policy=policy)), load.seed, sequences)
    counted = [sequence for sequence in sequences if sequence.tenant != FLOOD]
    ttft_ms = np.array([ttft_s(sequence) for sequence in counted]) / MS
    return Trial(
        policy=policy,
        rate_per_s=load.rate_per_s,
        seed=load.seed,
        flood_rate_per_s=load.flood_rate_per_s,
        ttft_mean_ms=float(ttft_ms.mean()),
        ttft_p50_ms=float(np.quantile(ttft_ms, 0.5)),
        ttft_p99_ms=float(np.quantile(ttft_ms, 0.99)),
        max_wait_s=max((sequence.sent_s or 0.0) - sequence.arrived_s for sequence in counted),
        hit_rate=sum(each.num_cached_tokens for each in counted) / sum(each.num_prompt_tokens for each in counted),
    )


def ttft_s(sequence: SharingSequence) -> float:
    """From its arrival at the gateway."""
    return sequence.token_times_s[0] - sequence.arrived_s
