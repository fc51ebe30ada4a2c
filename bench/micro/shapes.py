"""Which steps are measured, what they need, and how fast they could be. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.micro.table import Floor, ModelFacts, StepShape
from tandem.kv.layout import DTYPE_BYTES, KvLayout, num_blocks_for
from tandem.model.config import ModelConfig
from tandem.types import Phase

MS = 1e3
GIGA = 1e9
SLACK_BLOCKS = 128  # what memd keeps back, and the leases that are measured


@dataclass(frozen=True, slots=True)
class Grid:
    """Every combination is measured that the model's context allows."""

    threads: tuple[int, ...]
    batches: tuple[int, ...]  # decode
    contexts: tuple[int, ...]  # keys of a sequence: decode's, and those before a prefill chunk
    chunks: tuple[int, ...]  # prefill


def step_shapes(grid: Grid, max_context_tokens: int) -> tuple[StepShape, ...]:
    """Decode by batch and context; prefill chunks alone at a prompt's start and behind each context."""
    decode = [
        StepShape(Phase.DECODE, threads, batch, 1, context)
        for threads in grid.threads
        for batch in grid.batches
        for context in grid.contexts
    ]
    prefill = [
        StepShape(Phase.PREFILL, threads, 1, chunk, before + chunk)
        for threads in grid.threads
        for chunk in grid.chunks
        for before in (0, *grid.contexts)
    ]
    return tuple(shape for shape in (*decode, *prefill) if shape.num_context_tokens <= max_context_tokens)


def num_blocks_needed(shapes: Sequence[StepShape], block_size: int) -> int:
    """By the largest of them: each sequence has blocks of its own, or caches would hide what reading costs."""
    return max(shape.num_sequences * num_blocks_for(shape.num_context_tokens, block_size) for shape in shapes)


def kv_bytes_needed(shapes: Sequence[StepShape], config: ModelConfig, block_size: int) -> int:
    """For a pool that holds them, of whatever dtype; what is not touched takes no memory."""
    token_bytes = config.num_layers * 2 * config.num_kv_heads * config.head_dim * max(DTYPE_BYTES.values())
    return (num_blocks_needed(shapes, block_size) + SLACK_BLOCKS) * block_size * token_bytes


def model_facts(name: str, config: ModelConfig, layout: KvLayout) -> ModelFacts:
    """Matrices alone: norms and biases are a thousandth."""
    attention = config.hidden_size * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    feed_forward = 3 * config.hidden_size * config.intermediate_size
    body = config.num_layers * (attention + feed_forward)
    head = config.vocab_size * config.hidden_size
    return ModelFacts(
        name=name,
        dtype=layout.dtype,
        weight_bytes=(body + head) * DTYPE_BYTES[layout.dtype],
        kv_token_bytes=layout.token_bytes,
        flops_per_token=2 * body,
        block_size=layout.block_size,
    )


def floor_ms(shape: StepShape, model: ModelFacts, floor: Floor) -> float:
    """No step is faster than reading the weights and the keys once, nor than its matrix multiplications."""
    num_keys = shape.num_sequences * shape.num_context_tokens
    read_bytes = model.weight_bytes + num_keys * model.kv_token_bytes
    flops = shape.num_sequences * shape.num_new_tokens * model.flops_per_token
    return max(read_bytes / (floor.read_gb_per_s * GIGA), flops / (floor.gemm_gflop_per_s * GIGA)) * MS
