"""A set of kernels as one value, which is passed to whoever computes. The torch set is every other's reference."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from kernels.draw_tokens import DrawTokens, draw_tokens
from kernels.layer_stack import LayerStack, RunLayers
from kernels.linear import linear, linear_float32
from kernels.move_kv import move_kv
from kernels.paged_attention import paged_attention, plan_attention
from kernels.quantised import Weight
from kernels.rms_norm import NormedResidual, add_rms_norm
from kernels.rotary import RotaryTable, rotary_table
from kernels.rotate_and_store import HeadNorm, rotate_and_store
from kernels.silu_mul import silu_mul


class PlanAttention(Protocol):
    """`kernels.paged_attention.plan_attention`; the plan is its own set's."""

    def __call__(
        self,
        block_tables: torch.Tensor,
        query_start: torch.Tensor,
        context_lens: torch.Tensor,
        *,
        block_size: int,
        num_kv_heads: int,
        sliding_window: int | None = None,
        positions: torch.Tensor | None = None,
    ) -> Any:
        """See there."""
        ...


class PagedAttention(Protocol):
    """`kernels.paged_attention.paged_attention`."""

    def __call__(
        self, query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, plan: Any, *, scale: float
    ) -> torch.Tensor:
        """See there."""
        ...


class RotateAndStore(Protocol):
    """`kernels.rotate_and_store.rotate_and_store`."""

    def __call__(
        self,
        projected: torch.Tensor,
        table: RotaryTable,
        norm: HeadNorm | None,
        *,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> torch.Tensor:
        """See there."""
        ...


class Linear(Protocol):
    """`kernels.linear.linear`."""

    def __call__(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
        """See there."""
        ...


@dataclass(frozen=True, slots=True)
class Kernels:
    """Each operator's signature and meaning is that of the torch function of its name."""

    name: str
    plan_attention: PlanAttention
    paged_attention: PagedAttention
    rotate_and_store: RotateAndStore
    add_rms_norm: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], NormedResidual]
    silu_mul: Callable[[torch.Tensor], torch.Tensor]
    linear: Linear
    linear_float32: Callable[[torch.Tensor, Weight], torch.Tensor]
    fuse_layers: Callable[[LayerStack], RunLayers] | None  # all layers in one call, where the set has it
    rotary_table: Callable[[torch.Tensor, torch.Tensor], RotaryTable] = rotary_table
    draw_tokens: DrawTokens = draw_tokens
    move_kv: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, RotaryTable], None] = move_kv
    pause: Callable[[], None] | None = None  # for `StepInputs`; no operator


def torch_kernels() -> Kernels:
    """The reference: plain torch, any dtype."""
    return Kernels(
        name="torch",
        plan_attention=plan_attention,
        paged_attention=paged_attention,
        rotate_and_store=rotate_and_store,
        add_rms_norm=add_rms_norm,
        silu_mul=silu_mul,
        linear=linear,
        linear_float32=linear_float32,
        fuse_layers=None,
    )
