"""Simulated sequences and the blocks they hold."""

from dataclasses import dataclass, field

from bench.load.records import RequestRecord
from tandem.kv.layout import num_blocks_for


@dataclass(slots=True, eq=False)
class SimSequence:
    """One request on its way. Times are seconds of the simulation."""

    lease_id: int  # the request's number
    arrived_s: float
    num_prompt_tokens: int
    num_output_tokens: int  # that it ends with
    num_computed: int = 0
    num_blocks: int = 0
    started_s: float | None = None  # the first chunk's begin
    token_times_s: list[float] = field(default_factory=list)
    num_preemptions: int = 0
    priority: int = 0
    arrival_unix_ns: int = field(init=False)

    def __post_init__(self) -> None:
        self.arrival_unix_ns = int(self.arrived_s * 1e9)

    @property
    def num_tokens(self) -> int:
        """Prompt and answer so far."""
        return self.num_prompt_tokens + len(self.token_times_s)

    @property
    def num_uncomputed(self) -> int:
        """Rows until the next token."""
        return self.num_tokens - self.num_computed

    @property
    def is_complete(self) -> bool:
        """Whether it has all of its answer."""
        return len(self.token_times_s) >= self.num_output_tokens

    def num_missing_blocks(self, block_size: int) -> int:
        """For its tokens so far."""
        return max(0, num_blocks_for(self.num_tokens, block_size) - self.num_blocks)

    def record(self, ended_s: float) -> RequestRecord:
        """As a client would have seen it; one that is not complete has failed."""
        return RequestRecord(
            number=self.lease_id,
            intended_s=self.arrived_s,
            sent_s=self.arrived_s,
            token_times_s=tuple(self.token_times_s),
            ended_s=self.token_times_s[-1] if self.is_complete else ended_s,
            num_prompt_tokens=self.num_prompt_tokens,
            num_expected_tokens=self.num_output_tokens,
            num_cached_tokens=None,
            error="" if self.is_complete else "unfinished at the end of the simulation",
        )


class BlockPool:
    """Counts; there is one allocator, so what a phase sees is what there is."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_free = num_blocks

    def give(self, sequence: SimSequence, num_blocks: int) -> None:
        """ValueError when there are fewer: a scheduler has granted what is not there."""
        if num_blocks > self.num_free:
            raise ValueError(f"{num_blocks} blocks granted, {self.num_free} are free")
        self.num_free -= num_blocks
        sequence.num_blocks += num_blocks

    def take_back(self, sequence: SimSequence) -> None:
        """All that it holds."""
        self.num_free += sequence.num_blocks
        sequence.num_blocks = 0
        sequence.num_computed = 0
