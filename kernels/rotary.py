"""Rotary position embedding (Su et al. 2021, equation 34), halves rotated as Hugging Face's checkpoints expect."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """A step's angles, each ``[num_tokens, 1, head_dim]`` float32; `sin` is negative in its first half."""

    cos: torch.Tensor
    sin: torch.Tensor


def inverse_frequencies(head_dim: int, theta: float) -> torch.Tensor:
    """Radians a position for each pair of dimensions: ``[head_dim / 2]`` float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return 1.0 / theta**exponents


def scale_llama3(
    frequencies: torch.Tensor,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_positions: int,
) -> torch.Tensor:
    """Llama 3.1's scaling: long wavelengths slowed by `factor`, short ones kept, a ramp between the two.

    `frequencies` is as of `inverse_frequencies`, and so is the result.
    """
    turns = original_max_positions * frequencies / (2 * math.pi)  # full turns within the original context
    kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / factor)


def rotary_table(frequencies: torch.Tensor, positions: torch.Tensor) -> RotaryTable:
    """Angles of `positions` ``[num_tokens]``, computed in float32 with `frequencies` ``[head_dim / 2]``."""
    angles = positions.float()[:, None] * frequencies  # [num_tokens, head_dim / 2]
    cos, sin = angles.cos(), angles.sin()
    return RotaryTable(torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None])


def apply_rotary(x: torch.Tensor, table: RotaryTable) -> torch.Tensor:
    """Turns the heads of ``[num_tokens, num_heads, head_dim]`` by their row's angles, in float32, back to x's dtype."""
    swapped = x.roll(x.shape[-1] // 2, -1)  # the halves change places
    return torch.addcmul(x * table.cos, swapped, table.sin).to(x.dtype)
