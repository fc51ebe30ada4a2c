"""Selective prefill, canonical entries and probes over a tiny random model, in float32."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random

import pytest
import torch
import transformers

from kernels.table import torch_kernels
from tandem.model.batch import SequenceRows
from tandem.model.config import ModelConfig
from tandem.model.layers import rotary_frequencies
from tandem.model.registry import get_family
from tandem.reuse.plan import Placement, ReusePlan, ReusePolicy, Score, choose, plan_reuse
from tandem.runner.model_runner import ModelRunner
from tandem.runner.probe import Probe
from tandem.runner.segment_kv import SegmentKv
from tandem.runner.segment_steps import SegmentSteps
from tandem.runner.selective import chosen_rows, last_rows
from tandem.runner.steps import EntryCopy
from tests.support.kernel_sets import KERNEL_SETS, kernel_set
from tests.support.paged_decoder import one_thread, pack_weights
from tests.support.tiny_models import NUM_TOKENS, tiny_model

BLOCK_SIZE, NUM_LAYERS, FIRST_TOKEN = 16, 3, 0
CONFIG = ModelConfig("llama", 64, 96, NUM_LAYERS, 4, 2, 16, NUM_TOKENS, 512, 1e-6, 1e4)
ALL = ReusePolicy(ratio=1.0, min_reused_tokens=1, max_computed_share=1.0)
SOME = ReusePolicy(ratio=0.2, head_tokens=3, min_reused_tokens=1, max_computed_share=1.0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def theirs() -> transformers.PreTrainedModel:
    return tiny_model("llama", num_hidden_layers=NUM_LAYERS, attn_implementation="eager")


class Subject:
    """A model over 64 blocks of a cache that is NaN where nothing was stored."""

    def __init__(self, theirs: transformers.PreTrainedModel) -> None:
        weights = pack_weights(CONFIG, theirs.state_dict().__getitem__, torch.float32)
        kernels = torch_kernels()
        shape = (NUM_LAYERS, 2, 64, BLOCK_SIZE, CONFIG.num_kv_heads, CONFIG.head_dim)
        self.kv_cache = torch.full(shape, float("nan"))
        decoder = get_family("llama").build(CONFIG, weights, kernels)
        self.runner = ModelRunner(decoder, self.kv_cache, BLOCK_SIZE)
        self.segments = SegmentKv(kernels, self.kv_cache, rotary_frequencies(CONFIG))
        self.probe = Probe(CONFIG, weights, kernels, self.kv_cache)
        self.order = list(range(64))
        Random(4).shuffle(self.order)

    def blocks(self, num_tokens: int) -> list[int]:
        """Of their own, in no order."""
        return [self.order.pop() for _ in range(-(-num_tokens // BLOCK_SIZE))]

    def whole(self, token_ids: Sequence[int], blocks: Sequence[int]) -> torch.Tensor:
        return self.runner.execute([SequenceRows(token_ids, 0, blocks)])[0]

    def kv(self, blocks: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """``[num_layers, 2, num_positions, num_kv_heads, head_dim]``, copied."""
        slots = self.segments.slots(torch.tensor(positions), blocks)
        return self.kv_cache.flatten(2, 3)[:, :, slots].clone()

    def build(self, token_ids: Sequence[int]) -> list[int]:
        blocks = self.blocks(1 + len(token_ids))
        self.whole([FIRST_TOKEN, *token_ids], blocks)
        return blocks


@pytest.fixture
def subject(theirs: transformers.PreTrainedModel) -> Subject:
    return Subject(theirs)


def text(count: int, seed: int) -> list[int]:
    random = Random(seed)
    return [random.randrange(3, NUM_TOKENS) for _ in range(count)]


BEFORE, DOCUMENT, BETWEEN, OTHER, QUESTION = text(5, 0), text(37, 1), text(3, 2), text(30, 3), text(7, 4)
PROMPT = [*BEFORE, *DOCUMENT, *BETWEEN, *OTHER, *QUESTION]
PLACES = (Placement(b"document", 5, 0, 37), Placement(b"other", 45, 0, 30))  # no start is a block's


def placed(subject: Subject, policy: ReusePolicy) -> tuple[ReusePlan, list[int]]:
    """The prompt with both documents from canonical entries."""
    plan = plan_reuse(len(PROMPT), 0, PLACES, policy)
    assert plan is not None
    blocks = subject.blocks(len(PROMPT))
    for placement, tokens in zip(PLACES, (DOCUMENT, OTHER), strict=True):
        subject.segments.place(placement, subject.build(tokens), blocks)
    return plan, blocks


def compute(subject: Subject, plan: ReusePlan, blocks: Sequence[int], score: Score = Score.ATTENTION) -> torch.Tensor:
    chosen = choose(plan, subject.probe.scores(PROMPT, blocks, plan, score))
    return subject.runner.execute([chosen_rows(PROMPT, chosen, blocks)])[0]


def test_computing_everything_is_full_recompute(subject: Subject) -> None:
    full_blocks = subject.blocks(len(PROMPT))
    full = subject.whole(PROMPT, full_blocks)
    plan, blocks = placed(subject, ALL)
    torch.testing.assert_close(compute(subject, plan, blocks), full, rtol=1e-4, atol=1e-4)
    everywhere = range(len(PROMPT))
    torch.testing.assert_close(
        subject.kv(blocks, everywhere), subject.kv(full_blocks, everywhere), rtol=1e-4, atol=1e-4
    )


def test_what_is_not_chosen_stays_as_it_was_placed(subject: Subject) -> None:
    plan, blocks = placed(subject, SOME)
    before = subject.kv(blocks, plan.reused)
    chosen = choose(plan, subject.probe.scores(PROMPT, blocks, plan, Score.WEIGHTED))
    subject.runner.execute([chosen_rows(PROMPT, chosen, blocks)])
    after = subject.kv(blocks, plan.reused)
    assert not bool(subject.kv(blocks, range(len(PROMPT))).isnan().any())
    same = [torch.equal(before[:, :, index], after[:, :, index]) for index in range(len(plan.reused))]
    assert [position for position, kept in zip(plan.reused, same, strict=True) if not kept] == sorted(
        set(chosen) - set(plan.fresh) - set(plan.heads)
    )


def test_nothing_reused_is_a_cached_prefix(subject: Subject) -> None:
    full = subject.whole(PROMPT, subject.blocks(len(PROMPT)))
    plan = plan_reuse(len(PROMPT), 20, [], ReusePolicy(min_reused_tokens=0, max_computed_share=1.0))
    assert plan is not None
    blocks = subject.blocks(len(PROMPT))
    subject.whole(PROMPT[:20], blocks)
    assert list(plan.fresh) == list(range(20, len(PROMPT)))
    logits = subject.runner.execute([chosen_rows(PROMPT, plan.fresh, blocks)])[0]
    torch.testing.assert_close(logits, full, rtol=1e-4, atol=1e-4)


def test_placed_keys_of_the_first_layer_are_those_of_full_recompute(subject: Subject) -> None:
    """They depend on the token and its position alone: what the turning has to give, with a part skipped too."""
    full_blocks, blocks = subject.blocks(len(PROMPT)), subject.blocks(len(PROMPT))
    subject.whole(PROMPT, full_blocks)
    placement = Placement(b"document", 9, 4, 33)
    subject.segments.place(placement, subject.build(DOCUMENT), blocks)
    first_layer = (subject.kv(each, placement.positions)[0] for each in (blocks, full_blocks))
    torch.testing.assert_close(*first_layer, rtol=1e-4, atol=1e-4)
    assert bool(subject.kv(blocks, [8, 42]).isnan().all())


def test_text_before_a_chunk_changes_nobody_else_s_output(
    subject: Subject, theirs: transformers.PreTrainedModel
) -> None:
    """Who comes first, with whatever text before a chunk that others have too, leaves no trace in its entry."""
    alone = Subject(theirs)
    clean = compute(alone, *placed(alone, SOME))
    poison = [*text(40, 99), *DOCUMENT, *text(9, 98)]
    subject.whole(poison, subject.blocks(len(poison)))
    assert torch.equal(compute(subject, *placed(subject, SOME)), clean)


def test_prompts_that_share_an_entry_in_one_step_do_not_change_each_other(subject: Subject) -> None:
    plan, blocks = placed(subject, SOME)
    twin = subject.blocks(len(PROMPT))
    entries = [subject.build(tokens) for tokens in (DOCUMENT, OTHER)]
    for placement, entry in zip(PLACES, entries, strict=True):
        subject.segments.place(placement, entry, twin)
    chosen = choose(plan, subject.probe.scores(PROMPT, twin, plan, Score.ATTENTION))
    rows = [chosen_rows(PROMPT, chosen, each) for each in (blocks, twin)]
    stranger = SequenceRows([5, 6], 0, subject.blocks(2))
    first, _, second = subject.runner.execute([rows[0], stranger, rows[1]])
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    third = subject.runner.execute([rows[0]])[0]
    torch.testing.assert_close(first, third, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cuts", [(6,), (10, 11), (1, 13)])
def test_a_probe_in_parts_says_what_it_says_at_once(
    subject: Subject, theirs: transformers.PreTrainedModel, cuts: tuple[int, ...]
) -> None:
    """The question is the last 7 of 15 rows; what is cut off before it has nobody to ask."""
    plan, blocks = placed(subject, SOME)
    scores = subject.probe.scores(PROMPT, blocks, plan, Score.ATTENTION)
    weights = pack_weights(CONFIG, theirs.state_dict().__getitem__, torch.float32)
    steps = SegmentSteps(CONFIG, weights, torch_kernels(), subject.kv_cache)
    own, asks_from = subject.blocks(len(PROMPT)), len(plan.fresh) - len(QUESTION)
    entries = [subject.build(tokens) for tokens in (DOCUMENT, OTHER)]
    steps.place([EntryCopy(placement, each, own) for placement, each in zip(PLACES, entries, strict=True)])
    total = torch.zeros(len(PROMPT))
    for start, end in pairwise((0, *cuts, len(plan.fresh))):
        rows = chosen_rows(PROMPT, plan.fresh[start:end], own)
        looked_at = steps.probe(rows, max(0, end - max(start, asks_from)))
        total[: len(looked_at)] += torch.from_numpy(looked_at)
    torch.testing.assert_close(total / len(QUESTION), torch.from_numpy(scores), rtol=1e-4, atol=1e-6)


def test_attention_is_what_transformers_says(subject: Subject, theirs: transformers.PreTrainedModel) -> None:
    """Of a prompt computed in full: the middle third of three layers, its last rows."""
    blocks = subject.blocks(len(PROMPT))
    subject.whole(PROMPT, blocks)
    rows = SequenceRows(PROMPT[-9:], len(PROMPT) - 9, blocks)
    seen = subject.probe.attention(rows, 7)
    with torch.no_grad():
        attentions = theirs(torch.tensor([PROMPT]), output_attentions=True).attentions
    torch.testing.assert_close(seen, attentions[1][0, :, -7:].mean((0, 1)), rtol=1e-3, atol=1e-6)


def test_deviation_is_the_distance_of_the_second_layer_s_values(subject: Subject) -> None:
    full_blocks = subject.blocks(len(PROMPT))
    subject.whole(PROMPT, full_blocks)
    plan, blocks = placed(subject, SOME)
    scores = torch.from_numpy(subject.probe.scores(PROMPT, blocks, plan, Score.DEVIATION))
    reused = list(plan.reused)
    wrong = subject.kv(full_blocks, reused)[1, 1] - subject.kv(blocks, reused)[1, 1]
    torch.testing.assert_close(scores[reused], wrong.flatten(1).norm(dim=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_a_look_sees_what_a_probe_sees_and_stores_nothing(theirs: transformers.PreTrainedModel, name: str) -> None:
    kernels = kernel_set(name)
    dtype = torch.float32 if name == "torch" else torch.bfloat16
    weights = pack_weights(CONFIG, theirs.state_dict().__getitem__, dtype)
    kv_cache = torch.zeros((NUM_LAYERS, 2, 8, BLOCK_SIZE, CONFIG.num_kv_heads, CONFIG.head_dim), dtype=dtype)
    runner = ModelRunner(get_family("llama").build(CONFIG, weights, kernels), kv_cache, BLOCK_SIZE)
    blocks = [6, 1, 4, 0, 7, 2]
    runner.execute([SequenceRows(PROMPT, 0, blocks)])
    before = kv_cache.clone()
    steps = SegmentSteps(CONFIG, weights, kernels, kv_cache)
    asking = last_rows(PROMPT, 9, blocks)
    seen = steps.look(asking)
    assert torch.equal(kv_cache, before)
    probed = steps.probe(asking, 9) / 9
    assert seen == pytest.approx(probed, abs=1e-6 if name == "torch" else 1e-3)


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_what_is_computed_anew_is_full_recompute_by_every_set_of_kernels(
    theirs: transformers.PreTrainedModel, name: str
) -> None:
    """Rows in the middle of a context: only they are written, with what was there before it was approximate."""
    kernels = kernel_set(name)
    dtype = torch.float32 if name == "torch" else torch.bfloat16
    weights = pack_weights(CONFIG, theirs.state_dict().__getitem__, dtype)
    kv_cache = torch.zeros((NUM_LAYERS, 2, 8, BLOCK_SIZE, CONFIG.num_kv_heads, CONFIG.head_dim), dtype=dtype)
    runner = ModelRunner(get_family("llama").build(CONFIG, weights, kernels), kv_cache, BLOCK_SIZE)
    blocks, positions = [6, 1, 4, 0, 7, 2], (20, 21, 25, 40)
    runner.execute([SequenceRows(PROMPT, 0, blocks)])
    full = kv_cache.clone()
    for position in positions:
        kv_cache[:, :, blocks[position // BLOCK_SIZE], position % BLOCK_SIZE] = 0.25
    runner.execute([chosen_rows(PROMPT, positions, blocks)])
    tolerance = 1e-4 if name == "torch" else 0.05
    torch.testing.assert_close(kv_cache, full, rtol=tolerance, atol=tolerance)
