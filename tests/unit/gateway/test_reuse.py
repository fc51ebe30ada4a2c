"""What clients let be reused: what of it is refused, and where their segments stand."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.chat import ChatMessage
from services.gateway.frontend import INLINE_CHARS, Call
from services.gateway.reuse import (
    DEFAULT_RATIO,
    MAX_SEGMENTS,
    ReuseFields,
    check_reuse,
    inherited,
    spans_of_texts,
)
from services.gateway.validation import SamplingFields
from tandem.config.settings import GatewayConfig
from tandem.errors import InvalidRequestError
from tandem.kv.contents import segment_namespace
from tandem.model.metadata import read_metadata
from tandem.types import SegmentOutcome, Span
from tests.support.gateway_fakes import Rig
from tests.support.gateway_world import EOS, FakeStore, byte_model

DOCUMENT, OTHER = "a document " * 10, "and another " * 8
TEMPLATE = "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}"


def refused(fields: ReuseFields, least: float = 0.0, prompt_field: str = "text") -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        check_reuse(fields, least, prompt_field)
    return caught.value


@pytest.mark.parametrize("ratio", [-0.1, 1.01, math.nan, math.inf])
def test_a_ratio_is_a_share(ratio):
    assert refused(ReuseFields(ratio)).field == "reuse.ratio"


def test_a_ratio_below_the_least_is_refused_with_it():
    assert "0.5" in refused(ReuseFields(0.3), 0.5).problem
    assert "0.5" in refused(ReuseFields(), 0.5).problem
    check_reuse(ReuseFields(0.699999988079071), 0.7, "text")  # 0.7 as a float32
    check_reuse(ReuseFields(1.0), 1.0, "text")


@pytest.mark.parametrize(
    ("segments", "prompt_field", "field"),
    [
        ((None,), "text", "reuse.segments[0]"),
        (("a", Span(0, 1)), "text", "reuse.segments[1].tokens"),
        ((Span(0, 1),), "messages", "reuse.segments[0].tokens"),
        (("a",), "token_ids", "reuse.segments[0].text"),
        (("a", ""), "messages", "reuse.segments[1].text"),
        (("a",) * (MAX_SEGMENTS + 1), "text", "reuse.segments"),
    ],
)
def test_segments_are_of_the_prompts_kind(segments, prompt_field, field):
    assert refused(ReuseFields(segments=segments), prompt_field=prompt_field).field == field


PLACES = [(0, 0), (0, 3), (3, 5), (5, 6), (5, 6), (6, 6), (6, 9), (9, 10), (0, 0)]
PROMPT = "abcdeüghij"


@pytest.mark.parametrize(
    ("texts", "spans"),
    [
        (["abc"], [Span(1, 2)]),
        (["abcd"], [Span(1, 2)]),
        (["bcde"], [Span(2, 3)]),
        (["ü"], [Span(3, 5)]),
        (["abcde", "ügh", "j"], [Span(1, 3), Span(3, 5), Span(7, 8)]),
        ([PROMPT], [Span(1, 8)]),
    ],
)
def test_a_text_is_the_tokens_wholly_inside(texts, spans):
    assert spans_of_texts(texts, PROMPT, PLACES) == tuple(spans)


@pytest.mark.parametrize(("texts", "number"), [(["bc"], 0), (["x"], 0), (["de", "abc"], 1), (["abc", "abc"], 1)])
def test_a_text_that_is_not_there_or_too_short_is_refused(texts, number):
    with pytest.raises(InvalidRequestError) as caught:
        spans_of_texts(texts, PROMPT, PLACES)
    assert caught.value.field == f"reuse.segments[{number}].text"


@given(st.lists(st.text("ab é世😀 \n", min_size=1, max_size=12), min_size=1, max_size=4), st.text("xy ", max_size=5))
def test_spans_of_a_real_vocabulary(real_tokenizer, texts, between):
    prompt = between.join(["", *texts, ""])
    placed = real_tokenizer.encode_placed(prompt)
    assert placed.token_ids == real_tokenizer.encode(prompt)
    try:
        spans = spans_of_texts(texts, prompt, placed.places)
    except InvalidRequestError:
        return
    assert all(before.end <= after.start for before, after in pairwise(spans))
    for span, text in zip(spans, texts, strict=True):
        spelled = b"".join(map(real_tokenizer.token_bytes, placed.token_ids[span.start : span.end]))
        assert spelled in text.encode()


@pytest.fixture(scope="module")
def real_tokenizer(default_model_path):
    return read_metadata(str(default_model_path), default_model_path.parent).tokenizer


@pytest.fixture
async def rig() -> Rig:
    return await Rig(model=byte_model(8000, TEMPLATE), store=FakeStore(num_blocks=600)).up()


async def ids_request(rig: Rig, token_ids, reuse: ReuseFields, **call: Any):
    return await rig.gateway.frontend.generate_ids(
        Call(sampling=SamplingFields(max_tokens=4), reuse=reuse, **call), token_ids
    )


def spans_sent(rig: Rig) -> tuple[Span, ...]:
    reuse = rig.prefill.submitted[-1].reuse
    return () if reuse is None else reuse.spans


async def test_what_prefill_is_told(rig):
    text = f"Read: {DOCUMENT}. Then: {OTHER}. What?"
    request = await rig.request(text, reuse=ReuseFields(None, (DOCUMENT, OTHER)), max_tokens=4)
    (spec,) = rig.prefill.submitted
    assert spec.reuse is not None
    assert spec.reuse.ratio == DEFAULT_RATIO
    assert [text[span.start : span.end] for span in spec.reuse.spans] == [DOCUMENT, OTHER]
    assert spec.reuse.namespace == segment_namespace(request.arrival.cache_namespace)
    assert spec.reuse.first_token_id == 0  # the model names none
    assert spec.num_publishable_tokens is None


async def test_the_models_first_token_stands_before_entries():
    model = byte_model(8000)
    model = replace(model, config=replace(model.config, bos_token_id=7))
    rig = await Rig(model=model).up()
    await rig.request(DOCUMENT, reuse=ReuseFields(0.0, (DOCUMENT,)), max_tokens=4)
    assert rig.prefill.submitted[0].reuse.first_token_id == 7


async def test_a_conversations_segments_stand_in_what_is_rendered(rig):
    call = Call(sampling=SamplingFields(max_tokens=4), reuse=ReuseFields(0.2, (DOCUMENT.strip(),)))
    await rig.gateway.frontend.chat(call, [ChatMessage("user", "hi"), ChatMessage("user", DOCUMENT)])
    assert spans_sent(rig) == (Span(5, 5 + len(DOCUMENT.strip())),)


async def test_a_turns_end_separates_and_else_content(rig):
    await ids_request(rig, [*b"x" * 100, EOS, *b"y" * 30, EOS, *b"z" * 80], ReuseFields())
    assert spans_sent(rig) == (Span(0, 101), Span(132, 212)), "what is short is none"
    await ids_request(rig, list(range(250)) * 12, ReuseFields())
    spans = spans_sent(rig)
    assert len(spans) > 1
    assert spans[0].start == 0


async def test_long_prompts_are_looked_at_elsewhere(rig):
    long = "word " * (INLINE_CHARS // 5 + 1)
    with pytest.raises(InvalidRequestError, match="shorten"):
        await rig.request(long, reuse=ReuseFields(0.1, (DOCUMENT,)))
    await ids_request(rig, [*b"x" * 5000], ReuseFields(0.1, (Span(10, 4900),)))
    assert spans_sent(rig) == (Span(10, 4900),)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (ReuseFields(2.0), "reuse.ratio"),
        (ReuseFields(segments=(Span(0, 101),)), "reuse.segments[0]"),
        (ReuseFields(segments=(Span(50, 90), Span(80, 99))), "reuse.segments[1]"),
        (ReuseFields(segments=(Span(5, 5),)), "reuse.segments[0]"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(rig, fields, field):
    with pytest.raises(InvalidRequestError) as caught:
        await ids_request(rig, [1] * 100, fields)
    assert caught.value.field == field
    assert rig.prefill.submitted == []


@pytest.mark.parametrize("settings", [{"prefix_cache": False}, {}], ids=["no cache", "all is computed"])
async def test_served_as_exact(settings):
    rig = await Rig(config=GatewayConfig(**settings), model=byte_model(8000)).up()
    request = await rig.request(DOCUMENT, reuse=ReuseFields(0.1 if settings else 1.0, (DOCUMENT,)), max_tokens=4)
    assert rig.prefill.submitted[0].reuse is None
    assert request.sequences[0].usage().segments == ()
    with pytest.raises(InvalidRequestError):
        await rig.request("short", reuse=ReuseFields(1.0, (DOCUMENT,)))


async def test_the_servers_own_least():
    rig = await Rig(config=GatewayConfig(min_recompute_ratio=0.3)).up()
    with pytest.raises(InvalidRequestError, match=r"0\.3"):
        await rig.request(reuse=ReuseFields(0.2))
    await rig.request(reuse=ReuseFields(0.3), max_tokens=4)


@given(st.integers(0, 40), st.integers(0, 30), st.integers(0, 30), st.integers(0, 80))
def test_what_an_answer_inherits_is_the_whole_segment(start, num_approximate, num_other, num_shared):
    span = Span(start, start + num_approximate + num_other)
    (outcome,) = inherited([span], [SegmentOutcome(0, num_approximate, num_other, True)], num_shared)
    assert outcome.num_exact + outcome.num_approximate + outcome.num_computed == num_approximate + num_other
    assert min(outcome.num_exact, outcome.num_computed) >= 0
    if num_shared >= span.end:
        assert (outcome.num_exact, outcome.num_approximate) == (num_other, num_approximate)
