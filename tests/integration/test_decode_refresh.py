"""The decode stage of DHD through the real engines, memd's own store and a tiny random model."""

import asyncio
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from kernels.table import torch_kernels
from services.decode.engine import DecodeEngine
from tandem.kv.contents import block_keys
from tandem.model.batch import SequenceRows
from tandem.model.registry import get_family
from tandem.phase.stepper import Beside, StepPart
from tandem.reuse.plan import ReusePolicy
from tandem.reuse.refresh import RefreshPolicy
from tandem.runner.model_runner import ModelRunner
from tandem.types import DropReason, Span
from tests.integration.test_segment_reuse import (
    CONFIG,
    DOCUMENT,
    ENTRIES,
    FIRST,
    NUM_LAYERS,
    OTHER,
    PROMPT,
    PROMPTS,
    QUESTION,
    SEGMENTS,
    reusing,
    spec,
    text,
)
from tests.support.fake_gateway import Request
from tests.support.paged_decoder import one_thread, pack_weights
from tests.support.tiny_engines import BLOCK_SIZE, TinyEngines, TinyModel, tiny_engines
from tests.support.tiny_models import tiny_model

HEAD = 4
HEADS_ONLY = ReusePolicy(head_tokens=HEAD, min_reused_tokens=1, max_computed_share=1.0)
ONE_DOCUMENT = [*text(5, 0), *DOCUMENT, *QUESTION]
PLACED = range(5 + HEAD, 5 + (1 + len(DOCUMENT)) // BLOCK_SIZE * BLOCK_SIZE - 1)
EVERYTHING = RefreshPolicy(every_tokens=4, num_tokens=1000)
SOME = RefreshPolicy(every_tokens=4, num_tokens=8)
NUM_OUTPUT = 14

Watch = Callable[[TinyEngines], list[StepPart]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def model() -> TinyModel:
    theirs = tiny_model("llama", num_hidden_layers=NUM_LAYERS)
    return TinyModel(CONFIG, pack_weights(CONFIG, theirs.state_dict().__getitem__, torch.float32))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """All parts that decode brings to steps from now on."""

    def start(engines: TinyEngines) -> list[StepPart]:
        seen: list[StepPart] = []
        prepare = DecodeEngine.prepare

        def watched() -> Sequence[StepPart]:
            parts = prepare(engines.decode)
            seen.extend(parts)
            return parts

        monkeypatch.setattr(engines.decode, "prepare", watched)
        return seen

    return start


def kv_of(kv_cache: torch.Tensor, block_ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
    """``[num_layers, 2, num_positions, num_kv_heads, head_dim]``."""
    return torch.stack([kv_cache[:, :, block_ids[each // BLOCK_SIZE], each % BLOCK_SIZE] for each in positions], 2)


class Outcome:
    """A finished request, and the KV that its prompt had at the end."""

    def __init__(self, request: Request, parts: Sequence[StepPart], kv_cache: torch.Tensor) -> None:
        self.request = request
        self.block_ids = list(parts[-1].rows.block_ids)
        self.kv_cache = kv_cache
        self.placed = kv_of(kv_cache, self.block_ids, PLACED)

    def logits(self, model: TinyModel, continuation: Sequence[int]) -> torch.Tensor:
        """Log probabilities of a continuation, the same for all: ``[len(continuation), vocab_size]``."""
        decoder = get_family("llama").build(CONFIG, model.weights, torch_kernels())
        runner = ModelRunner(decoder, self.kv_cache, BLOCK_SIZE)
        rows = [
            SequenceRows([token], len(ONE_DOCUMENT) + index, self.block_ids) for index, token in enumerate(continuation)
        ]
        return torch.cat([runner.execute([row]) for row in rows]).log_softmax(-1)


async def outcome(model: TinyModel, watch: Watch, refresh: RefreshPolicy | None, *, exact: bool = False) -> Outcome:
    async with tiny_engines(model, policy=HEADS_ONLY, refresh=refresh) as engines:
        await engines.run(*ENTRIES)
        parts = watch(engines)
        asked = spec(1, ONE_DOCUMENT, NUM_OUTPUT)
        (request,) = await engines.run(asked if exact else reusing(asked, [Span(5, 155)], ratio=0.0))
        return Outcome(request, parts, engines.kv_cache)


async def test_a_segment_that_is_computed_anew_whole_is_full_recompute(model: TinyModel, watch: Watch) -> None:
    full = await outcome(model, watch, None, exact=True)
    stale = await outcome(model, watch, None)
    some = await outcome(model, watch, SOME)
    fresh = await outcome(model, watch, EVERYTHING)
    assert [each.request.num_refreshed for each in (full, stale, some, fresh)] == [0, 0, 3 * 8, len(PLACED)]
    assert not torch.allclose(stale.placed, full.placed, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(fresh.placed, full.placed, rtol=1e-4, atol=1e-4)
    assert fresh.request.output[:5] == stale.request.output[:5], "the first look is behind the fourth token"
    says = [each.logits(model, text(8, 77)) for each in (full, stale, some, fresh)]
    kl = [float((says[0].exp() * (says[0] - each)).sum(-1).mean()) for each in says[1:]]
    assert kl[2] < 0.5 * kl[0]
    assert kl[1] < kl[0]


@pytest.mark.parametrize("colocated", [False, True])
async def test_no_page_that_others_may_have_is_written(model: TinyModel, watch: Watch, colocated: bool) -> None:
    """Neither the entries' nor the exact prefix's, which the prompt begins with, nor a free one."""
    prompt = [*text(40, 50), *PROMPT]
    spans = [Span(45, 195), Span(198, 358)]
    async with tiny_engines(model, colocated=colocated, policy=HEADS_ONLY, refresh=SOME) as engines:
        await engines.run(*ENTRIES, spec(1, [*prompt[:40], *text(9, 51)], 4))
        known = await engines.store.find_blocks(
            1, [block_keys(SEGMENTS, [FIRST, *each], BLOCK_SIZE) for each in (DOCUMENT, OTHER)]
        )
        shared = await engines.store.find_blocks(1, [block_keys(PROMPTS, prompt[:40], BLOCK_SIZE)])
        before, parts = engines.kv_cache.clone(), watch(engines)
        (request,) = await engines.run(reusing(spec(2, prompt, NUM_OUTPUT), spans, ratio=0.0))
        after = engines.kv_cache.clone()
    assert request.num_refreshed == 3 * 8
    assert [len(run) for run in (*known, *shared)] == [9, 10, 2]
    kept = [block.block_id for run in (*known, *shared) for block in run]
    assert torch.equal(after[:, :, kept], before[:, :, kept])
    own = set(parts[-1].rows.block_ids) - set(kept)
    changed = (after.nan_to_num(1e9) != before.nan_to_num(1e9)).any(-1).any(-1).any(-1).any(0).any(0)
    assert set(changed.nonzero().flatten().tolist()) <= own
    refreshed = [part.rows for part in parts if part.beside is Beside.REFRESH]
    written = {rows.block_ids[position // BLOCK_SIZE] for rows in refreshed for position in rows.at}
    assert written
    assert written <= own


@pytest.mark.parametrize("colocated", [False, True])
async def test_exact_requests_beside_are_answered_as_ever(model: TinyModel, colocated: bool) -> None:
    outputs = []
    for refresh in (None, SOME):
        async with tiny_engines(model, colocated=colocated, policy=HEADS_ONLY, refresh=refresh) as engines:
            await engines.run(*ENTRIES)
            exact, approximate = await engines.run(
                spec(1, PROMPT[3:], NUM_OUTPUT), reusing(spec(2, PROMPT, NUM_OUTPUT), ratio=0.0)
            )
            (alone,) = await engines.run(spec(3, ONE_DOCUMENT, NUM_OUTPUT))
        assert (exact.num_refreshed, alone.num_refreshed) == (0, 0)
        assert (approximate.num_refreshed > 0) is (refresh is not None)
        outputs.append((exact.output, alone.output, alone.logprobs))
    assert outputs[0] == outputs[1]


async def test_a_sequence_that_is_sent_again_goes_on_with_what_its_next_prefill_leaves(
    model: TinyModel, watch: Watch
) -> None:
    async with tiny_engines(model, policy=HEADS_ONLY, refresh=SOME) as engines:
        await engines.run(*ENTRIES)
        parts = watch(engines)
        engines.gateway.submit(reusing(spec(1, ONE_DOCUMENT, 60), [Span(5, 155)], ratio=0.0))
        async with asyncio.timeout(20):
            while not engines.gateway.requests[1].num_refreshed:
                await asyncio.sleep(0)
        await engines.store.release_sequences([1])  # as if decode had lost it
        await engines.gateway.until_done(len(ENTRIES) + 1)
    request = engines.gateway.done[-1]
    assert request.drops == [DropReason.LEASE_LOST]
    assert len(request.prefilled) == 2
    assert request.prefilled[1].approximate == request.prefilled[0].approximate == (Span(PLACED[0], PLACED[-1] + 1),)
    assert len(request.output) == 60
    last = [set(part.rows.at) for part in parts if part.beside is Beside.REFRESH]
    assert sum(map(len, last)) == request.num_refreshed > len(set().union(*last)), "both attempts refreshed"
