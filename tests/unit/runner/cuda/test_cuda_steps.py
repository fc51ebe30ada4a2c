"""The steps of a GPU on a processor: the same tokens as the plain runner's, from replays that read static memory."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.gpu.rehearsal import padded_kernels, sample_rows
from kernels.draw_tokens import draw_tokens
from kernels.table import torch_kernels
from tandem.model.batch import SequenceRows
from tandem.model.config import ModelConfig
from tandem.model.registry import get_family
from tandem.runner.cuda.graphs import StreamShare
from tandem.runner.cuda.steps import CudaSteps, DeviceModel
from tandem.runner.model_runner import ModelRunner
from tandem.runner.sampler import Draw, SampledToken, sample
from tandem.runner.selective import chosen_rows
from tandem.runner.steps import LogitsThenDraws, StepRunner, TokenCopy
from tandem.types import SamplingSpec
from tests.support.paged_decoder import one_thread
from tests.support.recorded_graphs import RecordedGraphs

CONFIG = ModelConfig("qwen3", 16, 24, 2, 4, 2, 4, 40, 256, 1e-5, 1e4)
BLOCK_SIZE, NUM_BLOCKS = 4, 64
GREEDY = SamplingSpec(temperature=0.0)
SAMPLINGS = (
    SamplingSpec(temperature=0.9, top_k=7, seed=3),
    SamplingSpec(temperature=1.2, top_p=0.8, min_p=0.01, seed=2**64 - 5),
    SamplingSpec(temperature=0.7, repetition_penalty=1.3, presence_penalty=0.2, seed=8),
    SamplingSpec(temperature=0.0, logit_bias={5: 4.0}),
    SamplingSpec(temperature=1.0, logprobs=True, num_top_logprobs=2, seed=1),
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return {
        parameter.name: torch.randn(parameter.shape, generator=generator) * 0.4
        for parameter in get_family(CONFIG.family).parameters(CONFIG)
    }


WEIGHTS = weights()


def empty_cache() -> torch.Tensor:
    shape = (CONFIG.num_layers, 2, NUM_BLOCKS, BLOCK_SIZE, CONFIG.num_kv_heads, CONFIG.head_dim)
    return torch.full(shape, float("nan"))


@dataclass
class Subject:
    """Steps as a GPU would run them, over a poisoned cache."""

    graphs: RecordedGraphs = field(default_factory=RecordedGraphs)
    cache: torch.Tensor = field(default_factory=empty_cache)
    sms_built_for: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        cpu = torch.device("cpu")
        self.steps = CudaSteps(
            DeviceModel(self.runner_for, cpu, BLOCK_SIZE, CONFIG.vocab_size, sample_rows, draw_tokens), self.graphs
        )

    def runner_for(self, num_sms: int) -> ModelRunner:
        self.sms_built_for.append(num_sms)
        decoder = get_family(CONFIG.family).build(CONFIG, WEIGHTS, padded_kernels(torch_kernels()))
        return ModelRunner(decoder, self.cache, BLOCK_SIZE)


def plain(cache: torch.Tensor) -> LogitsThenDraws:
    decoder = get_family(CONFIG.family).build(CONFIG, WEIGHTS, torch_kernels())
    return LogitsThenDraws(ModelRunner(decoder, cache, BLOCK_SIZE), sample)


@dataclass(eq=False)
class Sequence:
    """One that a phase would have: its blocks are its own."""

    token_ids: list[int]
    num_prompt: int
    sampling: SamplingSpec
    block_ids: list[int] = field(default_factory=list)
    num_computed: int = 0

    def rows(self, most: int, free: list[int]) -> SequenceRows:
        end = min(len(self.token_ids), self.num_computed + most)
        while len(self.block_ids) * BLOCK_SIZE < end:
            self.block_ids.append(free.pop())
        return SequenceRows(self.token_ids[self.num_computed : end], self.num_computed, self.block_ids)

    def draw(self, most: int) -> Draw | None:
        if self.num_computed + most < len(self.token_ids):
            return None
        banned = (1, 2) if len(self.token_ids) - self.num_prompt < 2 else ()
        output = self.token_ids[self.num_prompt :]
        return Draw(self.sampling, len(self.token_ids), self.token_ids[: self.num_prompt], output, banned)

    def advance(self, num_rows: int, token: SampledToken | None) -> None:
        self.num_computed += num_rows
        if token is not None:
            self.token_ids.append(token.token_id)


def same(ours: list[SampledToken | None], theirs: list[SampledToken | None]) -> None:
    assert [token and token.token_id for token in ours] == [token and token.token_id for token in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert (our is None or our.logprobs is None) == (their is None or their.logprobs is None)
        if our and their and our.logprobs and their.logprobs:
            assert our.logprobs.logprob == pytest.approx(their.logprobs.logprob, abs=1e-4)


def run(seed: int, samplings: tuple[SamplingSpec, ...], num_steps: int, subject: Subject) -> None:
    """Sequences come and go; each step is done by both, and the cache is checked."""
    chance, reference_cache = random.Random(seed), empty_cache()
    reference = plain(reference_cache)
    free, owned, running = list(range(NUM_BLOCKS)), set[int](), list[Sequence]()
    chance.shuffle(free)
    for _ in range(num_steps):
        for sequence in [each for each in running if chance.random() < 0.08 or len(each.token_ids) > 30]:
            running.remove(sequence)  # what it leaves in its blocks is stale, as in the pool
            free[:0] = sequence.block_ids
        while len(running) < 5 and (not running or chance.random() < 0.3):
            prompt = [chance.randrange(CONFIG.vocab_size) for _ in range(chance.randrange(1, 12))]
            running.append(Sequence(prompt, len(prompt), chance.choice(samplings)))
        most = chance.choice((1, 5, 20))
        rows, draws = [each.rows(most, free) for each in running], [each.draw(most) for each in running]
        tokens = subject.steps.execute(rows, draws)
        same(tokens, reference.execute(rows, draws))
        for sequence, part, token in zip(running, rows, tokens, strict=True):
            owned.update(sequence.block_ids)
            sequence.advance(len(part.token_ids), token)
        foreign = sorted(set(range(NUM_BLOCKS)) - owned)
        assert bool(subject.cache[:, :, foreign].isnan().all())
        torch.testing.assert_close(subject.cache, reference_cache, equal_nan=True, atol=1e-4, rtol=1e-4)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32))
def test_greedy_tokens_are_the_plain_runner_s(seed: int) -> None:
    subject = Subject()
    run(seed, (GREEDY,), 25, subject)
    assert subject.graphs.num_captures > 0


def test_most_decode_steps_are_replays() -> None:
    subject = Subject()
    run(3, (GREEDY,), 80, subject)
    assert subject.graphs.num_replays > 2 * subject.graphs.num_captures > 0


class UncheckedGraphs(RecordedGraphs):
    """Draws make tensors of numpy's memory, which the check takes for memory that was there before."""

    def capture(self, compute):  # type: ignore[no-untyped-def]
        self.num_captures += 1
        return compute


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32))
def test_drawn_tokens_are_the_plain_runner_s(seed: int) -> None:
    run(seed, (GREEDY, *SAMPLINGS), 25, Subject(UncheckedGraphs()))


def decode(steps: StepRunner, starts: list[int]) -> list[SampledToken | None]:
    rows = [SequenceRows([index + 3], start, [2 * index, 2 * index + 1]) for index, start in enumerate(starts)]
    return steps.execute(rows, [Draw(GREEDY, start + 1, (), ()) for start in starts])


def test_a_graph_is_captured_once_a_size_and_share_and_kernels_are_built_for_the_share() -> None:
    subject = Subject()
    for starts in ([0], [1], [0, 0, 0], [1, 1, 1], [2, 2, 2, 0], [2]):
        decode(subject.steps, starts)
    assert (subject.graphs.num_captures, subject.graphs.num_replays) == (2, 4)
    subject.graphs.share_of_thread = StreamShare(9, 32)
    decode(subject.steps, [3])
    assert (subject.graphs.num_captures, subject.graphs.num_replays) == (3, 4)
    subject.graphs.share_of_thread = StreamShare(7, 132)
    decode(subject.steps, [4])
    assert (subject.graphs.num_captures, subject.graphs.num_replays) == (3, 5)
    assert subject.sms_built_for == [132, 32]


def test_a_step_of_chunks_is_not_captured_and_a_sequence_without_a_draw_gets_no_token() -> None:
    subject = Subject()
    rows = [SequenceRows([1, 2, 3], 0, [4]), SequenceRows([9], 0, [5])]
    tokens = subject.steps.execute(rows, [None, Draw(GREEDY, 1, (9,), ())])
    assert [token is None for token in tokens] == [True, False]
    assert subject.graphs.num_captures == 0
    assert subject.steps.execute([SequenceRows([5, 6], 3, [4, 6])], [None]) == [None]
    assert subject.graphs.num_waits == 2  # nobody may still write to blocks when a step has ended
    lone = subject.steps.execute([SequenceRows([4], 5, [4, 6]), SequenceRows([2], 1, [5])], [None, None])
    assert lone == [None, None]


def test_more_banned_tokens_than_the_device_has_room_for_are_kept_from_being_drawn() -> None:
    subject = Subject()
    banned = tuple(range(CONFIG.vocab_size - 1))
    tokens = subject.steps.execute([SequenceRows([4], 0, [1])], [Draw(GREEDY, 1, (4,), (), banned)])
    assert tokens[0] is not None
    assert tokens[0].token_id == CONFIG.vocab_size - 1


def test_a_step_after_one_that_was_refused_is_sound() -> None:
    subject, reference = Subject(), plain(empty_cache())
    decode(subject.steps, [0, 0])
    decode(reference, [0, 0])
    with pytest.raises(ValueError, match="blocks"):
        subject.steps.execute([SequenceRows([3], 20, [0])], [Draw(GREEDY, 21, (), ())])
    for starts in ([1, 1], [2, 2]):
        same(decode(subject.steps, starts), decode(reference, starts))
    with pytest.raises(ValueError, match="sequences"):
        subject.steps.execute([], [])


def test_a_replay_that_reads_a_step_s_own_memory_is_found_out() -> None:
    """Of the check itself."""
    graphs, live = RecordedGraphs(), [torch.ones(3)]

    def compute() -> None:
        live[0].add(1)

    replay = graphs.capture(compute)
    replay()
    live[0] = torch.ones(3)
    held = torch.ones(3)
    live.append(held)
    with pytest.raises(AssertionError, match="was not there"):
        live[0] = held.clone()
        replay()


def test_a_step_reads_what_was_copied_before_it() -> None:
    subject, tokens = Subject(), [*range(3, 3 + BLOCK_SIZE)]
    draw = Draw(GREEDY, BLOCK_SIZE, (), ())
    expected = plain(empty_cache()).execute([SequenceRows(tokens, 0, [1])], [draw])
    subject.steps.execute([SequenceRows(tokens, 0, [0])], [None])
    subject.steps.copy_tokens([TokenCopy(0, 5, BLOCK_SIZE - 1)])
    assert subject.steps.execute([SequenceRows(tokens[-1:], BLOCK_SIZE - 1, [5])], [draw]) == expected


def test_decode_s_graph_is_replayed_as_ever_behind_rows_that_are_computed_anew() -> None:
    """Several of them are launched; a lone one is a decode row like others."""
    subject, reference_cache = Subject(), empty_cache()
    reference, tokens = plain(reference_cache), [*range(3, 3 + 2 * BLOCK_SIZE - 2)]
    for steps in (subject.steps, reference):
        steps.execute([SequenceRows(tokens, 0, [4, 6]), SequenceRows(tokens, 0, [7, 8])], [None, None])
    for number, positions in enumerate([(), (1, 2, 4), (3,)]):
        for cache in (subject.cache, reference_cache):
            cache[:, :, 4, 1:4] = 0.25 * number
        start = len(tokens) + number
        rows = [SequenceRows([9 + number], start, ids) for ids in ([4, 6, 9], [7, 8, 10])]
        said = []
        for steps in (subject.steps, reference):
            if positions:
                assert steps.execute([chosen_rows(tokens, positions, [4, 6, 9])], [None]) == [None]
            said.append(steps.execute(rows, [Draw(GREEDY, start + 1, (), ())] * 2))
        same(*said)
    torch.testing.assert_close(subject.cache, reference_cache, equal_nan=True, atol=1e-4, rtol=1e-4)
    assert (subject.graphs.num_captures, subject.graphs.num_replays) == (2, 2), "of one row and of two"
