"""What stands in for a GPU where there is none, so that dry runs and tests go through the code that a GPU runs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from kernels.draw_tokens import draw_tokens
from kernels.gpu.sampling_rows import SamplingRows
from kernels.rotary import RotaryTable
from kernels.rotate_and_store import HeadNorm
from kernels.table import Kernels
from tandem.runner.cuda.graphs import StreamShare
from tandem.types import SamplingSpec


class RehearsedGraphs:
    """A `GraphBackend` that computes again what was captured."""

    def share(self) -> StreamShare:
        """One stream."""
        return StreamShare(0, 1)

    def capture(self, compute: Callable[[], None]) -> Callable[[], None]:
        """See `GraphBackend`."""
        return compute

    def wait(self) -> None:
        """The processor has done its work already."""


@dataclass(frozen=True, slots=True)
class _PaddedPlan:
    """`plan` is of the first `num_rows` rows; those behind them are padding."""

    plan: Any
    num_rows: int


def padded_kernels(kernels: Kernels) -> Kernels:
    """The set with the GPU set's way with padding: one row a sequence behind all others, slot -1, a context of 0."""

    def plan_attention(
        block_tables: torch.Tensor, query_start: torch.Tensor, context_lens: torch.Tensor, **shape: Any
    ) -> _PaddedPlan:
        count = int((context_lens > 0).sum())
        plan = kernels.plan_attention(block_tables[:count], query_start[: count + 1], context_lens[:count], **shape)
        return _PaddedPlan(plan, int(query_start[count]))

    def paged_attention(
        query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, plan: _PaddedPlan, *, scale: float
    ) -> torch.Tensor:
        attended = kernels.paged_attention(query[: plan.num_rows], key_cache, value_cache, plan.plan, scale=scale)
        return _padded(attended, len(query))

    def rotate_and_store(
        projected: torch.Tensor,
        table: RotaryTable,
        norm: HeadNorm | None,
        *,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> torch.Tensor:
        count = int((slot_mapping >= 0).sum())
        turned = kernels.rotate_and_store(
            projected[:count],
            RotaryTable(table.cos[:count], table.sin[:count]),
            norm,
            key_cache=key_cache,
            value_cache=value_cache,
            slot_mapping=slot_mapping[:count],
        )
        return _padded(turned, len(projected))

    return replace(
        kernels, plan_attention=plan_attention, paged_attention=paged_attention, rotate_and_store=rotate_and_store
    )


def sample_rows(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    """What `kernels.gpu.sample_tokens.sample_tokens` answers for rows without bias and penalties."""
    allowed = logits.clone()
    for index, (banned_ids, count) in enumerate(zip(rows.banned_ids.tolist(), rows.num_banned.tolist(), strict=True)):
        allowed[index, banned_ids[:count]] = float("-inf")
    samplings = [
        SamplingSpec(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed % 2**64)
        for temperature, top_k, top_p, min_p, seed in zip(
            *(values.tolist() for values in (rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.seed)),
            strict=True,
        )
    ]
    return torch.tensor(draw_tokens(allowed, samplings, rows.position.tolist()))


def _padded(rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    return torch.cat((rows, rows.new_zeros((num_rows - len(rows), *rows.shape[1:]))))
