"""What `tandem bench reuse`, `segments` and `hits` write."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.results import Provenance, WorkloadFacts
from bench.reuse.gains import SightSeries
from bench.reuse.summary import Savings
from bench.reuse.trace import Replay


@dataclass(frozen=True, slots=True)
class ReuseResult:
    """`tandem bench reuse`."""

    provenance: Provenance
    deployment: str
    model: str
    num_output_tokens: int
    savings: Savings
    schema: Literal["tandem.bench.reuse/1"] = "tandem.bench.reuse/1"


@dataclass(frozen=True, slots=True)
class SegmentsResult:
    """`tandem bench segments`: documents that were in other prompts, by deployment and case."""

    provenance: Provenance
    model: str
    source: str  # of the documents
    num_documents: int  # of each prompt
    series: tuple[SightSeries, ...]
    schema: Literal["tandem.bench.segments/1"] = "tandem.bench.segments/1"


@dataclass(frozen=True, slots=True)
class HitsResult:
    """`tandem bench hits`: prompt tokens and those of them reused, of each request, by the system and by replays."""

    provenance: Provenance
    deployment: str
    model: str
    workload: WorkloadFacts
    block_size: int
    num_blocks: int
    num_spare_blocks: int  # held ahead by idle phases, after the run
    num_prompt_tokens: tuple[int, ...]
    num_cached_tokens: tuple[int, ...]
    replays: tuple[Replay, ...]
    schema: Literal["tandem.bench.hits/1"] = "tandem.bench.hits/1"


def hit_rate(num_cached_tokens: Sequence[int], num_prompt_tokens: Sequence[int]) -> float:
    """Of all prompts' tokens; 0 of none."""
    return sum(num_cached_tokens) / max(1, sum(num_prompt_tokens))
