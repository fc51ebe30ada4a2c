"""What a token costs beside computing it: CPU time of the processes while so many streams run, over the tokens."""

from collections.abc import Mapping
from dataclasses import replace

from bench.deployment.open import Target
from bench.experiment import Experiment, run_once
from bench.load.metrics import Summary
from bench.load.process import Progress
from bench.micro.processes import CpuTime, cpu_time
from bench.micro.table import GatewayCost
from bench.workloads.arrivals import Arrival, ArrivalKind
from tandem.errors import NotReadyError

GATEWAY, DECODE = "gateway", "decode"
NUM_STREAMS = (1, 16)
WORKLOAD = "fixed:16,64"
REQUESTS_A_STREAM = 4
MIN_REQUESTS = 16
US = 1e6


def measure_gateway(experiment: Experiment, target: Target) -> tuple[GatewayCost, ...]:
    """For one stream and for sixteen. NotReadyError when a request fails."""
    return tuple(_cost(experiment, target, num_streams) for num_streams in NUM_STREAMS)


def _cost(experiment: Experiment, target: Target, num_streams: int) -> GatewayCost:
    run_once(_streams(experiment, num_streams, num_streams), target, f"{num_streams} streams, warm", _ignore)
    before = _cpu_times(target.pids)
    num_requests = max(MIN_REQUESTS, REQUESTS_A_STREAM * num_streams)
    run = run_once(_streams(experiment, num_streams, num_requests), target, f"{num_streams} streams", _ignore)
    after = _cpu_times(target.pids)
    if run.summary.num_errors:
        raise NotReadyError(f"requests failed: {', '.join(run.summary.errors)}")
    num_tokens = _num_tokens(run.summary)
    gateway_s = after[GATEWAY].total_s - before[GATEWAY].total_s
    decode_loop_s = after[DECODE].loop_s - before[DECODE].loop_s
    return GatewayCost(num_streams, num_tokens, gateway_s / num_tokens * US, decode_loop_s / num_tokens * US)


def _cpu_times(pids: Mapping[str, int]) -> dict[str, CpuTime]:
    return {name: cpu_time(pids[name]) for name in (GATEWAY, DECODE)}


def _streams(experiment: Experiment, num_streams: int, num_requests: int) -> Experiment:
    arrival = Arrival(ArrivalKind.CLOSED, num_streams)
    spec = replace(experiment.spec, name=WORKLOAD, num_requests=num_requests, arrival=arrival)
    return replace(experiment, spec=spec, num_warm_up=0)


def _num_tokens(summary: Summary) -> int:
    return round(summary.output_tokens_per_s * summary.duration_s)


def _ignore(progress: Progress) -> None:
    pass
