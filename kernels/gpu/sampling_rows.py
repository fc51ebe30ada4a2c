"""What the sampling kernels are told of each row, in tensors of fixed shapes, as a captured step needs them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tandem.types import SamplingSpec

IN_PROMPT = 1 << 30  # in `SamplingRows.seen`, beside the count of a token in the output


@dataclass(frozen=True, slots=True)
class RowRequest:
    """One row as the host knows it. `seen_row` is the sequence's in `SamplingRows.seen`; -1: it has no penalties."""

    sampling: SamplingSpec
    position: int  # of the new token: the number of tokens before it
    banned_token_ids: Sequence[int] = ()
    seen_row: int = -1


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """Row i of a step is row i of each tensor but `seen`, whose rows belong to sequences for as long as they run.

    Lists are padded: their first ``num_biased[i]`` and ``num_banned[i]`` entries count.
    """

    temperature: torch.Tensor  # [num_rows] float32
    top_k: torch.Tensor  # [num_rows] int32, 0: off
    top_p: torch.Tensor  # [num_rows] float64
    min_p: torch.Tensor  # [num_rows] float64
    repetition_penalty: torch.Tensor  # [num_rows] float32
    presence_penalty: torch.Tensor  # [num_rows] float64
    frequency_penalty: torch.Tensor  # [num_rows] float64
    seed: torch.Tensor  # [num_rows] int64: the low 64 bits
    position: torch.Tensor  # [num_rows] int64
    biased_ids: torch.Tensor  # [num_rows, max_biased] int32
    bias: torch.Tensor  # [num_rows, max_biased] float32
    num_biased: torch.Tensor  # [num_rows] int32
    banned_ids: torch.Tensor  # [num_rows, max_banned] int32
    num_banned: torch.Tensor  # [num_rows] int32
    seen_row: torch.Tensor  # [num_rows] int64
    seen: torch.Tensor  # [num_seen_rows, vocab_size] int32, kept up to date by the kernels


def pack_rows(requests: Sequence[RowRequest], seen: torch.Tensor, *, max_biased: int, max_banned: int) -> SamplingRows:
    """The rows on seen's device. ValueError: a row has more biased or banned tokens than its list has room for."""
    specs = [request.sampling for request in requests]
    bias = [spec.logit_bias for spec in specs]
    banned = [request.banned_token_ids for request in requests]

    def column(values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=seen.device)

    def padded(lists: Sequence[Sequence[float]], width: int, dtype: torch.dtype) -> torch.Tensor:
        return column(_padded(lists, width), dtype).view(len(lists), width)

    return SamplingRows(
        temperature=column([spec.temperature for spec in specs], torch.float32),
        top_k=column([spec.top_k for spec in specs], torch.int32),
        top_p=column([spec.top_p for spec in specs], torch.float64),
        min_p=column([spec.min_p for spec in specs], torch.float64),
        repetition_penalty=column([spec.repetition_penalty for spec in specs], torch.float32),
        presence_penalty=column([spec.presence_penalty for spec in specs], torch.float64),
        frequency_penalty=column([spec.frequency_penalty for spec in specs], torch.float64),
        seed=column([_signed(spec.seed) for spec in specs], torch.int64),
        position=column([request.position for request in requests], torch.int64),
        biased_ids=padded([list(tokens) for tokens in bias], max_biased, torch.int32),
        bias=padded([list(tokens.values()) for tokens in bias], max_biased, torch.float32),
        num_biased=column([len(tokens) for tokens in bias], torch.int32),
        banned_ids=padded(banned, max_banned, torch.int32),
        num_banned=column([len(tokens) for tokens in banned], torch.int32),
        seen_row=column([request.seen_row for request in requests], torch.int64),
        seen=seen,
    )


def mark_seen(seen_row: torch.Tensor, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]) -> None:
    """Makes `seen_row`, ``[vocab_size]``, that of a sequence with these tokens."""
    device = seen_row.device
    output = torch.tensor(output_token_ids, dtype=torch.int64, device=device)
    seen_row.copy_(torch.bincount(output, minlength=len(seen_row)))
    seen_row[torch.tensor(prompt_token_ids, dtype=torch.int64, device=device)] += IN_PROMPT


def _padded(lists: Sequence[Sequence[float]], width: int) -> list[float]:
    """One after another, each with zeros up to `width`."""
    longest = max(map(len, lists), default=0)
    if longest > width:
        raise ValueError(f"a row lists {longest} tokens, and there is room for {width}")
    return [value for values in lists for value in (*values, *[0] * (width - len(values)))]


def _signed(seed: int) -> int:
    """The low 64 bits of `seed`, as int64 holds them."""
    return (seed + 2**63) % 2**64 - 2**63
