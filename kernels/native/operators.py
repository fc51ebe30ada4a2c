"""The library's operators behind the signatures of the torch kernels; bfloat16 throughout.

A pointer stays valid as long as its tensor is referred to: plans keep theirs, calls return after the last use.
"""

from ctypes import CDLL, byref
from dataclasses import dataclass

import torch

from kernels.native.structs import Heads, ProjectedHeads, StepShape
from kernels.native.weights import checked, weight_argument
from kernels.quantised import Weight
from kernels.rms_norm import NormedResidual
from kernels.rotary import RotaryTable
from kernels.rotate_and_store import HeadNorm


@dataclass(frozen=True, slots=True)
class NativePlan:
    """A step's shape, and the tensors that it points to."""

    shape: StepShape
    tensors: tuple[torch.Tensor | None, ...]


def plan_attention(
    block_tables: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    block_size: int,
    num_kv_heads: int,
    sliding_window: int | None = None,
    positions: torch.Tensor | None = None,
) -> NativePlan:
    """See `kernels.paged_attention.plan_attention`."""
    tables = block_tables.contiguous()
    pointers = (checked(tensor, torch.int64).data_ptr() for tensor in (tables, query_start, context_lens))
    chosen = None if positions is None else checked(positions, torch.int64).data_ptr()
    num_seqs, max_blocks = block_tables.shape
    shape = StepShape(*pointers, num_seqs, max_blocks, block_size, sliding_window or 0, chosen)
    return NativePlan(shape, (tables, query_start, context_lens, positions))


@dataclass(frozen=True, slots=True)
class NativeOperators:
    """One method an operator; see the torch function of the same name."""

    library: CDLL

    def paged_attention(
        self,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        plan: NativePlan,
        *,
        scale: float,
    ) -> torch.Tensor:
        """Heads of a query row must lie one after another; the rows may be further apart."""
        output = torch.empty(query.shape, dtype=query.dtype)
        heads = Heads(query.shape[1], key_cache.shape[2], query.shape[2])
        keys, values = checked(key_cache).data_ptr(), checked(value_cache).data_ptr()
        rows = query if query[0].is_contiguous() else query.contiguous()
        self.library.tandem_attention(
            byref(plan.shape), byref(heads), rows.data_ptr(), rows.stride(0), keys, values, output.data_ptr(), scale
        )
        return output

    def rotate_and_store(
        self,
        projected: torch.Tensor,
        table: RotaryTable,
        norm: HeadNorm | None,
        *,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> torch.Tensor:
        """The query heads are turned in place: the result is a view of `projected`."""
        num_rows, num_all, head_dim = projected.shape
        num_kv_heads = key_cache.shape[2]
        num_heads = num_all - 2 * num_kv_heads
        heads = ProjectedHeads(
            checked(projected).data_ptr(),
            num_rows,
            num_heads,
            num_kv_heads,
            head_dim,
            checked(norm.weight).data_ptr() if norm else None,
            norm.eps if norm else 0.0,
            checked(key_cache).data_ptr(),
            checked(value_cache).data_ptr(),
            checked(slot_mapping, torch.int64).data_ptr(),
        )
        self.library.tandem_rotate_and_store(byref(heads), table.cos.data_ptr(), table.sin.data_ptr())
        return projected[:, :num_heads]

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> NormedResidual:
        """`residual` is left as it is."""
        total, normed = checked(residual).clone(), torch.empty_like(residual)
        num_rows, width = residual.shape
        self.library.tandem_add_rms_norm(
            checked(x).data_ptr(),
            total.data_ptr(),
            checked(weight).data_ptr(),
            eps,
            num_rows,
            width,
            normed.data_ptr(),
        )
        return NormedResidual(normed, total)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Rounded once, at the end."""
        num_rows, both = gate_up.shape
        output = torch.empty(num_rows, both // 2, dtype=gate_up.dtype)
        self.library.tandem_silu_mul(checked(gate_up).data_ptr(), num_rows, both // 2, output.data_ptr())
        return output

    def move_kv(
        self, kv_cache: torch.Tensor, source_slots: torch.Tensor, target_slots: torch.Tensor, table: RotaryTable
    ) -> None:
        """All layers in one call."""
        num_layers, _, num_blocks, block_size, num_kv_heads, head_dim = kv_cache.shape
        self.library.tandem_move_kv(
            checked(kv_cache).data_ptr(),
            num_layers,
            num_blocks * block_size,
            num_kv_heads,
            head_dim,
            checked(source_slots, torch.int64).data_ptr(),
            checked(target_slots, torch.int64).data_ptr(),
            len(source_slots),
            table.cos.data_ptr(),
            table.sin.data_ptr(),
        )

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Summed in float32, rounded once; with quantised weights, x is rounded to 8 bits in the same groups."""
        return self._linear(x, weight, bias, torch.bfloat16)

    def linear_float32(self, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        """As `linear`, but for the result, which is not rounded."""
        return self._linear(x, weight, None, torch.float32)

    def _linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        output = torch.empty(x.shape[0], weight.shape[0], dtype=dtype)
        argument = weight_argument(weight, bias)
        self.library.tandem_linear(
            checked(x).data_ptr(), x.shape[0], byref(argument), output.data_ptr(), dtype == torch.float32
        )
        return output
