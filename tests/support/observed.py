"""Observations as a monitor makes them, of a load that is easy to say."""

from dataclasses import dataclass

from tandem.partition.monitor import Monitor, WindowLimits
from tandem.partition.observations import Observations
from tandem.types import Phase, RequestObservation, Split, StepStatistics

SPLITS = tuple(Split(percent, 100 - percent) for percent in (20, 35, 50, 65, 80))
WINDOW_S = 10.0


@dataclass(frozen=True)
class Traffic:
    """Steady over a window. Step times are those of a device on which they do not depend on the share."""

    prefill_steps: int = 20
    prompt_tokens: int = 256
    prefill_ms: float = 100.0
    backlog_tokens: int = 0
    decode_steps: int = 100
    batch: int = 4
    decode_ms: float = 20.0
    decode_waiting: int = 0
    ttft_ms: float = 150.0
    tpot_ms: float = 20.0
    output_tokens: int = 20


def observed(traffic: Traffic, split: Split, splits: tuple[Split, ...] = SPLITS) -> Observations:
    """At the end of a window in which `split` was in force."""
    monitor = Monitor(WindowLimits(WINDOW_S, 400), split)
    feed(monitor, traffic, 0.0)
    return monitor.observations(WINDOW_S, splits)


def feed(monitor: Monitor, traffic: Traffic, start_s: float) -> None:
    """One window of it."""
    steps = [
        (start_s + WINDOW_S * (number + 1) / (traffic.prefill_steps + 1), Phase.PREFILL)
        for number in range(traffic.prefill_steps)
    ] + [
        (start_s + WINDOW_S * (number + 1) / (traffic.decode_steps + 1), Phase.DECODE)
        for number in range(traffic.decode_steps)
    ]
    for at_s, phase in sorted(steps):
        if phase is Phase.PREFILL:
            monitor.add_step(phase, prefill_step(traffic), at_s)
            monitor.add_request(request(traffic), at_s)
        else:
            monitor.add_step(phase, decode_step(traffic), at_s)


def prefill_step(traffic: Traffic) -> StepStatistics:
    """One prompt's only chunk."""
    tokens = traffic.prompt_tokens
    return StepStatistics(traffic.prefill_ms, 1, tokens, tokens, 0, 0, traffic.backlog_tokens)


def decode_step(traffic: Traffic) -> StepStatistics:
    """Of sequences with prompt and half of their answer."""
    keys = traffic.batch * (traffic.prompt_tokens + traffic.output_tokens // 2)
    return StepStatistics(traffic.decode_ms, traffic.batch, traffic.batch, keys, traffic.decode_waiting, 0)


def request(traffic: Traffic) -> RequestObservation:
    """One that was served."""
    return RequestObservation(
        "r", traffic.ttft_ms, 10.0, traffic.ttft_ms - 10.0, traffic.tpot_ms, traffic.prompt_tokens,
        traffic.output_tokens, 0, True, 0, 0,
    )  # fmt: skip
