"""Content-defined chunks: bounds, sizes, and that an insertion moves few cuts."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.reuse.chunking import ChunkSizes, chunk_ends

SIZES = ChunkSizes()


def tokens(count: int, seed: int) -> list[int]:
    random = Random(seed)
    return [random.randrange(49_152) for _ in range(count)]


@given(st.integers(0, 5000), st.integers(0, 10**6))
@settings(max_examples=25)
def test_chunks_are_within_bounds_and_cover_all(count: int, seed: int) -> None:
    ends = chunk_ends(tokens(count, seed), SIZES)
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert sum(lengths) == count
    assert all(SIZES.lowest <= length <= SIZES.highest for length in lengths[:-1])


def test_the_mean_is_near_what_was_asked() -> None:
    ends = chunk_ends(tokens(200_000, 1), SIZES)
    assert 200_000 / len(ends) == pytest.approx(SIZES.mean, rel=0.1)


@pytest.mark.parametrize("inserted", [1, 40, 700])
def test_an_insertion_leaves_most_chunks_as_they_were(inserted: int) -> None:
    before = tokens(20_000, 2)
    after = [*before[:5000], *tokens(inserted, 3), *before[5000:]]

    def chunks(token_ids: list[int]) -> set[tuple[int, ...]]:
        ends = chunk_ends(token_ids, SIZES)
        return {tuple(token_ids[start:end]) for start, end in zip([0, *ends], ends, strict=False)}

    lost = chunks(before) - chunks(after)
    assert 1 <= len(lost) <= 6


def test_equal_tokens_do_not_make_chunks_of_the_least_size() -> None:
    assert chunk_ends([7] * 3000, SIZES) in ([1024, 2048, 3000], [*range(128, 3000, 128), 3000])
