"""The tensors that a captured step reads. Their addresses are in the graph; only their contents change."""

from dataclasses import dataclass

import torch

from kernels.gpu.sampling_rows import SamplingRows
from tandem.model.batch import ForwardBatch
from tandem.runner.cuda.buckets import Bucket
from tandem.runner.cuda.packing import Field, Packing

MAX_BANNED = 8  # tokens of a row that the device keeps from being drawn; with more the host draws


def packing_of(bucket: Bucket) -> Packing:
    """What the host says of a step's rows. Padding has slot -1 and a context of 0."""
    rows = (bucket.num_rows,)
    return Packing(
        (
            Field("token_ids", torch.int64, rows),
            Field("positions", torch.int64, rows),
            Field("slot_mapping", torch.int64, rows),
            Field("draw_position", torch.int64, rows),
            Field("seed", torch.int64, rows),
            Field("top_p", torch.float64, rows),
            Field("min_p", torch.float64, rows),
            Field("temperature", torch.float32, rows),
            Field("top_k", torch.int32, rows),
            Field("context_lens", torch.int32, rows),
            Field("num_banned", torch.int32, rows),
            Field("banned_ids", torch.int32, (bucket.num_rows, MAX_BANNED)),
            Field("block_tables", torch.int32, (bucket.num_rows, bucket.num_blocks)),
        )
    )


@dataclass(frozen=True, slots=True)
class StaticInputs:
    """One bucket's. `buffer` is what the host's copy goes to; the others are views of it, or never change."""

    buffer: torch.Tensor  # [num_bytes] uint8
    batch: ForwardBatch
    sampling: SamplingRows


@dataclass(frozen=True, slots=True)
class StaticOutputs:
    """What steps of so many rows write; `token_ids_on_host` is filled by the copy that ends a step."""

    token_ids: torch.Tensor  # [num_rows] int64
    logits: torch.Tensor  # [num_rows, vocab_size] float32
    token_ids_on_host: torch.Tensor  # [num_rows] int64, pinned


def make_inputs(bucket: Bucket, block_size: int, vocab_size: int, device: torch.device) -> StaticInputs:
    """All padding is the host's to write."""
    packing = packing_of(bucket)
    buffer = torch.zeros(packing.num_bytes, dtype=torch.uint8, device=device)
    views = packing.views(buffer)
    batch = ForwardBatch(
        token_ids=views["token_ids"],
        positions=views["positions"],
        slot_mapping=views["slot_mapping"],
        query_start=torch.arange(bucket.num_rows + 1, device=device),
        context_lens=views["context_lens"],
        block_tables=views["block_tables"],
        last_rows=torch.arange(bucket.num_rows, device=device),
        max_query_len=1,
        max_context_len=bucket.num_blocks * block_size,
    )
    return StaticInputs(buffer, batch, _sampling_rows(views, vocab_size))


def make_outputs(num_rows: int, vocab_size: int, device: torch.device) -> StaticOutputs:
    """Zeros."""
    return StaticOutputs(
        torch.zeros(num_rows, dtype=torch.int64, device=device),
        torch.zeros(num_rows, vocab_size, dtype=torch.float32, device=device),
        host_tensor((num_rows,), torch.int64, device),
    )


def host_tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros in the host's memory, pinned where there is a GPU to copy to."""
    return torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")


def _sampling_rows(views: dict[str, torch.Tensor], vocab_size: int) -> SamplingRows:
    """Bias and penalties are never set: rows that have them are drawn by the host."""
    temperature, top_p = views["temperature"], views["top_p"]
    num_rows = len(temperature)
    none = temperature.new_zeros((num_rows, 0))
    return SamplingRows(
        temperature=temperature,
        top_k=views["top_k"],
        top_p=top_p,
        min_p=views["min_p"],
        repetition_penalty=torch.ones_like(temperature),
        presence_penalty=torch.zeros_like(top_p),
        frequency_penalty=torch.zeros_like(top_p),
        seed=views["seed"],
        position=views["draw_position"],
        biased_ids=none.to(torch.int32),
        bias=none,
        num_biased=torch.zeros_like(views["num_banned"]),
        banned_ids=views["banned_ids"],
        num_banned=views["num_banned"],
        seen_row=torch.full_like(views["seed"], -1),
        seen=views["top_k"].new_zeros((0, vocab_size)),
    )
