"""Paged attention of each set of kernels against dense float64 attention, over caches whose unused slots are NaN."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from kernels.paged_attention import TILE_ROWS, plan_attention
from kernels.store_kv import store_kv
from kernels.table import Kernels
from tests.support.attention_cases import (
    BATCHES,
    CHOSEN,
    HEAD_DIM,
    NUM_KV_HEADS,
    PagedStep,
    Sequence64,
    dense_attention,
    make_sequence,
    sequences_of,
)
from tests.support.kernel_sets import KERNEL_SETS, kernel_set
from tests.support.paged_decoder import num_threads, one_thread


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@dataclass(frozen=True)
class Subject:
    """A set of kernels, in a dtype that it takes, and what it may differ from the exact result by."""

    kernels: Kernels
    dtype: torch.dtype
    tolerance: float


@pytest.fixture(scope="module", params=KERNEL_SETS)
def subject(request: pytest.FixtureRequest) -> Subject:
    kernels = kernel_set(request.param)
    if request.param == "torch":
        return Subject(kernels, torch.float32, 2e-6)
    return Subject(kernels, torch.bfloat16, 1e-2)


@pytest.mark.parametrize("sliding_window", [None, 1, 13, 64, 500])
@pytest.mark.parametrize("block_size", [1, 5, 16])
@pytest.mark.parametrize("shapes", BATCHES.values(), ids=BATCHES.keys())
def test_equals_dense_attention(
    subject: Subject, shapes: list[tuple[int, int]], block_size: int, sliding_window: int | None
) -> None:
    sequences = sequences_of(shapes)
    actual = PagedStep(sequences, block_size, subject.dtype, subject.kernels).attention(sliding_window)
    expected = torch.cat([dense_attention(sequence, sliding_window) for sequence in sequences])
    assert actual.dtype == subject.dtype
    torch.testing.assert_close(actual.double(), expected, atol=subject.tolerance, rtol=subject.tolerance)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sliding_window", [None, 700])
@pytest.mark.parametrize("shapes", [[(1500, 1)], [(1500, 3), (700, 1)], [(900, 90), (900, 1)]])
def test_long_contexts_on_several_threads(
    subject: Subject, shapes: list[tuple[int, int]], sliding_window: int | None, threads: int
) -> None:
    """Where keys are divided among threads."""
    sequences = sequences_of(shapes)
    with num_threads(threads):
        actual = PagedStep(sequences, 16, subject.dtype, subject.kernels).attention(sliding_window)
    expected = torch.cat([dense_attention(sequence, sliding_window) for sequence in sequences])
    torch.testing.assert_close(actual.double(), expected, atol=subject.tolerance, rtol=subject.tolerance)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (4, 4), (8, 1), (16, 2)])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
def test_head_shapes(subject: Subject, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    heads = (num_heads, num_kv_heads, head_dim)
    sequences = [make_sequence(*shape, generator, heads) for shape in ((150, 40), (70, 1), (66, 2))]
    actual = PagedStep(sequences, 16, subject.dtype, subject.kernels).attention()
    expected = torch.cat([dense_attention(sequence) for sequence in sequences])
    torch.testing.assert_close(actual.double(), expected, atol=subject.tolerance, rtol=subject.tolerance)


def test_bfloat16_is_near_dense_attention() -> None:
    sequences = sequences_of(BATCHES["decode and chunks"])
    actual = PagedStep(sequences, 16, torch.bfloat16).attention()
    expected = torch.cat([dense_attention(sequence) for sequence in sequences])
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.double(), expected, atol=3e-2, rtol=0)


def test_a_cache_of_another_dtype_is_cast_to_the_query() -> None:
    sequences = sequences_of([(20, 1), (30, 4)])
    step = PagedStep(sequences, 4, torch.bfloat16)
    step.query = step.query.float()
    expected = torch.cat([dense_attention(sequence) for sequence in sequences])
    actual = step.attention()
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, atol=3e-2, rtol=0)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_give_the_rows_of_the_whole(subject: Subject, chunk: int) -> None:
    (whole,) = sequences_of([(150, 150)])
    pieces = []
    for start in range(0, 150, chunk):
        end = min(start + chunk, 150)
        piece = Sequence64(whole.query[start:end], whole.key[:end], whole.value[:end])
        pieces.append(PagedStep([piece], 16, subject.dtype, subject.kernels).attention())
    expected = PagedStep([whole], 16, subject.dtype, subject.kernels).attention()
    torch.testing.assert_close(torch.cat(pieces), expected, atol=subject.tolerance, rtol=subject.tolerance)


def test_a_row_does_not_depend_on_its_batch(subject: Subject) -> None:
    def attention(*sequences: Sequence64) -> torch.Tensor:
        return PagedStep(sequences, 16, subject.dtype, subject.kernels).attention()

    sequences = sequences_of(BATCHES["decode and chunks"])
    alone = torch.cat([attention(sequence) for sequence in sequences])
    torch.testing.assert_close(attention(*sequences), alone, atol=subject.tolerance, rtol=subject.tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_later_key_does_not_change_a_row_by_one_bit(subject: Subject, dtype: torch.dtype) -> None:
    if dtype == torch.float32 and subject.dtype != dtype:
        pytest.skip("native kernels are for bfloat16")
    context_len, row = 2 * TILE_ROWS + 20, TILE_ROWS + 3  # in the middle of a tile
    step = PagedStep(sequences_of([(context_len, context_len)]), 16, dtype, subject.kernels)
    before = step.attention()
    later = step.slots(step.block_tables[0], torch.arange(row + 1, context_len))
    for cache in (step.key_cache, step.value_cache):
        cache.view(-1, NUM_KV_HEADS, HEAD_DIM)[later] *= -3.0
    after = step.attention()
    assert torch.equal(before[: row + 1], after[: row + 1])
    assert not torch.equal(before[row + 1], after[row + 1])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sliding_window", [None, 1, 50])
@pytest.mark.parametrize("case", CHOSEN.values(), ids=CHOSEN.keys())
def test_chosen_rows_are_those_of_the_whole(
    subject: Subject, case: list[tuple[int, list[int]]], sliding_window: int | None, threads: int
) -> None:
    sequences = sequences_of([(length, length) for length, _ in case])
    step = PagedStep(sequences, 5, subject.dtype, subject.kernels)
    rows = step.choose([positions for _, positions in case])
    expected = torch.cat([dense_attention(sequence, sliding_window) for sequence in sequences])[rows]
    with num_threads(threads):
        actual = step.attention(sliding_window)
    torch.testing.assert_close(actual.double(), expected, atol=subject.tolerance, rtol=subject.tolerance)


def test_a_later_key_does_not_change_a_chosen_row_by_one_bit(subject: Subject) -> None:
    step = PagedStep(sequences_of([(200, 200)]), 16, subject.dtype, subject.kernels)
    step.choose([[*range(3, 60, 4), 100, 150, 199]])
    before = step.attention()
    later = step.slots(step.block_tables[0], torch.arange(101, 200))
    for cache in (step.key_cache, step.value_cache):
        cache.view(-1, NUM_KV_HEADS, HEAD_DIM)[later] *= -3.0
    after = step.attention()
    assert torch.equal(before[:-2], after[:-2])
    assert not torch.equal(before[-2], after[-2])


def test_decode_padding_is_bounded() -> None:
    lengths = [3, 1000, 4, 700, 33, 60]
    plan = plan_attention(
        torch.arange(6 * 63).view(6, 63),
        torch.arange(7),
        torch.tensor(lengths),
        block_size=16,
        num_kv_heads=1,
    )
    gathered = sum(group.head_rows.numel() for group in plan.groups)
    assert gathered <= 2 * sum(lengths)
    assert sorted(row for group in plan.groups for tile in group.tiles for row in tile.rows.tolist()) == list(range(6))


def test_store_kv_writes_only_the_mapped_slots() -> None:
    key_cache, value_cache = torch.zeros(2, 4, 3, 5, 1), torch.zeros(2, 4, 3, 5, 1)
    key, value = torch.rand(2, 5, 1) + 1, torch.rand(2, 5, 1) + 1
    key_cache, value_cache = key_cache[0], value_cache[1]
    store_kv(key, value, key_cache, value_cache, torch.tensor([7, 2]))
    assert torch.equal(key_cache[2, 1], key[0])
    assert torch.equal(value_cache[0, 2], value[1])
    assert int(key_cache.count_nonzero()) == int(value_cache.count_nonzero()) == 10
