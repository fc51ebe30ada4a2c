"""What the phases have to do, read from the newest samples. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from tandem.partition.observations import Observations, PhaseSamples
from tandem.partition.samples import RequestSample, StepSample
from tandem.types import Phase, RequestClass

FEW_REQUESTS = 32  # the newest, whose shapes stand for those that come
LATELY = 0.1  # of the window: what counts as now
MIN_SPAN_S = 0.5
MOST_CORRECTION = 2.0


@dataclass(frozen=True, slots=True)
class RequestShape:
    """A request like those that come."""

    request_class: RequestClass
    num_prompt_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class PrefillLoad:
    """`arriving` rates are of what came in, done or not."""

    arriving_tokens_per_s: float
    backlog_tokens: float  # in the phase, not computed yet
    step_tokens: float  # of a full step


@dataclass(frozen=True, slots=True)
class DecodeLoad:
    """Lately."""

    num_running: float  # sequences in a step
    num_waiting: float  # that hold blocks, and found no place in the step
    keys_per_sequence: float
    tokens_per_s: float  # computed over the window
    growth_per_s: float  # of `num_sequences`, over the window

    @property
    def num_sequences(self) -> float:
        """All that the phase has."""
        return self.num_running + self.num_waiting


@dataclass(frozen=True, slots=True)
class Load:
    """What there is to do. `num_queued`: requests that the gateway has sent to no phase."""

    prefill: PrefillLoad
    decode: DecodeLoad
    shapes: tuple[RequestShape, ...]
    mean_prompt_tokens: float  # of `shapes`
    mean_output_tokens: float
    num_queued: float
    queue_growth_per_s: float

    @property
    def work_per_request(self) -> float:
        """Answer tokens that a request brings, by what flows through decode: lengths of those that ended vary more."""
        demand = self.decode.tokens_per_s + self.decode.growth_per_s * self.mean_output_tokens
        by_flow = demand / max(self.requests_per_s, 1e-6)
        return min(max(by_flow, self.mean_output_tokens / MOST_CORRECTION), self.mean_output_tokens * MOST_CORRECTION)

    @property
    def requests_per_s(self) -> float:
        """Arriving, at the phases and in the gateway's queue."""
        return max(0.0, self.prefill.arriving_tokens_per_s / self.mean_prompt_tokens + self.queue_growth_per_s)


def load_of(observations: Observations) -> Load | None:
    """None while too little is known: no request has been served in the window."""
    if not observations.served:
        return None
    shapes = tuple(
        RequestShape(sample.request_class, sample.num_prompt_tokens, sample.num_output_tokens)
        for sample in observations.served[-FEW_REQUESTS:]
    )
    return Load(
        prefill=_prefill(observations.samples(Phase.PREFILL), observations.now_s),
        decode=_decode(observations),
        shapes=shapes,
        mean_prompt_tokens=fmean(shape.num_prompt_tokens for shape in shapes),
        mean_output_tokens=fmean(shape.num_output_tokens for shape in shapes),
        num_queued=_queued(observations),
        queue_growth_per_s=_queue_growth(observations.served),
    )


def _prefill(samples: PhaseSamples, now_s: float) -> PrefillLoad:
    steps = samples.window
    if not steps:
        return PrefillLoad(0.0, 0.0, 1.0)
    span_s = max(samples.observed_s, MIN_SPAN_S)
    backlog = steps[-1].num_backlog_tokens
    computed = sum(step.num_tokens for step in steps)
    arrived = max(0, computed + backlog - _carried(steps[0], now_s - span_s))
    return PrefillLoad(
        arriving_tokens_per_s=arrived / span_s,
        backlog_tokens=backlog,
        step_tokens=max(step.num_tokens for step in steps),
    )


def _carried(first: StepSample, start_s: float) -> int:
    """What had arrived before the window: all that its first step found, if it was under way when the window began."""
    was_busy = first.at_s - first.duration_ms / 1e3 <= start_s
    return first.num_tokens + first.num_backlog_tokens if was_busy else 0


def _decode(observations: Observations) -> DecodeLoad:
    samples = observations.samples(Phase.DECODE)
    if not samples.window:
        return DecodeLoad(0.0, 0.0, 0.0, 0.0, 0.0)
    steps = samples.window
    recent = _since(steps, observations.now_s - observations.window_s * LATELY)
    num_running = fmean(step.num_sequences for step in recent) if recent else 0.0
    num_waiting = float(min(step.num_waiting for step in recent)) if recent else 0.0  # who came since the step joins
    span_s = max(samples.observed_s, MIN_SPAN_S)
    return DecodeLoad(
        num_running=num_running,
        num_waiting=num_waiting,
        keys_per_sequence=_keys_per_sequence(recent or steps[-1:]),
        tokens_per_s=sum(step.num_tokens for step in steps) / span_s,
        growth_per_s=(num_running + num_waiting - steps[0].num_sequences - steps[0].num_waiting) / span_s,
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
    """Requests a second over the window."""
    span_s = served[-1].at_s - served[0].at_s
    return (served[-1].num_waiting - served[0].num_waiting) / span_s if span_s >= MIN_SPAN_S else 0.0
