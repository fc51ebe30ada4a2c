"""Kernels one by one: against float64, against torch's own attention, against their floors."""

from collections.abc import Callable, Sequence

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
        self.length, self.batch = lengths[0], len(lengths)
        self._config, self._num_rows = config, num_rows
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
            num_kv_heads=self._config.num_kv_heads,
        )
        return kernels.paged_attention(
            self._query, self._keys, self._values, plan, scale=float(self._config.head_dim**-0.5)
        )

    def in_one_piece(self) -> list[torch.Tensor]:
        """Query, keys and values as torch's attention takes them: ``[batch, heads, tokens, head_dim]``."""
        heads = [self._query.view(self.batch, self._num_rows, *self._query.shape[1:])]
        for cache in (self._keys, self._values):
            gathered = cache[torch.tensor(self._order, device=cache.device)]
            heads.append(gathered.flatten(1, 2)[:, : self.length])
        return [each.transpose(1, 2).contiguous() for each in heads]

    def exact(self) -> torch.Tensor:
        """In float64, of the first sequence."""
        query, keys, values = (each[:1].double() for each in self.in_one_piece())
        group = self._config.num_heads // self._config.num_kv_heads
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = query @ keys.transpose(2, 3) * self._config.head_dim**-0.5
        first = self.length - self._num_rows
        positions = torch.arange(first, self.length, device=query.device)[:, None]
        hidden = torch.arange(self.length, device=query.device) > positions
        attended: torch.Tensor = (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values)[0]
        return attended.transpose(0, 1)


NAMES = ("llama-3-8b", "qwen2.5-7b")
REASON_CHARACTERS = 300
ATTENTION_S, DRAWS_S, FLEX_S = 4.0, 2.0, 7.0  # what each may well take, kernels compiled
SPECS = {
    "greedy": SamplingSpec(temperature=0.0),
    "top_p": SamplingSpec(temperature=0.8, top_p=0.9),
    "top_k_top_p_min_p": SamplingSpec(temperature=0.8, top_k=50, top_p=0.9, min_p=0.01),
    "temperature": SamplingSpec(temperature=0.8),
}


def kernels(bench: Bench) -> None:
    """Attention in the shape of the first model, draws, attention in that of the second; then torch's compiled one."""
    cases = [f"{name}_{what}" for name in NAMES for what in ("rows", "chunks")]
    bench.expect([*cases, *(f"draw_{name}" for name in SPECS)])
    rates, ours = bench.rates(), _kernels(bench)
    _attention(bench, NAMES[0], ours, rates)
    for name, spec in SPECS.items():
        if bench.has_time(DRAWS_S):
            bench.record(f"draw_{name}", _draws(bench, ours, spec))
    _attention(bench, NAMES[1], ours, rates)
    if not bench.is_dry:  # on a processor it takes half a minute and says nothing
        bench.expect(f"{case}_flex" for case in cases)
        for name in NAMES:
            _flex(bench, f"{name}_rows", heads_of_rows(bench, name), ours)
            _flex(bench, f"{name}_chunks", heads_of_chunks(bench, name), ours)


def heads_of_rows(bench: Bench, name: str) -> PagedHeads:
    """Decode of 64 x 1,024."""
    return PagedHeads(bench, model_named(bench, name), 1, [bench.pick(1024, 32)] * bench.pick(64, 4))


def heads_of_chunks(bench: Bench, name: str) -> PagedHeads:
    """Whole prompts of 8 x 2,048."""
    length = bench.pick(2048, 32)
    return PagedHeads(bench, model_named(bench, name), length, [length] * bench.pick(8, 2))


def flex_attention_of(heads: PagedHeads) -> Callable[[], object]:
    """torch's FlexAttention of the same step, compiled by its first call."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    query, keys, values = heads.in_one_piece()
    num_rows, num_keys = query.shape[2], keys.shape[2]
    mask = None
    if num_rows > 1:
        mask = create_block_mask(_is_past, None, None, num_rows, num_keys, device=query.device)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(query, keys, values, block_mask=mask, enable_gqa=True)


def draw_all(bench: Bench) -> None:
    """Each kind once."""
    for spec in SPECS.values():
        _draws(bench, _kernels(bench), spec)


def _is_past(batch: torch.Tensor, head: torch.Tensor, row: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return row >= key


def _attention(bench: Bench, name: str, kernels: Kernels, rates: Rates) -> None:
    """Decode of 64 x 1,024, chunks of 8 x 2,048."""
    config = model_named(bench, name)
    if bench.has_time(ATTENTION_S):
        heads = heads_of_rows(bench, name)
        found = _against_torch(bench, heads, kernels, is_causal=False)
        floor_s = attention_bytes(config, heads.batch, heads.length) / rates.copy_gb_per_s / 1e9
        bench.record(f"{name}_rows", {**found, "over_floor": found["ours_ms"] / floor_s / 1e3})
    if bench.has_time(ATTENTION_S):
        heads = heads_of_chunks(bench, name)
        found = _against_torch(bench, heads, kernels, is_causal=True)
        pairs = heads.batch * heads.length * (heads.length + 1) // 2
        rate = 4 * config.num_heads * config.head_dim * pairs / found["ours_ms"] / 1e9
        bench.record(f"{name}_chunks", {**found, "of_matmul_rate": rate / rates.matmul_tflop_per_s})


def _flex(bench: Bench, case: str, heads: PagedHeads, kernels: Kernels) -> None:
    """Its compiler is not ours: where that fails the section goes on without."""
    if not bench.has_time(FLEX_S):
        return
    try:
        theirs_s = bench.median_s(flex_attention_of(heads))
    except (RuntimeError, TypeError, ValueError) as error:
        bench.leave_out(f"{case}_flex", str(error)[:REASON_CHARACTERS])
        return
    ours_s = bench.median_s(lambda: heads.attend(kernels))
    bench.record(f"{case}_flex", {"ms": theirs_s * 1e3, "ours_over_flex": ours_s / theirs_s})


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
