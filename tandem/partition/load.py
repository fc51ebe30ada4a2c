"""What the phases have to do, read from samples. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeVar

from tandem.partition.observations import Observations, PhaseSamples
from tandem.partition.samples import RequestSample, StepSample
from tandem.types import Phase, RequestClass

MAX_SHAPES = 64  # that stand for all
MAX_ANSWERS = 16
LATELY = 0.1  # of the window: what counts as now
MIN_SPAN_S = 0.5
LEAST_RATE_PER_S = 1e-3
MOST_CORRECTION = 2.0  # of answers' lengths
MOST_STRETCH = 8.0  # of prompts' lengths

_Each = TypeVar("_Each")


@dataclass(frozen=True, slots=True)
class RequestShape:
    """A request like those that come."""

    request_class: RequestClass
    num_prompt_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class PrefillLoad:
    """`arriving` is what came in, done or not."""

    arriving_tokens_per_s: float
    backlog_tokens: float  # in the phase, not computed yet
    step_tokens: float  # of a full step
    growth_tokens_per_s: float  # of the backlog


@dataclass(frozen=True, slots=True)
class DecodeLoad:
    """Sequences and keys are those of the last moments."""

    num_running: float  # sequences in a step
    num_waiting: float  # that hold blocks, and found no place in the step
    keys_per_sequence: float
    tokens_per_s: float  # computed
    growth_per_s: float  # of `num_sequences`

    @property
    def num_sequences(self) -> float:
        """All that the phase has."""
        return self.num_running + self.num_waiting


@dataclass(frozen=True, slots=True)
class Load:
    """What there is to do. `num_queued`: requests that the gateway has sent to no phase."""

    prefill: PrefillLoad
    decode: DecodeLoad
    requests_per_s: float  # arriving
    shapes: tuple[RequestShape, ...]  # of what arrives
    mean_prompt_tokens: float
    work_per_request: float  # answer tokens that a request brings
    answers: tuple[float, ...]  # how they differ: some lengths over the mean
    num_queued: float

    def scaled(self, factor: float) -> "Load":
        """The same when so many times as many requests come; what is there already stays."""
        return replace(self, requests_per_s=self.requests_per_s * factor)


def load_of(observations: Observations, stretch_s: float) -> Load | None:
    """Rates and lengths are those of the last `stretch_s`.

    None while too little is known: no request has been served lately. Who arrives is counted by what has ended and what
    there is more of inside than before; how long their prompts are, by the tokens that came in. Those of requests that
    ended are older than that by an answer's time.
    """
    served = observations.served_since(observations.now_s - stretch_s)
    if not served:
        return None
    prefill = prefill_load(observations.samples(Phase.PREFILL), observations.now_s, stretch_s)
    decode = _decode(observations, stretch_s)
    span_s = max(min(stretch_s, observations.served_s), MIN_SPAN_S)
    mean_served = fmean(sample.num_prompt_tokens for sample in served)
    more = decode.growth_per_s + prefill.growth_tokens_per_s / mean_served + _queue_growth(served)
    requests_per_s = max(LEAST_RATE_PER_S, len(served) / span_s + more)
    longer = min(max(prefill.arriving_tokens_per_s / requests_per_s / mean_served, 1 / MOST_STRETCH), MOST_STRETCH)
    answers = sorted(sample.num_output_tokens for sample in served)
    return Load(
        prefill=prefill,
        decode=decode,
        requests_per_s=requests_per_s,
        shapes=_shapes(served, longer),
        mean_prompt_tokens=mean_served * longer,
        work_per_request=_work(decode, fmean(answers), requests_per_s),
        answers=tuple(length / fmean(answers) for length in _middles(answers, MAX_ANSWERS)),
        num_queued=_queued(observations),
    )


def _work(decode: DecodeLoad, mean_output_tokens: float, requests_per_s: float) -> float:
    """By what flows through decode: lengths of those that ended vary more."""
    demand = decode.tokens_per_s + decode.growth_per_s * mean_output_tokens
    by_flow = demand / requests_per_s
    return min(max(by_flow, mean_output_tokens / MOST_CORRECTION), mean_output_tokens * MOST_CORRECTION)


def _shapes(served: Sequence[RequestSample], longer: float) -> tuple[RequestShape, ...]:
    """In the order of lengths; prompts are made so many times as long.

    Few long prompts decide how long others wait: a sample by time has them or has them not.
    """
    ordered = sorted(served, key=lambda sample: (sample.request_class.value, sample.num_prompt_tokens))
    return tuple(
        RequestShape(sample.request_class, max(1, round(sample.num_prompt_tokens * longer)), sample.num_output_tokens)
        for sample in _middles(ordered, MAX_SHAPES)
    )


def _middles(ordered: Sequence[_Each], most: int) -> list[_Each]:
    """Of so many equal parts, or of as many as there are."""
    count = min(len(ordered), most)
    return [ordered[(2 * part + 1) * len(ordered) // (2 * count)] for part in range(count)]


def prefill_load(samples: PhaseSamples, now_s: float, stretch_s: float) -> PrefillLoad:
    """Over the last `stretch_s`."""
    steps = samples.since(now_s - stretch_s)
    if not steps:
        return PrefillLoad(0.0, 0.0, 1.0, 0.0)
    span_s = max(min(stretch_s, samples.observed_s), MIN_SPAN_S)
    backlog, carried = steps[-1].num_backlog_tokens, _carried(steps[0], now_s - span_s)
    computed = sum(step.num_tokens for step in steps)
    return PrefillLoad(
        arriving_tokens_per_s=max(0, computed + backlog - carried) / span_s,
        backlog_tokens=backlog,
        step_tokens=max(step.num_tokens for step in steps),
        growth_tokens_per_s=(backlog - carried) / span_s,
    )


def _carried(first: StepSample, start_s: float) -> int:
    """What had arrived before the stretch: all that its first step found, if it was under way when that began."""
    return first.num_tokens + first.num_backlog_tokens if first.begun_s <= start_s else 0


def _decode(observations: Observations, stretch_s: float) -> DecodeLoad:
    samples = observations.samples(Phase.DECODE)
    steps = samples.since(observations.now_s - stretch_s)
    if not steps:
        return DecodeLoad(0.0, 0.0, 0.0, 0.0, 0.0)
    recent = _since(steps, observations.now_s - observations.window_s * LATELY)
    num_running = fmean(step.num_sequences for step in recent) if recent else 0.0
    num_waiting = float(min(step.num_waiting for step in recent)) if recent else 0.0  # who came since the step joins
    span_s = max(min(stretch_s, samples.observed_s), MIN_SPAN_S)
    first = steps[0]
    before = first.num_sequences + first.num_waiting if first.begun_s <= observations.now_s - span_s else 0
    return DecodeLoad(
        num_running=num_running,
        num_waiting=num_waiting,
        keys_per_sequence=_keys_per_sequence(recent or steps[-1:]),
        tokens_per_s=sum(step.num_tokens for step in steps) / span_s,
        growth_per_s=(num_running + num_waiting - before) / span_s,
    )


def _keys_per_sequence(steps: Sequence[StepSample]) -> float:
    return sum(step.num_context_tokens for step in steps) / sum(step.num_sequences for step in steps)


def _since(steps: Sequence[StepSample], since_s: float) -> list[StepSample]:
    return [step for step in steps[-256:] if step.at_s > since_s]


def _queued(observations: Observations) -> float:
    """As the newest served request found the queue, if that is not long ago."""
    newest = observations.served[-1]
    is_recent = newest.at_s > observations.now_s - observations.window_s * 0.5
    return float(newest.num_waiting) if is_recent else 0.0


def _queue_growth(served: Sequence[RequestSample]) -> float:
    """Requests a second."""
    span_s = served[-1].at_s - served[0].at_s
    return (served[-1].num_waiting - served[0].num_waiting) / span_s if span_s >= MIN_SPAN_S else 0.0
