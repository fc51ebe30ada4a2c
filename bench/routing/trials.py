"""One router on one load, in numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from bench.policies.loads import TraceLoad, arrivals
from bench.policies.sequences import SharingSequence
from bench.policies.trials import ttft_s
from bench.routing.simulation import FleetSetting, Routed, Stay, simulate_fleet
from tandem.config.settings import RouterName
from tandem.scheduler.fair_share import ANSWER_TOKEN_WORK

MS = 1e-3


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker process needs to make a trial."""

    setting: FleetSetting
    load: TraceLoad


@dataclass(frozen=True, slots=True)
class Trial:
    """Every request came to its end. Work is of prompt tokens that were computed, and of answers'."""

    router: RouterName
    rate_per_s: float
    seed: int
    change_s: float | None  # when one replica left and another joined
    ttft_mean_ms: float
    ttft_p99_ms: float
    hit_rate: float  # of prompt tokens
    balance: float  # the largest work a second that a replica was there, over the mean
    newcomer_share: float | None  # of the requests since it joined, over an equal share
    mistaken_share: float  # of prompt tokens, that were held to be cached and were not, or the other way round
    ttft_error_ms: float  # of what was predicted, whichever way


def run_trial(job: Job) -> Trial:
    """ConfigError: no data, or not so much of it."""
    setting, load = job.setting, job.load
    sequences = arrivals(load, setting.replica.system.limits.block_size)
    stays = simulate_fleet(setting, load.seed, sequences)
    ttft_ms = np.array([ttft_s(sequence) for sequence in sequences]) / MS
    num_cached = sum(sequence.num_cached_tokens for sequence in sequences)
    num_prompt_tokens = sum(sequence.num_prompt_tokens for sequence in sequences)
    routed = [each for stay in stays for each in stay.routed]
    return Trial(
        router=setting.router,
        rate_per_s=load.rate_per_s,
        seed=load.seed,
        change_s=setting.change_s,
        ttft_mean_ms=float(ttft_ms.mean()),
        ttft_p99_ms=float(np.quantile(ttft_ms, 0.99)),
        hit_rate=num_cached / num_prompt_tokens,
        balance=balance(stays, max(sequence.arrived_s for sequence in sequences)),
        newcomer_share=newcomer_share(stays, setting.num_replicas),
        mistaken_share=_num_mistaken(routed) / num_prompt_tokens,
        ttft_error_ms=fmean(abs(ttft_s(each.sequence) - each.prospect.ttft_s) for each in routed) / MS,
    )


def balance(stays: Sequence[Stay], end_s: float) -> float:
    """1: all had the same. `end_s`: when those that stayed got their last request."""
    paces = [_work(stay) / ((end_s if stay.left_s is None else stay.left_s) - stay.joined_s) for stay in stays]
    return max(paces) / fmean(paces)


def newcomer_share(stays: Sequence[Stay], num_replicas: int) -> float | None:
    """Of the last one to join, if it was not there from the start."""
    newcomer = stays[-1]
    if not newcomer.joined_s:
        return None
    num_since = sum(each.sequence.arrived_s > newcomer.joined_s for stay in stays for each in stay.routed)
    return num_replicas * len(newcomer.routed) / num_since


def _work(stay: Stay) -> float:
    return sum(_work_tokens(each.sequence) for each in stay.routed)


def _work_tokens(sequence: SharingSequence) -> float:
    num_computed = sequence.num_prompt_tokens - sequence.num_cached_tokens
    return num_computed + ANSWER_TOKEN_WORK * sequence.num_output_tokens


def _num_mistaken(routed: Sequence[Routed]) -> int:
    return sum(abs(each.prospect.num_exact_tokens - each.sequence.num_cached_tokens) for each in routed)
