"""When requests come. Pure, given the generator."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from tandem.errors import ConfigError


class ArrivalKind(StrEnum):
    """Where the times come from."""

    TRACE = "trace"  # the trace's own gaps, stretched to the rate
    POISSON = "poisson"
    GAMMA = "gamma"  # bursty: a coefficient of variation above 1
    CLOSED = "closed"  # users who each wait for their answer


@dataclass(frozen=True, slots=True)
class Arrival:
    """`parameter` is gamma's coefficient of variation, or the number of users of a closed loop."""

    kind: ArrivalKind
    parameter: float = 1.0

    @property
    def text(self) -> str:
        """As `parse_arrival` reads it."""
        has_parameter = self.kind in (ArrivalKind.GAMMA, ArrivalKind.CLOSED)
        return f"{self.kind}:{self.parameter:g}" if has_parameter else str(self.kind)

    @property
    def num_users(self) -> int | None:
        """Of a closed loop."""
        return int(self.parameter) if self.kind is ArrivalKind.CLOSED else None


def parse_arrival(text: str) -> Arrival:
    """``trace``, ``poisson``, ``gamma:CV`` or ``closed:USERS``. ConfigError."""
    name, _, parameter = text.partition(":")
    try:
        arrival = Arrival(ArrivalKind(name), float(parameter) if parameter else 1.0)
    except ValueError:
        raise ConfigError("arrival", f"{text!r} is none of trace, poisson, gamma:CV, closed:USERS") from None
    if not 0 < arrival.parameter < float("inf") or (arrival.num_users is not None and arrival.parameter < 1):
        raise ConfigError("arrival", f"{text!r}: the number is out of range")
    return arrival


def send_times(
    arrival: Arrival, rng: np.random.Generator, count: int, rate_per_s: float, trace_s: Sequence[float]
) -> list[float]:
    """`count` times from 0 on, rising, `rate_per_s` a second on average; a closed loop has none: all are 0.

    ConfigError: a trace is asked for, and the workload brings none.
    """
    match arrival.kind:
        case ArrivalKind.CLOSED:
            return [0.0] * count
        case ArrivalKind.TRACE if len(trace_s) < count:
            raise ConfigError("arrival", f"trace: the workload brings {len(trace_s)} arrival times, {count} are needed")
        case ArrivalKind.TRACE:
            return stretched(trace_s[:count], rate_per_s)
        case ArrivalKind.POISSON:
            return _gamma_times(rng, count, rate_per_s, 1.0)
        case ArrivalKind.GAMMA:
            return _gamma_times(rng, count, rate_per_s, arrival.parameter)


def stretched(trace_s: Sequence[float], rate_per_s: float) -> list[float]:
    """The trace's times from 0 on, its gaps multiplied by one factor that gives the rate."""
    if not trace_s:
        return []
    span_s = trace_s[-1] - trace_s[0]
    wanted_s = (len(trace_s) - 1) / rate_per_s
    return [(at_s - trace_s[0]) / span_s * wanted_s if span_s > 0 else 0.0 for at_s in trace_s]


def _gamma_times(rng: np.random.Generator, count: int, rate_per_s: float, variation: float) -> list[float]:
    """Gaps of mean ``1 / rate`` whose coefficient of variation is `variation`; 1 makes them exponential."""
    shape = 1.0 / variation**2
    gaps = rng.gamma(shape, 1.0 / (shape * rate_per_s), size=count)
    return [float(at_s) for at_s in np.cumsum(gaps) - gaps[0]] if count else []
