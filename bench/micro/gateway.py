"""What a token costs beside computing it: CPU time of the processes while so many streams run, over the tokens.

Alone: ``python -m bench.micro.gateway``; medians of interleaved rounds.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from rich.console import Console
from rich.table import Table

from bench.deployment.open import DeploymentKind, DeploymentOptions, DeploymentSpec, Target, open_deployment
from bench.experiment import Experiment, run_once
from bench.load.metrics import Summary
from bench.load.process import Progress
from bench.micro.processes import CpuTime, cpu_time
from bench.micro.table import GatewayCost
from bench.workloads.arrivals import Arrival, ArrivalKind
from bench.workloads.build import WorkloadSpec
from bench.workloads.request import ModelLimits
from tandem.config.settings import CommonConfig, default_cache_dir
from tandem.errors import NotReadyError
from tandem.model.metadata import read_metadata
from tandem.telemetry.logs import configure_logging

GATEWAY, DECODE = "gateway", "decode"
NUM_PROMPT_TOKENS = 16
LONG_ANSWER_TOKENS = 400
DRAIN_S = 120.0
US = 1e6


@dataclass(frozen=True, slots=True)
class Streams:
    """A closed loop of requests. In short answers a request's beginning and end weigh more."""

    num_streams: int
    num_output_tokens: int
    num_requests: int


CASES = (Streams(1, 64, 16), Streams(16, 64, 64), Streams(16, LONG_ANSWER_TOKENS, 16))


def measure_gateway(experiment: Experiment, target: Target) -> tuple[GatewayCost, ...]:
    """One of each case, answers as long as the context allows. NotReadyError when a request fails."""
    room = experiment.spec.limits.max_context_tokens - NUM_PROMPT_TOKENS
    fitting = (replace(case, num_output_tokens=min(case.num_output_tokens, room)) for case in CASES)
    return tuple(_cost(experiment, target, case) for case in fitting)


def _cost(experiment: Experiment, target: Target, case: Streams) -> GatewayCost:
    name = f"{case.num_streams} streams of {case.num_output_tokens}"
    warm_up = replace(case, num_output_tokens=min(8, case.num_output_tokens), num_requests=case.num_streams)
    run_once(_streams(experiment, warm_up), target, f"{name}, warm", _ignore)
    before = _cpu_times(target.pids)
    run = run_once(_streams(experiment, case), target, name, _ignore)
    after = _cpu_times(target.pids)
    if run.summary.num_errors:
        raise NotReadyError(f"requests failed: {', '.join(run.summary.errors)}")
    num_tokens = _num_tokens(run.summary)
    return GatewayCost(
        num_streams=case.num_streams,
        num_tokens=num_tokens,
        cpu_us_per_token=(after[GATEWAY].total_s - before[GATEWAY].total_s) / num_tokens * US,
        decode_loop_us_per_token=(after[DECODE].loop_s - before[DECODE].loop_s) / num_tokens * US,
        num_output_tokens=case.num_output_tokens,
    )


def _cpu_times(pids: Mapping[str, int]) -> dict[str, CpuTime]:
    return {name: cpu_time(pids[name]) for name in (GATEWAY, DECODE)}


def _streams(experiment: Experiment, case: Streams) -> Experiment:
    arrival = Arrival(ArrivalKind.CLOSED, case.num_streams)
    name = f"fixed:{NUM_PROMPT_TOKENS},{case.num_output_tokens}"
    spec = replace(experiment.spec, name=name, num_requests=case.num_requests, arrival=arrival)
    return replace(experiment, spec=spec, num_warm_up=0)


def _num_tokens(summary: Summary) -> int:
    return round(summary.output_tokens_per_s * summary.duration_s)


def request_us(costs: Sequence[GatewayCost]) -> float | None:
    """CPU time of a request's beginning and end: what is left at no token, by two lengths of as many streams' answers.

    None: there are no two. A difference of two measurements has the noise of both, many times over: take medians.
    """
    for long in costs:
        for short in costs:
            if short.num_streams == long.num_streams and short.num_output_tokens < long.num_output_tokens:
                share = 1 / short.num_output_tokens - 1 / long.num_output_tokens  # of a request, more for each token
                return (short.cpu_us_per_token - long.cpu_us_per_token) / share
    return None


def _ignore(progress: Progress) -> None:
    pass


def table(rounds: Sequence[Sequence[GatewayCost]]) -> Table:
    """A row a case: medians, and the lowest and the highest; under them what a request costs beside its tokens."""
    view = Table("streams", "tokens each", "gateway CPU, us a token", "decode CPU but its steps, us a token")
    for costs in zip(*rounds, strict=True):
        gateway = [cost.cpu_us_per_token for cost in costs]
        decode = [cost.decode_loop_us_per_token for cost in costs]
        view.add_row(str(costs[0].num_streams), str(costs[0].num_output_tokens), _spread(gateway), _spread(decode))
    requests = [spent_us for spent_us in map(request_us, rounds) if spent_us is not None]
    if requests:
        view.caption = f"gateway CPU of a request's beginning and end, derived: {_spread(requests)} us"
    return view


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def main(arguments: Sequence[str]) -> int:
    """Always 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro.gateway", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=CommonConfig().model)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    configure_logging("bench", "error")
    config = read_metadata(options.model, default_cache_dir()).config
    limits = ModelLimits(config.vocab_size, NUM_PROMPT_TOKENS + LONG_ANSWER_TOKENS)
    spec = WorkloadSpec("sharegpt", 1, 1.0, Arrival(ArrivalKind.CLOSED, 1), limits)
    experiment = Experiment(spec, num_warm_up=0, drain_s=DRAIN_S)
    with open_deployment(DeploymentSpec(DeploymentKind.SEMI_PD), DeploymentOptions(options.model)) as target:
        rounds = [measure_gateway(experiment, target) for _ in range(options.rounds)]
    Console().print(table(rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
