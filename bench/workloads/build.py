"""A workload from what the user asks for. The same specification is the same workload, in every run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.workloads import shapes
from bench.workloads.arrivals import Arrival, send_times
from bench.workloads.lengths import LONGBENCH, SHAREGPT, LengthMix, RequestLength, fitting_scale, fixed, scaled
from bench.workloads.request import ModelLimits, PlannedRequest, Workload
from bench.workloads.shapes import Conversation
from bench.workloads.traces import read_azure, read_mooncake
from tandem.errors import ConfigError

THINK_S = 1.0
TRACE_STRIDE = 500  # requests of a trace from where one seed begins to where the next does


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """What the user asks for. `name` is one of `WORKLOADS`; ``fixed`` is written ``fixed:INPUT,OUTPUT``."""

    name: str
    num_requests: int
    rate_per_s: float
    arrival: Arrival
    limits: ModelLimits
    seed: int = 0
    data: Path | None = None
    length_scale: float | None = None  # None: what fits the model's context


@dataclass(frozen=True, slots=True)
class Content:
    """A workload's requests before they have times, and the times of the trace they come from."""

    conversations: Sequence[Conversation]
    trace_s: Sequence[float] = ()


def build_workload(spec: WorkloadSpec) -> Workload:
    """ConfigError names the option that is wrong."""
    if spec.num_requests < 1:
        raise ConfigError("num_requests", f"{spec.num_requests} is below 1")
    if spec.rate_per_s <= 0:
        raise ConfigError("rate", f"{spec.rate_per_s} is not above 0")
    name, _, parameters = spec.name.partition(":")
    if name not in WORKLOADS:
        raise ConfigError("workload", f"{spec.name!r} is none of {', '.join(sorted(WORKLOADS))}")
    if parameters and name != "fixed":
        raise ConfigError("workload", f"{name} takes nothing after a colon")
    rng = np.random.default_rng(spec.seed)
    content = WORKLOADS[name](spec, parameters, rng)
    times_s = send_times(
        spec.arrival, rng, len(content.conversations), _conversation_rate(spec, content), content.trace_s
    )
    requests = _numbered(content.conversations, times_s)
    return Workload(spec.name, tuple(requests), spec.arrival.num_users)


def at_rate(spec: WorkloadSpec, rate_per_s: float) -> WorkloadSpec:
    """The same requests, more or less densely."""
    return replace(spec, rate_per_s=rate_per_s)


def _conversation_rate(spec: WorkloadSpec, content: Content) -> float:
    return spec.rate_per_s * len(content.conversations) / spec.num_requests


def _numbered(conversations: Sequence[Conversation], times_s: Sequence[float]) -> list[PlannedRequest]:
    requests: list[PlannedRequest] = []
    for conversation, at_s in zip(conversations, times_s, strict=True):
        first = len(requests)
        for turn in conversation:
            number = len(requests)
            follows = None if number == first else number - 1
            think_s = 0.0 if follows is None else THINK_S
            requests.append(PlannedRequest(number, at_s, turn.spans, turn.max_tokens, follows, think_s))
    return requests


def _mix(mix: LengthMix) -> "Builder":
    def build(spec: WorkloadSpec, parameters: str, rng: np.random.Generator) -> Content:
        lengths = _to_model(mix.sample(rng, spec.num_requests), spec)
        return Content(shapes.unshared(lengths, spec.seed))

    return build


def _fixed(spec: WorkloadSpec, parameters: str, rng: np.random.Generator) -> Content:
    try:
        prompt, output = (int(number) for number in parameters.split(","))
        if min(prompt, output) < 1:
            raise ValueError(parameters)
    except ValueError:
        raise ConfigError("workload", f"{spec.name!r} is not fixed:INPUT,OUTPUT, in tokens") from None
    if prompt + output > spec.limits.max_context_tokens:
        raise ConfigError(
            "workload", f"{spec.name!r} is longer than {spec.limits.max_context_tokens} tokens of context"
        )
    return Content(shapes.unshared(fixed(prompt, output).sample(rng, spec.num_requests), spec.seed))


def _azure(spec: WorkloadSpec, parameters: str, rng: np.random.Generator) -> Content:
    rows = read_azure(spec.data, spec.seed * TRACE_STRIDE, spec.num_requests)
    lengths = _to_model([row.length for row in rows], spec)
    return Content(shapes.unshared(lengths, spec.seed), [row.at_s for row in rows])


def _mooncake(spec: WorkloadSpec, parameters: str, rng: np.random.Generator) -> Content:
    rows = read_mooncake(spec.data, spec.seed * TRACE_STRIDE, spec.num_requests)
    scale = _scale([row.length for row in rows], spec)
    conversations = shapes.from_blocks(rows, scale, spec.limits.max_context_tokens, spec.seed)
    return Content(conversations, [row.at_s for row in rows])


def _shape(make: Callable[[np.random.Generator, int, int, int], list[Conversation]]) -> "Builder":
    def build(spec: WorkloadSpec, parameters: str, rng: np.random.Generator) -> Content:
        return Content(make(rng, spec.num_requests, spec.limits.max_context_tokens, spec.seed))

    return build


def _scale(lengths: Sequence[RequestLength], spec: WorkloadSpec) -> float:
    return spec.length_scale or fitting_scale(lengths, spec.limits.max_context_tokens)


def _to_model(lengths: Sequence[RequestLength], spec: WorkloadSpec) -> list[RequestLength]:
    scale = _scale(lengths, spec)
    return [scaled(length, scale, spec.limits.max_context_tokens) for length in lengths]


Builder = Callable[[WorkloadSpec, str, np.random.Generator], Content]

WORKLOADS: dict[str, Builder] = {
    "azure": _azure,
    "mooncake": _mooncake,
    "sharegpt": _mix(SHAREGPT),
    "longbench": _mix(LONGBENCH),
    "fixed": _fixed,
    "shared-prefix": _shape(shapes.shared_prefix),
    "rag": _shape(shapes.rag),
    "chat": _shape(shapes.chat),
}
