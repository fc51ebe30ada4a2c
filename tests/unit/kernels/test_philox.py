"""Philox4x32-10 against the known answers that come with Random123 (kat_vectors)."""

import numpy as np
import pytest

from kernels.philox import philox4x32, uniforms

ALL_ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL_ONES,) * 4, (ALL_ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], answer: tuple[int, ...]) -> None:
    words = philox4x32(np.array([counter], dtype=np.uint32), np.array([key], dtype=np.uint32))
    assert tuple(words[0].tolist()) == answer


def test_rows_are_independent() -> None:
    counters = np.array([row[0] for row in KNOWN_ANSWERS], dtype=np.uint32)
    keys = np.array([row[1] for row in KNOWN_ANSWERS], dtype=np.uint32)
    assert [tuple(words) for words in philox4x32(counters, keys).tolist()] == [row[2] for row in KNOWN_ANSWERS]


def test_a_uniform_is_the_first_words_of_its_counter() -> None:
    words = philox4x32(np.array([[5, 1, 0, 0]], dtype=np.uint32), np.array([[7, 9]], dtype=np.uint32))[0]
    expected = (int(words[0]) * 2**32 + int(words[1])) / 2**64
    assert uniforms([7 + (9 << 32)], [5 + (1 << 32)])[0] == pytest.approx(expected, abs=2**-51)


def test_uniforms_are_uniform_and_open() -> None:
    draws = uniforms([3] * 100_000, range(100_000))
    assert 0.0 < draws.min() < draws.max() < 1.0
    counts = np.histogram(draws, bins=64, range=(0, 1))[0]
    chi_square = ((counts - 100_000 / 64) ** 2 / (100_000 / 64)).sum()
    assert chi_square < 103.4  # 63 degrees of freedom, one in a thousand


def test_seeds_and_positions_differ() -> None:
    seeds = [0, 1, 1 << 32, -1, (1 << 64) - 1]
    first = uniforms(seeds, [0] * 5)
    assert len(set(first.tolist())) == 4  # the last two have the same low 64 bits
    assert set(first.tolist()).isdisjoint(uniforms(seeds, [1] * 5).tolist())
