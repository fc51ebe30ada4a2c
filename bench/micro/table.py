"""What `tandem bench micro` writes, for people and for the planner and the simulator, who read the step times.

The schema is versioned: a field is added under the same version, any other change makes a new one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from bench.results import Provenance
from tandem.errors import ConfigError
from tandem.types import Phase


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model under measurement, and what its floors follow from."""

    name: str
    dtype: str
    weight_bytes: int  # that a step reads
    kv_token_bytes: int  # keys and values of one token, all layers
    flops_per_token: int  # of the matrix multiplications, logits left out
    block_size: int


@dataclass(frozen=True, slots=True)
class Floor:
    """The machine's own limits with so many threads: medians over the rounds of the same run."""

    num_threads: int
    read_gb_per_s: float
    gemm_gflop_per_s: float


@dataclass(frozen=True, slots=True)
class StepShape:
    """A step of `num_sequences` equal sequences, each with `num_new_tokens` rows and `num_context_tokens` keys."""

    phase: Phase
    num_threads: int
    num_sequences: int
    num_new_tokens: int  # 1 in decode; the chunk in prefill
    num_context_tokens: int  # of each sequence, the new ones included


@dataclass(frozen=True, slots=True)
class StepTime:
    """One entry of the step-time table, sampling included."""

    shape: StepShape
    median_ms: float
    lowest_ms: float
    highest_ms: float
    floor_ms: float  # by bandwidth or by arithmetic, whichever is longer


@dataclass(frozen=True, slots=True)
class DecisionCost:
    """One decision of a pure scheduler, alone, with so many waiting."""

    decision: str
    queue_depth: int
    median_us: float


@dataclass(frozen=True, slots=True)
class LeaseCost:
    """One call to a real memd."""

    call: str
    num_blocks: int
    median_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class StepOverhead:
    """What of a step, sampling included, is not the model's own operators. Medians."""

    shape: StepShape
    step_ms: float
    operators_ms: float
    share: float  # of the step that is no operator


@dataclass(frozen=True, slots=True)
class GatewayCost:
    """CPU time of the gateway's process, gRPC to client and phases included, and of what surrounds decode's steps."""

    num_streams: int
    num_tokens: int
    cpu_us_per_token: float
    decode_loop_us_per_token: float = 0.0  # decode's event loop and gRPC's threads: its computing thread is not in it
    num_output_tokens: int = 64  # of each request


@dataclass(frozen=True, slots=True)
class SegmentSize:
    """`formula_bytes` follows from the model's shape and the pool's alone; `size_bytes` is what memd exports."""

    segment: str
    size_bytes: int
    formula_bytes: int


@dataclass(frozen=True, slots=True)
class ServiceMemory:
    """A service's process, its children included. PSS counts a page that n processes map as 1/n of it."""

    service: str
    pss_bytes: int
    pss_anonymous_bytes: int  # its own
    pss_shared_bytes: int  # of segments
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class MicroResult:
    """The file."""

    provenance: Provenance
    model: ModelFacts
    floors: tuple[Floor, ...]
    steps: tuple[StepTime, ...]
    decisions: tuple[DecisionCost, ...]
    leases: tuple[LeaseCost, ...]
    gateway: tuple[GatewayCost, ...]
    overhead: tuple[StepOverhead, ...] = ()
    segments: tuple[SegmentSize, ...] = ()
    services: tuple[ServiceMemory, ...] = ()  # after the gateway's measurement
    gateway_request_us: float | None = None  # see `bench.micro.gateway.request_us`
    schema: Literal["tandem.bench.micro/1"] = "tandem.bench.micro/1"


def read_micro(path: Path) -> MicroResult:
    """ConfigError: not there, or not such a file, or of another version."""
    try:
        return TypeAdapter(MicroResult).validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError("file", f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError("file", f"{path} is no result of micro: {error.errors()[0]['msg']}") from error
