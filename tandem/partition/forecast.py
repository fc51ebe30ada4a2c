"""What requests that come within the next moments will see under a split. Pure.

Both phases are followed as fluids over a horizon: prompts wait for what is before them, sequences gather in decode
until it gives out tokens as fast as prompts bring new ones. Around the fluid lies the randomness of arrivals: the tail
of an M/G/1 queue's wait for TTFT, a normal batch for TPOT. TTFT is always wait plus service. TPOT is a request's mean:
it meets the batches of all its answer's time, not the one of a moment.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from tandem.partition.decoding import MOST_SEQUENCES, Decoding, Prefill, Tpot
from tandem.partition.load import Load
from tandem.partition.slo import SloPolicy
from tandem.partition.step_times import StepContent, StepModel
from tandem.types import Split

NUM_MOMENTS = 6
STEPS_A_MOMENT = 4
HIGHEST_UTILISATION = 0.97  # beyond it the fluid says how the queue grows
PERCENTILE = 0.9
BISECTIONS = 12


@dataclass(frozen=True, slots=True)
class Models:
    """Step times of both phases."""

    prefill: StepModel
    decode: StepModel


@dataclass(frozen=True, slots=True)
class Busy:
    """In which part of the time each phase is at work."""

    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """One split's future. `service_s` is of each of the load's shapes.

    `waits_s` are the fluid's, at even times, so that a backlog counts for as long as it lasts. `num_sequences` are
    those in decode, means over the time of an answer that begins at one of fewer moments.
    """

    split: Split
    load: Load
    models: Models
    horizon_s: float
    waits_s: tuple[float, ...]
    num_sequences: tuple[float, ...]
    busy: Busy
    service_s: tuple[float, ...]
    tpots: tuple[Tpot, ...]  # of all moments

    @property
    def mean_service_s(self) -> float:
        """Of a prompt."""
        return fmean(self.service_s)

    @property
    def utilisation(self) -> float:
        """Of prefill."""
        return self.load.requests_per_s * self.mean_service_s

    @property
    def mean_residual_s(self) -> float:
        """What is left of the service that an arriving prompt finds under way."""
        return residual_s(self.service_s)

    def ttft_attainment(self, slos: SloPolicy) -> float:
        """The share of requests that meet it, over the shapes that come and the moments they may come at."""
        limits_s = (slos.of(shape.request_class).ttft_ms / 1e3 for shape in self.load.shapes)
        return fmean(self._ttft_met([limit_s - each for limit_s, each in zip(limits_s, self.service_s, strict=True)]))

    def tpot_attainment(self, slos: SloPolicy, slack: float = 1.0) -> float:
        """As for TTFT; SLOs are multiplied by `slack`."""
        limits_ms = [slos.of(shape.request_class).tpot_ms * slack for shape in self.load.shapes]
        met = {limit_ms: self._tpot_met(limit_ms) for limit_ms in set(limits_ms)}
        return sum(met[limit_ms] for limit_ms in limits_ms) / len(limits_ms)

    def ttft_p90_ms(self) -> float:
        """What nine of ten requests stay within."""
        return _least_ms(lambda ms: fmean(self._ttft_met([ms / 1e3 - each for each in self.service_s])))

    def tpot_p90_ms(self) -> float:
        """What nine of ten requests stay within."""
        return _least_ms(self._tpot_met)

    def thinned(self, share: float) -> "Forecast":
        """The same when only a part of the requests is let in."""
        return forecast(self.split, self.load.scaled(share), self.models, self.horizon_s)

    def _ttft_met(self, left_s: Sequence[float]) -> list[float]:
        """For each of the times that may be waited: in how many cases it is enough.

        Who waits at all in an M/G/1 queue waits for a time that is nearly exponential.
        """
        utilisation = min(self.utilisation, HIGHEST_UTILISATION)
        decay = (1.0 - utilisation) / max(self.mean_residual_s, 1e-6)
        waits_s = Counter(self.waits_s)  # mostly 0
        return [
            sum(
                count * (1.0 - utilisation * math.exp(-decay * (left - wait)))
                for wait, count in waits_s.items()
                if left >= wait
            )
            / len(self.waits_s)
            for left in left_s
        ]

    def _tpot_met(self, limit_ms: float) -> float:
        return min(1.0, sum(tpot.met(limit_ms) for tpot in self.tpots) / len(self.num_sequences))  # weights are rounded


def forecast(split: Split, load: Load, models: Models, horizon_s: float) -> Forecast:
    """Follows the fluids from now to the horizon."""
    ticks = _ticks(split, load, models, horizon_s / (NUM_MOMENTS * STEPS_A_MOMENT))
    busy = Busy(fmean(tick.busy.prefill for tick in ticks), fmean(tick.busy.decode for tick in ticks))
    services = tuple(service_s(shape.num_prompt_tokens, split, load, models, busy.decode) for shape in load.shapes)
    waits_s, num_sequences = tuple(tick.wait_s for tick in ticks), _num_sequences(ticks)
    decode, prefill = Decoding(split, load, models.decode), Prefill(busy.prefill, residual_s(services))
    tpots = tuple(chain.from_iterable(decode.tpots(number, prefill) for number in num_sequences))
    return Forecast(split, load, models, horizon_s, waits_s, num_sequences, busy, services, tpots)


def residual_s(services_s: Sequence[float]) -> float:
    """What is left of one that is found under way: ``E[S^2] / 2 E[S]``."""
    return fmean(each**2 for each in services_s) / (2.0 * max(fmean(services_s), 1e-9))


def service_s(num_prompt_tokens: float, split: Split, load: Load, models: Models, decode_busy: float) -> float:
    """A prompt's steps without any wait."""
    num_steps = max(1.0, num_prompt_tokens / max(load.prefill.step_tokens, 1.0))
    rows = num_prompt_tokens / num_steps
    content = StepContent(rows, num_prompt_tokens / 2 + rows / 2)
    return num_steps * models.prefill.ms(split.prefill_percent, content, decode_busy) / 1e3


@dataclass(frozen=True, slots=True)
class _Tick:
    """One step of the fluids."""

    wait_s: float
    num_sequences: float
    answer_ticks: float  # how many of them an answer takes
    busy: Busy


def _num_sequences(ticks: Sequence[_Tick]) -> tuple[float, ...]:
    """At each moment."""
    starts = range(0, len(ticks), STEPS_A_MOMENT)
    ends = (start + max(1, round(ticks[start].answer_ticks)) for start in starts)
    return tuple(
        fmean(tick.num_sequences for tick in ticks[start:end]) for start, end in zip(starts, ends, strict=True)
    )


def _ticks(split: Split, load: Load, models: Models, tick_s: float) -> list[_Tick]:
    """Rates stand still within a tick; prompts enter decode as fast as they arrive, or as prefill can compute them.

    While the gateway holds requests back, the phases have as many as they take: prefill gets another one where decode
    gives one out, and so waits for decode when that has nearly all of them.
    """
    decode = Decoding(split, load, models.decode)
    in_prefill = load.prefill.backlog_tokens / load.mean_prompt_tokens
    backlog = in_prefill + load.num_queued
    num_sequences = load.decode.num_sequences
    places = in_prefill + num_sequences if load.num_queued >= 1 else math.inf
    ticks: list[_Tick] = []
    prefill_busy = 1.0
    for _ in range(NUM_MOMENTS * STEPS_A_MOMENT):
        decode_busy = 1.0 - math.exp(-num_sequences)
        per_request_s = service_s(load.mean_prompt_tokens, split, load, models, decode_busy)
        answer_s = decode.answer_s(num_sequences, prefill_busy)
        staying = math.exp(-tick_s / answer_s)  # of those in decode, until the tick's end
        leaving = num_sequences * (1.0 - staying) / tick_s
        room = max(0.0, places - num_sequences)  # for prompts
        capacity = min(1.0 / per_request_s, room / tick_s + leaving)
        entering = min(capacity, load.requests_per_s + backlog / tick_s)
        prefill_busy = min(1.0, entering * per_request_s)
        wait_s = max(backlog * per_request_s, max(0.0, backlog - room) / max(leaving, 1e-6))
        ticks.append(_Tick(wait_s, num_sequences, answer_s / tick_s, Busy(prefill_busy, decode_busy)))
        backlog = max(0.0, backlog + (load.requests_per_s - entering) * tick_s)
        num_sequences = min(num_sequences * staying + entering * answer_s * (1.0 - staying), MOST_SEQUENCES)
    return ticks


def _least_ms(met: Callable[[float], float]) -> float:
    """The least limit that nine of ten meet, to a hundredth of itself."""
    low, high = 1e-2, 1e7
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if met(middle) >= PERCENTILE else (middle, high)
    return high
