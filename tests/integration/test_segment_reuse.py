"""Segment reuse through the real engines, memd's own store and a tiny random model: what it changes, and what not."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

import pytest
import torch

from kernels.table import torch_kernels
from tandem.kv.contents import namespace, segment_namespace
from tandem.model.batch import SequenceRows
from tandem.model.config import ModelConfig
from tandem.model.layers import rotary_frequencies
from tandem.model.registry import get_family
from tandem.reuse.plan import Placement, ReusePolicy, Score, choose, plan_reuse
from tandem.runner.model_runner import ModelRunner
from tandem.runner.probe import Probe
from tandem.runner.segment_kv import SegmentKv
from tandem.runner.selective import chosen_rows
from tandem.types import ContentKind, SamplingSpec, SegmentReuse, SequenceSpec, Span, StopSpec
from tests.support.fake_gateway import Request
from tests.support.paged_decoder import one_thread, pack_weights
from tests.support.tiny_engines import BLOCK_SIZE, TinyModel, tiny_engines
from tests.support.tiny_models import NUM_TOKENS, tiny_model

NUM_LAYERS, FIRST = 3, 0
CONFIG = ModelConfig("llama", 64, 96, NUM_LAYERS, 4, 2, 16, NUM_TOKENS, 512, 1e-6, 1e4)
PROMPTS = namespace(b"tenant")
SEGMENTS = segment_namespace(PROMPTS)
RATIO = 0.15
NUM_OUTPUT = 40  # more than two blocks


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def model() -> TinyModel:
    theirs = tiny_model("llama", num_hidden_layers=NUM_LAYERS)
    return TinyModel(CONFIG, pack_weights(CONFIG, theirs.state_dict().__getitem__, torch.float32))


def text(count: int, seed: int) -> list[int]:
    random = Random(seed)
    return [random.randrange(3, NUM_TOKENS) for _ in range(count)]


DOCUMENT, OTHER, QUESTION = text(150, 1), text(160, 3), text(20, 4)
PROMPT = [*text(5, 0), *DOCUMENT, *text(3, 2), *OTHER, *QUESTION]
SPANS = (Span(5, 155), Span(158, 318))


def spec(lease_id: int, prompt: Sequence[int], max_tokens: int = NUM_OUTPUT) -> SequenceSpec:
    sampling = SamplingSpec(temperature=0.0, logprobs=True, num_top_logprobs=8)
    return SequenceSpec(
        lease_id, f"r{lease_id}", tuple(prompt), len(prompt), sampling, StopSpec(max_tokens), 0, lease_id, PROMPTS
    )


def entry(lease_id: int, document: Sequence[int]) -> SequenceSpec:
    built = spec(lease_id, [FIRST, *document], max_tokens=1)
    return replace(built, cache_namespace=SEGMENTS, content_kind=ContentKind.SEGMENT)


ENTRIES = (entry(901, DOCUMENT), entry(902, OTHER))


def reusing(of: SequenceSpec, spans: Sequence[Span] = SPANS, ratio: float = RATIO) -> SequenceSpec:
    return replace(of, reuse=SegmentReuse(ratio, tuple(spans), SEGMENTS, FIRST))


def top(request: Request, index: int = 0) -> dict[int, float]:
    """The likeliest tokens at one place of the answer."""
    logprobs = request.logprobs[index]
    assert logprobs is not None
    return {each.token_id: each.logprob for each in logprobs.top}


async def cold(model: TinyModel, prompt: Sequence[int]) -> Request:
    async with tiny_engines(model) as engines:
        (request,) = await engines.run(spec(1, prompt))
    return request


async def test_without_entries_nothing_is_different(model: TinyModel) -> None:
    async with tiny_engines(model) as engines:
        (request,) = await engines.run(reusing(spec(1, PROMPT)))
    expected = await cold(model, PROMPT)
    assert (request.output, request.logprobs) == (expected.output, expected.logprobs)


async def test_at_ratio_one_nothing_is_different(model: TinyModel) -> None:
    async with tiny_engines(model) as engines:
        await engines.run(*ENTRIES)
        (request,) = await engines.run(reusing(spec(1, PROMPT), ratio=1.0))
    expected = await cold(model, PROMPT)
    assert (request.output, request.logprobs) == (expected.output, expected.logprobs)


async def test_choosing_everything_is_full_recompute(model: TinyModel) -> None:
    everything = ReusePolicy(min_reused_tokens=1, max_computed_share=1.0)
    async with tiny_engines(model, policy=everything) as engines:
        await engines.run(*ENTRIES)
        (request,) = await engines.run(reusing(spec(1, PROMPT), ratio=0.999))
    assert all(segment.found and not segment.num_approximate for segment in request.prefilled[0].segments)
    expected = await cold(model, PROMPT)
    assert request.output == expected.output
    for index in range(NUM_OUTPUT):
        assert top(request, index) == pytest.approx(top(expected, index), abs=1e-3)


def offline(model: TinyModel, prompt: Sequence[int], placements: Sequence[Placement]) -> torch.Tensor:
    """What the parts say, put together by hand: log probabilities of the first token."""
    kernels, num_blocks = torch_kernels(), 64
    kv_cache = torch.full((NUM_LAYERS, 2, num_blocks, BLOCK_SIZE, CONFIG.num_kv_heads, CONFIG.head_dim), float("nan"))
    runner = ModelRunner(get_family("llama").build(CONFIG, model.weights, kernels), kv_cache, BLOCK_SIZE)
    segments = SegmentKv(kernels, kv_cache, rotary_frequencies(CONFIG))
    plan = plan_reuse(len(prompt), 0, placements, ReusePolicy(ratio=RATIO))
    assert plan is not None
    own, past = list(range(32)), 32
    for placement in placements:
        document = prompt[placement.start : placement.start + placement.num_tokens]
        blocks = range(past, past + 12)
        past += 12
        runner.execute([SequenceRows([FIRST, *document], 0, blocks)])
        segments.place(placement, blocks, own)
    scores = Probe(CONFIG, model.weights, kernels, kv_cache).scores(prompt, own, plan, Score.ATTENTION)
    return runner.execute([chosen_rows(prompt, choose(plan, scores), own)])[0].log_softmax(-1)


@pytest.mark.parametrize("colocated", [False, True])
@pytest.mark.parametrize(
    ("prompt", "starts"),
    [
        pytest.param(PROMPT, (5, 158), id="unaligned"),
        pytest.param([*DOCUMENT, *OTHER, *QUESTION], (0, 150), id="from the first token"),
        pytest.param([*text(16, 7), *OTHER, *DOCUMENT], (176, 16), id="to the last token"),
    ],
)
async def test_engines_do_what_the_parts_do_by_hand(
    model: TinyModel, prompt: list[int], starts: tuple[int, int], colocated: bool
) -> None:
    """In chunks, with others in the same steps."""
    spans = [Span(start, start + len(document)) for start, document in zip(starts, (DOCUMENT, OTHER), strict=True)]
    async with tiny_engines(model, colocated=colocated) as engines:
        await engines.run(*ENTRIES)
        request, *_ = await engines.run(
            reusing(spec(1, prompt), sorted(spans, key=lambda span: span.start)), spec(2, text(70, 9))
        )
    whole = [(1 + len(document)) // BLOCK_SIZE * BLOCK_SIZE - 1 for document in (DOCUMENT, OTHER)]
    placements = sorted(
        (Placement(b"", start, 0, count) for start, count in zip(starts, whole, strict=True)),
        key=lambda placement: placement.start,
    )
    expected = offline(model, prompt, placements)
    assert sum(segment.num_approximate for segment in request.prefilled[0].segments) > 200
    for token_id, logprob in top(request).items():
        assert logprob == pytest.approx(float(expected[token_id]), abs=1e-3)


async def test_prompts_that_share_entries_do_not_change_each_other(model: TinyModel) -> None:
    prompts = [[*text(number, number), *PROMPT[5:], number] for number in range(1, 5)]
    specs = [
        reusing(spec(number, prompt), [Span(span.start - 5 + number, span.end - 5 + number) for span in SPANS])
        for number, prompt in enumerate(prompts, start=1)
    ]
    async with tiny_engines(model) as engines:
        await engines.run(*ENTRIES)
        together = await engines.run(*specs)
        assert (await engines.store.statistics()).num_sequences == 0
    for each, request in zip(specs, together, strict=True):
        async with tiny_engines(model) as engines:
            await engines.run(*ENTRIES)
            (alone,) = await engines.run(each)
        assert request.prefilled[0].segments == alone.prefilled[0].segments
        assert request.output == alone.output
        assert top(request) == pytest.approx(top(alone), abs=1e-3)


@pytest.mark.parametrize("colocated", [False, True])
async def test_nothing_approximate_reaches_an_exact_request(model: TinyModel, colocated: bool) -> None:
    """Neither of the prompt nor of the answer, which the second turn of a conversation begins with."""
    async with tiny_engines(model, colocated=colocated) as engines:
        await engines.run(*ENTRIES)
        (approximate,) = await engines.run(reusing(spec(1, PROMPT)))
        assert approximate.prefilled[0].num_publishable_tokens == 5
        second_turn = [*PROMPT, *approximate.output, *text(4, 8)]
        (first,), (second,) = await engines.run(spec(2, PROMPT)), await engines.run(spec(3, second_turn))
    assert first.num_cached == [0]
    expected = await cold(model, PROMPT)
    assert (first.output, first.logprobs) == (expected.output, expected.logprobs)
    assert approximate.logprobs != expected.logprobs  # or there were nothing to see
    assert second.num_cached[0] <= len(PROMPT)


async def test_an_entry_depends_on_its_own_tokens_only(model: TinyModel) -> None:
    """Whoever has had the document before, behind whatever text."""
    outputs = []
    for poison in ([], [*text(60, 99), *DOCUMENT, *text(9, 98)]):
        async with tiny_engines(model) as engines:
            if poison:
                await engines.run(spec(1, poison))
            await engines.run(*ENTRIES)
            if poison:
                await engines.run(reusing(spec(2, [*poison, *OTHER]), [Span(60, 210), Span(219, 379)]))
            (request,) = await engines.run(reusing(spec(3, PROMPT)))
        outputs.append((request.output, request.logprobs))
    assert outputs[0] == outputs[1]
