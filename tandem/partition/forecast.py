"""What requests that come within the next moments will see under a split. Pure.

Both phases are followed as fluids over a horizon: prompts wait for what is before them, sequences gather in decode
until it gives out tokens as fast as prompts bring new ones. Around the fluid lies the randomness of arrivals: the tail
of an M/G/1 queue's wait for TTFT, a normal batch for TPOT. TTFT is always wait plus service.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from tandem.partition.load import Load
from tandem.partition.slo import SloPolicy
from tandem.partition.step_times import StepModel
from tandem.types import Split

NUM_MOMENTS = 6
STEPS_A_MOMENT = 4
HIGHEST_UTILISATION = 0.97  # beyond it the fluid says how the queue grows
PERCENTILE = 0.9
BISECTIONS = 12
DEVIATION = 0.7
MOST_SEQUENCES = 4096.0


@dataclass(frozen=True, slots=True)
class Models:
    """Step times of both phases, each beside the other one at work."""

    prefill: StepModel
    decode: StepModel


@dataclass(frozen=True, slots=True)
class Moment:
    """A point of the horizon: what a request that arrives then finds."""

    wait_s: float  # of the fluid
    num_sequences: float  # in decode


@dataclass(frozen=True, slots=True)
class Forecast:
    """One split's future. `service_s` is of each of the load's shapes."""

    split: Split
    load: Load
    models: Models
    horizon_s: float
    moments: tuple[Moment, ...]
    service_s: tuple[float, ...]
    mean_service_s: float

    @property
    def utilisation(self) -> float:
        """Of prefill."""
        return self.load.requests_per_s * self.mean_service_s

    def ttft_attainment(self, slos: SloPolicy) -> float:
        """The share of requests that meet it, over the shapes that come and the moments they may come at."""
        limits_s = (slos.of(shape.request_class).ttft_ms / 1e3 for shape in self.load.shapes)
        return sum(map(self._ttft_met, limits_s, self.service_s)) / len(self.service_s)

    def tpot_attainment(self, slos: SloPolicy, slack: float = 1.0) -> float:
        """As for TTFT; SLOs are multiplied by `slack`."""
        limits_ms = [slos.of(shape.request_class).tpot_ms * slack for shape in self.load.shapes]
        met = {limit_ms: self._tpot_met(limit_ms) for limit_ms in set(limits_ms)}
        return sum(met[limit_ms] for limit_ms in limits_ms) / len(limits_ms)

    def ttft_p90_ms(self) -> float:
        """What nine of ten requests stay within."""
        count = len(self.service_s)
        return _least_ms(lambda ms: sum(self._ttft_met(ms / 1e3, each) for each in self.service_s) / count)

    def tpot_p90_ms(self) -> float:
        """What nine of ten requests stay within."""
        return _least_ms(self._tpot_met)

    def thinned(self, share: float) -> "Forecast":
        """The same when only a part of the requests is let in."""
        arriving = self.load.prefill.arriving_tokens_per_s * share
        load = replace(
            self.load,
            prefill=replace(self.load.prefill, arriving_tokens_per_s=arriving),
            queue_growth_per_s=self.load.queue_growth_per_s * share,
        )
        return forecast(self.split, load, self.models, self.horizon_s)

    def _ttft_met(self, limit_s: float, service_s: float) -> float:
        left_s = limit_s - service_s
        return sum(self._wait_within(left_s - moment.wait_s) for moment in self.moments) / len(self.moments)

    def _wait_within(self, left_s: float) -> float:
        """The wait in an M/G/1 queue whose service times vary as much as their mean."""
        if left_s < 0:
            return 0.0
        utilisation = min(self.utilisation, HIGHEST_UTILISATION)
        return 1.0 - utilisation * math.exp(-(1.0 - utilisation) * left_s / max(self.mean_service_s, 1e-6))

    def _tpot_met(self, limit_ms: float) -> float:
        return sum(self._batch_within(moment.num_sequences, limit_ms) for moment in self.moments) / len(self.moments)

    def _batch_within(self, num_sequences: float, limit_ms: float) -> float:
        """Sequences in decode vary like arrivals do: the deviation is about the root of their number."""
        deviation = math.sqrt(max(num_sequences, 1.0)) * DEVIATION
        lower = tpot_ms(max(num_sequences - deviation, 1.0), self.split, self.load, self.models)
        upper = tpot_ms(num_sequences + deviation, self.split, self.load, self.models)
        middle, spread = (lower + upper) / 2, max((upper - lower) / 2, 0.03 * upper)
        return 0.5 * (1.0 + math.erf((limit_ms - middle) / (spread * math.sqrt(2.0))))


def forecast(split: Split, load: Load, models: Models, horizon_s: float) -> Forecast:
    """Follows the fluids from now to the horizon."""
    return Forecast(
        split=split,
        load=load,
        models=models,
        horizon_s=horizon_s,
        moments=_moments(split, load, models, horizon_s),
        service_s=tuple(service_s(shape.num_prompt_tokens, split, load, models) for shape in load.shapes),
        mean_service_s=service_s(load.mean_prompt_tokens, split, load, models),
    )


def service_s(num_prompt_tokens: float, split: Split, load: Load, models: Models) -> float:
    """A prompt's steps without any wait."""
    step_tokens = max(load.prefill.step_tokens, 1.0)
    num_steps = max(1.0, num_prompt_tokens / step_tokens)
    rows = num_prompt_tokens / num_steps
    keys = num_prompt_tokens / 2 + rows / 2
    return num_steps * models.prefill.ms(split.prefill_percent, rows, keys) / 1e3


def tpot_ms(num_sequences: float, split: Split, load: Load, models: Models) -> float:
    """The mean time a token when so many are in decode: those beyond the batch's bound wait for a place in turn."""
    batch = min(max(num_sequences, 1.0), _batch_bound(load))
    step_ms = models.decode.ms(split.decode_percent, batch, batch * max(load.decode.keys_per_sequence, 1.0), batch)
    return step_ms * max(num_sequences, 1.0) / batch


def _batch_bound(load: Load) -> float:
    """How many decode runs at once, known only while others wait for a place."""
    return max(load.decode.num_running, 1.0) if load.decode.num_waiting >= 1 else MOST_SEQUENCES


def _moments(split: Split, load: Load, models: Models, horizon_s: float) -> tuple[Moment, ...]:
    """Euler's method; prompts enter decode as fast as they arrive, or as prefill can compute them."""
    per_request_s = service_s(load.mean_prompt_tokens, split, load, models)
    backlog = load.prefill.backlog_tokens / load.mean_prompt_tokens + load.num_queued
    num_sequences = load.decode.num_sequences
    is_bounded = load.num_queued >= 1  # by the sequences that the phases take, so by decode as well
    tick_s = horizon_s / (NUM_MOMENTS * STEPS_A_MOMENT)
    moments: list[Moment] = []
    for number in range(NUM_MOMENTS * STEPS_A_MOMENT):
        leaving = _leaving_per_s(num_sequences, split, load, models)
        capacity = min(1.0 / per_request_s, max(leaving, 1e-6)) if is_bounded else 1.0 / per_request_s
        entering = min(capacity, load.requests_per_s + backlog / tick_s)
        if number % STEPS_A_MOMENT == 0:
            moments.append(Moment(backlog / capacity, num_sequences))
        backlog = max(0.0, backlog + (load.requests_per_s - entering) * tick_s)
        num_sequences = min(max(0.0, num_sequences + (entering - leaving) * tick_s), MOST_SEQUENCES)
    return tuple(moments)


def _leaving_per_s(num_sequences: float, split: Split, load: Load, models: Models) -> float:
    """Sequences that end."""
    if num_sequences <= 0:
        return 0.0
    return num_sequences / (tpot_ms(num_sequences, split, load, models) / 1e3 * load.work_per_request)


def _least_ms(met: Callable[[float], float]) -> float:
    """The least limit that nine of ten meet, to a hundredth of itself."""
    low, high = 1e-2, 1e7
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if met(middle) >= PERCENTILE else (middle, high)
    return high
