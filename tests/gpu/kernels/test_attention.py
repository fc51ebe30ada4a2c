"""Paged attention against dense float64 attention, over caches that are NaN where no row of the step may look."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.gpu.kernels import gpu_kernels
from kernels.gpu.row_attention import MAX_PARTS, num_key_parts
from kernels.paged_attention import TILE_ROWS
from tests.support.attention_cases import (
    BATCHES,
    CHOSEN,
    HEAD_DIM,
    NUM_KV_HEADS,
    PagedStep,
    dense_attention,
    sequences_of,
)

pytestmark = pytest.mark.gpu

BFLOAT16_NOISE = 2e-2  # results of size 3, weights rounded to 8 bits
NUM_SMS = 8


def expected(shapes: list[tuple[int, int]], sliding_window: int | None = None, seed: int = 0) -> torch.Tensor:
    return torch.cat([dense_attention(sequence, sliding_window) for sequence in sequences_of(shapes, seed)])


def step(
    shapes: list[tuple[int, int]],
    device: torch.device,
    *,
    num_sms: int = NUM_SMS,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> PagedStep:
    return PagedStep(sequences_of(shapes, seed), 16, dtype, gpu_kernels(num_sms), device)


def assert_near(actual: torch.Tensor, exact: torch.Tensor, noise: float = BFLOAT16_NOISE) -> None:
    torch.testing.assert_close(actual.cpu().double(), exact, atol=noise, rtol=noise)


@pytest.mark.parametrize("sliding_window", [None, 13])
@pytest.mark.parametrize("shapes", BATCHES.values(), ids=BATCHES.keys())
def test_equals_dense_attention(
    device: torch.device, shapes: list[tuple[int, int]], sliding_window: int | None
) -> None:
    actual = step(shapes, device).attention(sliding_window)
    assert actual.dtype == torch.bfloat16
    assert_near(actual, expected(shapes, sliding_window))


@pytest.mark.parametrize("sliding_window", [None, 50])
@pytest.mark.parametrize("case", CHOSEN.values(), ids=CHOSEN.keys())
def test_chosen_rows_are_those_of_the_whole(
    device: torch.device, case: list[tuple[int, list[int]]], sliding_window: int | None
) -> None:
    shapes = [(length, length) for length, _ in case]
    chosen = step(shapes, device)
    rows = chosen.choose([positions for _, positions in case])
    assert_near(chosen.attention(sliding_window), expected(shapes, sliding_window)[rows])


@pytest.mark.parametrize("sliding_window", [None, 13])
def test_float16_is_nearer(device: torch.device, sliding_window: int | None) -> None:
    shapes = BATCHES["decode and chunks"]
    assert_near(
        step(shapes, device, dtype=torch.float16).attention(sliding_window), expected(shapes, sliding_window), 3e-3
    )


@pytest.mark.parametrize("num_sms", [1, 8, 132])
def test_any_division_of_the_keys(device: torch.device, num_sms: int) -> None:
    shapes = [(900, 1), (1, 1), (130, 1)]
    assert_near(step(shapes, device, num_sms=num_sms).attention(), expected(shapes))


@settings(max_examples=6, derandomize=True)
@given(
    shapes=st.lists(
        st.integers(1, 80).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length))),
        min_size=1,
        max_size=4,
    ),
    num_sms=st.sampled_from([1, 8]),
    seed=st.integers(0, 2**31),
)
def test_any_batch(device: torch.device, shapes: list[tuple[int, int]], num_sms: int, seed: int) -> None:
    assert_near(step(shapes, device, num_sms=num_sms, seed=seed).attention(), expected(shapes, None, seed))


def test_a_plan_follows_its_tensors(device: torch.device) -> None:
    """What a captured step is replayed on: the same tensors, with other contents."""
    before, after = [(40, 1), (90, 1), (17, 1)], [(90, 1), (3, 1), (64, 1)]
    subject, other = step(before, device), step(after, device, seed=1)
    plan = subject.plan()
    tables = torch.zeros_like(subject.block_tables)
    tables[:, : other.block_tables.shape[1]] = other.block_tables
    subject.block_tables.copy_(tables)
    subject.context_lens.copy_(other.context_lens)
    actual = gpu_kernels(NUM_SMS).paged_attention(
        other.query, other.key_cache, other.value_cache, plan, scale=HEAD_DIM**-0.5
    )
    assert_near(actual, expected(after, seed=1))


def test_padding_sequences_come_out_as_zeros(device: torch.device) -> None:
    shapes = [(33, 1), (90, 1), (200, 1)]
    for num_sms in (1, 8):  # whole, and divided
        subject = step(shapes, device, num_sms=num_sms)
        subject.context_lens[1] = 0
        actual = subject.attention()
        assert not actual[1].any()
        assert_near(actual[[0, 2]], expected(shapes)[[0, 2]])


def test_tables_may_be_int32(device: torch.device) -> None:
    shapes = BATCHES["decode and chunks"]
    subject = step(shapes, device)
    for name in ("block_tables", "query_start", "context_lens"):
        setattr(subject, name, getattr(subject, name).int())
    assert_near(subject.attention(), expected(shapes))


def test_query_rows_may_lie_apart(device: torch.device) -> None:
    shapes = BATCHES["decode and chunks"]
    subject = step(shapes, device)
    subject.query = torch.cat((subject.query, torch.full_like(subject.query, float("nan"))), 1)[
        :, : subject.query.shape[1]
    ]
    assert_near(subject.attention(), expected(shapes))


def test_a_later_key_does_not_change_a_row_by_one_bit(device: torch.device) -> None:
    context_len, row = 2 * TILE_ROWS + 20, TILE_ROWS + 3  # in the middle of a tile
    subject = step([(context_len, context_len)], device)
    before = subject.attention()
    later = subject.slots(subject.block_tables[0], torch.arange(row + 1, context_len, device=device))
    for cache in (subject.key_cache, subject.value_cache):
        cache.view(-1, NUM_KV_HEADS, HEAD_DIM)[later] *= -3.0
    after = subject.attention()
    assert torch.equal(before[: row + 1], after[: row + 1])
    assert not torch.equal(before[row + 1], after[row + 1])


def test_keys_are_divided_until_the_share_is_busy() -> None:
    assert num_key_parts(num_spans=8, max_keys=100_000, num_sms=8) == 8
    assert num_key_parts(num_spans=512, max_keys=100_000, num_sms=8) == 1
    assert num_key_parts(num_spans=1, max_keys=100_000, num_sms=132) == MAX_PARTS
    assert num_key_parts(num_spans=1, max_keys=130, num_sms=132) == 3
