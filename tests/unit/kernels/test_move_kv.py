"""Moved keys against keys turned to their new positions at once; and what rows look at, from the definition."""

from collections.abc import Iterator

import pytest
import torch

from kernels.attention_mass import attention_mass
from kernels.rotary import apply_rotary, inverse_frequencies, rotary_table
from tests.support.attention_cases import PagedStep, Sequence64, sequences_of
from tests.support.kernel_sets import KERNEL_SETS, kernel_set
from tests.support.paged_decoder import one_thread

HEAD_DIM, NUM_KV_HEADS, BLOCK_SIZE, NUM_BLOCKS = 24, 3, 5, 12


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_moved_keys_are_those_of_the_new_positions(name: str) -> None:
    kernels, generator = kernel_set(name), torch.Generator().manual_seed(0)
    raw = torch.randn(2, 2, 7, NUM_KV_HEADS, HEAD_DIM, generator=generator)
    frequencies = inverse_frequencies(HEAD_DIM, 1e4)
    old, new = torch.arange(3, 10), torch.tensor([800, 801, 802, 1, 2, 3, 4])
    sources, targets = torch.tensor([0, 11, 12, 13, 55, 7, 8]), torch.tensor([20, 21, 22, 40, 30, 59, 1])
    cache = torch.full((2, 2, NUM_BLOCKS, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM), float("nan"), dtype=torch.bfloat16)
    slots = cache.flatten(2, 3)
    for layer in range(2):
        slots[layer, 0, sources] = apply_rotary(raw[layer, 0], rotary_table(frequencies, old)).bfloat16()
    slots[:, 1, sources] = raw[:, 1].bfloat16()
    before = slots.clone()
    kernels.move_kv(cache, sources, targets, rotary_table(frequencies, new - old))
    for layer in range(2):
        exact = apply_rotary(raw[layer, 0], rotary_table(frequencies, new))
        torch.testing.assert_close(slots[layer, 0, targets].float(), exact, atol=3e-2, rtol=2e-2)
    assert torch.equal(slots[:, 1, targets], raw[:, 1].bfloat16())
    assert torch.equal(slots[:, :, sources], before[:, :, sources])
    untouched = torch.ones(NUM_BLOCKS * BLOCK_SIZE, dtype=torch.bool)
    untouched[torch.cat((sources, targets))] = False
    assert bool(slots[:, :, untouched].isnan().all())


@pytest.mark.parametrize("sliding_window", [None, 9])
def test_attention_mass_from_the_definition(sliding_window: int | None) -> None:
    (whole,) = sequences_of([(50, 50)])
    step, positions = PagedStep([whole], 7), [4, 30, 49]
    slots = step.slots(step.block_tables[0], torch.arange(50))
    scale = whole.query.shape[-1] ** -0.5
    mass = attention_mass(
        step.query[positions],
        step.key_cache,
        slots,
        torch.tensor(positions),
        scale=scale,
        sliding_window=sliding_window,
    )
    expected = sum(weights(whole, position, scale, sliding_window) for position in positions) / len(positions)
    torch.testing.assert_close(mass.double(), expected)
    assert float(mass.sum()) == pytest.approx(1.0)


def weights(whole: Sequence64, position: int, scale: float, sliding_window: int | None) -> torch.Tensor:
    """One row's, the mean of its heads: ``[num_keys]``."""
    first = 0 if sliding_window is None else max(0, position - sliding_window + 1)
    total = torch.zeros(len(whole.key), dtype=torch.float64)
    num_heads, num_kv_heads = whole.query.shape[1], whole.key.shape[1]
    for head in range(num_heads):
        keys = whole.key[first : position + 1, head * num_kv_heads // num_heads]
        total[first : position + 1] += (keys @ whole.query[position, head] * scale).softmax(0)
    return total / num_heads
