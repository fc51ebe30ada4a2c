"""Kernels one by one: against float64, against torch's own attention, against their floors."""

from collections.abc import Sequence

import torch
from torch.nn import functional

from bench.gpu.bench import Bench
from bench.gpu.floors import Rates, attention_bytes
from bench.gpu.subject import BLOCK_SIZE, model_named
from kernels.choice import choose_kernels
from kernels.table import Kernels, torch_kernels
from tandem.kv.layout import num_blocks_for
from tandem.model.batch import SequenceRows, prepare_batch
from tandem.model.config import ModelConfig
from tandem.types import SamplingSpec


class PagedHeads:
    """One layer's step of equal sequences, on random numbers: keys in blocks, and the same keys in one piece."""

    def __init__(self, bench: Bench, config: ModelConfig, num_rows: int, lengths: Sequence[int]) -> None:
        """`num_rows`: the last ones of each sequence are queries. All `lengths` are the same."""
        self._bench, self._length, self._num_rows = bench, lengths[0], num_rows
        self.config, self._batch = config, len(lengths)
        blocks = num_blocks_for(lengths[0], BLOCK_SIZE)
        order = torch.randperm(blocks * len(lengths)).view(len(lengths), blocks).tolist()
        rows = [SequenceRows([0] * num_rows, lengths[0] - num_rows, block_ids) for block_ids in order]
        self._step = prepare_batch(rows, BLOCK_SIZE, bench.device)
        shape = (blocks * len(lengths), BLOCK_SIZE, config.num_kv_heads, config.head_dim)
        self._keys, self._values = (torch.randn(shape, device=bench.device).bfloat16() for _ in range(2))
        query_shape = (num_rows * len(lengths), config.num_heads, config.head_dim)
        self._query = torch.randn(query_shape, device=bench.device).bfloat16()
        self._order = order

    def attend(self, kernels: Kernels) -> torch.Tensor:
        """Paged, plan included: ``[num_rows, num_heads, head_dim]``."""
        plan = kernels.plan_attention(
            self._step.block_tables,
            self._step.query_start,
            self._step.context_lens,
            block_size=BLOCK_SIZE,
            num_kv_heads=self.config.num_kv_heads,
        )
        return kernels.paged_attention(
            self._query, self._keys, self._values, plan, scale=float(self.config.head_dim**-0.5)
        )

    def in_one_piece(self) -> list[torch.Tensor]:
        """Query, keys and values as torch's attention takes them: ``[batch, heads, tokens, head_dim]``."""
        heads = [self._query.view(self._batch, self._num_rows, *self._query.shape[1:])]
        for cache in (self._keys, self._values):
            gathered = cache[torch.tensor(self._order, device=cache.device)]
            heads.append(gathered.flatten(1, 2)[:, : self._length])
        return [each.transpose(1, 2).contiguous() for each in heads]

    def exact(self) -> torch.Tensor:
        """In float64, of the first sequence."""
        query, keys, values = (each[:1].double() for each in self.in_one_piece())
        group = self.config.num_heads // self.config.num_kv_heads
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = query @ keys.transpose(2, 3) * self.config.head_dim**-0.5
        first = self._length - self._num_rows
        positions = torch.arange(first, self._length, device=query.device)[:, None]
        hidden = torch.arange(self._length, device=query.device) > positions
        attended: torch.Tensor = (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values)[0]
        return attended.transpose(0, 1)


NAMES = ("llama-3-8b", "qwen2.5-7b")
ATTENTION_S, DRAWS_S = 5.0, 3.0  # what each may well take, kernels compiled
SPECS = {
    "greedy": SamplingSpec(temperature=0.0),
    "top_p": SamplingSpec(temperature=0.8, top_p=0.9),
    "top_k_top_p_min_p": SamplingSpec(temperature=0.8, top_k=50, top_p=0.9, min_p=0.01),
    "temperature": SamplingSpec(temperature=0.8),
}


def kernels(bench: Bench) -> None:
    """Attention in the shape of the first model, draws, attention in that of the second."""
    bench.expect(
        [f"{name}_{what}" for name in NAMES for what in ("rows", "chunks")] + [f"draw_{name}" for name in SPECS]
    )
    rates, ours = bench.rates(), _kernels(bench)
    _attention(bench, NAMES[0], ours, rates)
    for name, spec in SPECS.items():
        if bench.has_time(DRAWS_S):
            bench.record(f"draw_{name}", _draws(bench, ours, spec))
    _attention(bench, NAMES[1], ours, rates)


def _attention(bench: Bench, name: str, kernels: Kernels, rates: Rates) -> None:
    """Decode of 64 x 1,024, chunks of 8 x 2,048."""
    config = model_named(bench, name)
    if bench.has_time(ATTENTION_S):
        batch, context = bench.pick(64, 4), bench.pick(1024, 32)
        found = _against_torch(bench, PagedHeads(bench, config, 1, [context] * batch), kernels, is_causal=False)
        floor_s = attention_bytes(config, batch, context) / rates.copy_gb_per_s / 1e9
        bench.record(f"{name}_rows", {**found, "over_floor": found["ours_ms"] / floor_s / 1e3})
    if bench.has_time(ATTENTION_S):
        batch, length = bench.pick(8, 2), bench.pick(2048, 32)
        found = _against_torch(bench, PagedHeads(bench, config, length, [length] * batch), kernels, is_causal=True)
        flop = 4 * config.num_heads * config.head_dim * batch * length * (length + 1) // 2
        rate = flop / found["ours_ms"] / 1e9
        bench.record(f"{name}_chunks", {**found, "of_matmul_rate": rate / rates.matmul_tflop_per_s})


def _draws(bench: Bench, kernels: Kernels, spec: SamplingSpec) -> dict[str, float]:
    """Of 64 rows over a vocabulary of 128,256."""
    num_rows, vocab_size = bench.pick(64, 4), bench.pick(128_256, 300)
    logits = torch.randn(num_rows, vocab_size, device=bench.device) * 3
    samplings, positions = [spec] * num_rows, list(range(num_rows))
    seconds = bench.median_s(lambda: kernels.draw_tokens(logits, samplings, positions))
    ours = kernels.draw_tokens(logits, samplings, positions)
    theirs = torch_kernels().draw_tokens(logits.cpu(), samplings, positions)
    agreeing = sum(our == their for our, their in zip(ours, theirs, strict=True))
    return {"ms": seconds * 1e3, "agreeing": agreeing, "rows": num_rows}


def _kernels(bench: Bench) -> Kernels:
    return torch_kernels() if bench.is_dry else choose_kernels(torch.bfloat16, bench.device).kernels


def _against_torch(bench: Bench, heads: PagedHeads, kernels: Kernels, *, is_causal: bool) -> dict[str, float]:
    ours = heads.attend(kernels)
    exact = heads.exact()
    error = (ours[: len(exact)].double() - exact).norm() / exact.norm()
    query, keys, values = heads.in_one_piece()

    def theirs() -> torch.Tensor:
        return functional.scaled_dot_product_attention(query, keys, values, is_causal=is_causal, enable_gqa=True)

    ours_s, theirs_s = bench.median_s(lambda: heads.attend(kernels)), bench.median_s(theirs)
    return {
        "ours_ms": ours_s * 1e3,
        "sdpa_ms": theirs_s * 1e3,
        "over_sdpa": ours_s / theirs_s,
        "relative_error": float(error),
    }
