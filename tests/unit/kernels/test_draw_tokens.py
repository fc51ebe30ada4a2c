"""Draws of each set of kernels against exact probabilities in numpy."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels.draw_tokens import DrawTokens
from kernels.philox import uniforms
from tandem.types import SamplingSpec
from tests.support.kernel_sets import KERNEL_SETS, NATIVE_SETS, kernel_set
from tests.support.paged_decoder import num_threads

EDGE = 4e-6  # of a distribution function in float32: whoever is hit so near to an edge may lose to the neighbour
GREEDY = SamplingSpec(temperature=0.0)
SETTINGS = [
    SamplingSpec(),
    SamplingSpec(temperature=0.8),
    SamplingSpec(temperature=0.05),
    SamplingSpec(temperature=1e-44),
    SamplingSpec(temperature=3.0),
    SamplingSpec(top_k=1),
    SamplingSpec(top_k=40),
    SamplingSpec(top_k=900),
    SamplingSpec(top_k=10**6),
    SamplingSpec(top_p=1e-9),
    SamplingSpec(top_p=0.5),
    SamplingSpec(top_p=0.95),
    SamplingSpec(top_p=0.9999),
    SamplingSpec(min_p=0.05),
    SamplingSpec(min_p=1.0),
    SamplingSpec(temperature=0.8, top_k=40, top_p=0.95),
    SamplingSpec(temperature=1.5, top_k=300, top_p=0.9, min_p=0.01),
    SamplingSpec(temperature=1.3, top_p=0.8, min_p=0.02),
]


@pytest.fixture(scope="module", params=KERNEL_SETS)
def draw_tokens(request: pytest.FixtureRequest) -> DrawTokens:
    return kernel_set(request.param).draw_tokens


@pytest.fixture(scope="module", params=NATIVE_SETS)
def native(request: pytest.FixtureRequest) -> DrawTokens:
    return kernel_set(request.param).draw_tokens


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    with num_threads(2):
        yield


def logits_of(num_rows: int, vocab_size: int, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocab_size)
    return torch.randn(num_rows, vocab_size, generator=generator) * spread


def kept_by_force(probs: np.ndarray, sampling: SamplingSpec) -> np.ndarray:
    """Probabilities with each filter's rest at 0; no two are equal."""
    order = np.argsort(-probs)
    if sampling.top_k > 0:
        order = order[: sampling.top_k]
    if sampling.top_p < 1.0:
        share = probs[order].cumsum() / probs[order].sum()
        order = order[: int(np.searchsorted(share, sampling.top_p)) + 1]
    kept = np.zeros_like(probs)
    kept[order] = probs[order]
    return np.where(kept >= sampling.min_p * probs.max(), kept, 0.0)


def acceptable(logits: torch.Tensor, sampling: SamplingSpec, position: int) -> set[int]:
    """Whose part of the distribution function the uniform number hits: one token, or both at an edge."""
    exact = logits.double().numpy() / np.float64(np.float32(sampling.temperature))
    probs = np.exp(exact - exact.max())
    ends = kept_by_force(probs, sampling).cumsum()
    target = uniforms([sampling.seed], [position])[0]
    around = np.clip([target - EDGE, target, target + EDGE], 0.0, np.nextafter(1.0, 0.0)) * ends[-1]
    return {int(token) for token in np.searchsorted(ends, around, side="right")}


@pytest.mark.parametrize("vocab_size", [1, 5, 63, 64, 65, 1000, 4099])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_a_token_is_where_the_distribution_function_passes(
    draw_tokens: DrawTokens, vocab_size: int, spread: float
) -> None:
    samplings = [replace(each, seed=number) for number, each in enumerate(SETTINGS * 4)]
    logits = logits_of(len(samplings), vocab_size, spread)
    token_ids = draw_tokens(logits, samplings, range(len(samplings)))
    for position, (row, sampling, token_id) in enumerate(zip(logits, samplings, token_ids, strict=True)):
        assert token_id in acceptable(row, sampling, position), sampling


def test_the_numbers_are_philox_s(draw_tokens: DrawTokens) -> None:
    """Over equals the token tells the uniform number."""
    seeds, positions = [0, 1, 2**32, 2**63, 2**64 - 1, -1] * 4, [*range(23), 2**33]
    samplings = [SamplingSpec(seed=seed) for seed in seeds]
    token_ids = draw_tokens(torch.zeros(24, 4096), samplings, positions)
    assert np.abs(np.array(token_ids) - uniforms(seeds, positions) * 4096 + 0.5).max() < 0.51


def test_the_likeliest_is_the_first_of_equals(draw_tokens: DrawTokens) -> None:
    logits = logits_of(6, 3000)
    best = logits.amax(-1, keepdim=True)
    places = torch.tensor([[2999, 17], [64, 63], [1500, 128], [0, 2999], [700, 701], [2047, 2048]])
    logits.scatter_(1, places, (best + 1.0).expand(-1, 2))
    assert draw_tokens(logits, [GREEDY] * 6, [0] * 6) == places.amin(-1).tolist()


def test_every_kind_of_row_beside_every_other(draw_tokens: DrawTokens) -> None:
    """A token is its row's alone: in another batch, in another order, with another number of threads."""
    samplings = [replace(each, seed=number) for number, each in enumerate([GREEDY, *SETTINGS])]
    positions = range(100, 100 + len(samplings))
    logits = logits_of(len(samplings), 49_152)
    together = draw_tokens(logits, samplings, positions)
    with num_threads(1):
        alone = [
            draw_tokens(logits[i : i + 1], samplings[i : i + 1], positions[i : i + 1]) for i in range(len(together))
        ]
        backwards = draw_tokens(logits.flip(0), samplings[::-1], positions[::-1])
    assert [token_id for (token_id,) in alone] == together
    assert backwards == together[::-1]


def test_what_has_no_probability_is_never_drawn(draw_tokens: DrawTokens) -> None:
    logits = logits_of(1, 700, spread=0.1)
    logits[:, ::2] = float("-inf")
    logits[:, :300] = float("-inf")
    for sampling in (SamplingSpec(), SamplingSpec(top_p=0.9999), SamplingSpec(min_p=1e-3), SamplingSpec(top_k=650)):
        token_ids = draw_tokens(logits.expand(400, -1), [sampling] * 400, range(400))
        assert all(token_id > 300 and token_id % 2 for token_id in token_ids)


def test_equals_are_kept_together(draw_tokens: DrawTokens) -> None:
    logits = torch.tensor([[0.2, 0.3, 0.2, 0.2, 0.1]]).log().expand(200, -1)
    for sampling in (SamplingSpec(top_k=2), SamplingSpec(top_p=0.4)):
        assert set(draw_tokens(logits, [sampling] * 200, range(200))) == {0, 1, 2, 3}


def test_logits_stay_as_they_are_and_may_lie_apart(draw_tokens: DrawTokens) -> None:
    wide = logits_of(3, 2000)
    before, logits = wide.clone(), wide[:, 100:1100]
    samplings = [GREEDY, SamplingSpec(seed=1), SamplingSpec(seed=2, top_k=5)]
    assert draw_tokens(logits, samplings, [1, 2, 3]) == draw_tokens(logits.clone(), samplings, [1, 2, 3])
    assert torch.equal(wide, before)


def test_native_reads_no_further_than_its_rows(native: DrawTokens) -> None:
    wide = torch.full((3, 64 + 77 + 64), float("inf"))
    wide[:, 64 : 64 + 77] = logits_of(3, 77)
    logits = wide[:, 64 : 64 + 77]
    samplings = [GREEDY, SamplingSpec(seed=1), SamplingSpec(seed=2, top_p=0.9)]
    assert native(logits, samplings, [1, 2, 3]) == native(logits.clone(), samplings, [1, 2, 3])


def test_a_token_is_named_even_where_there_is_no_number(draw_tokens: DrawTokens) -> None:
    logits = torch.full((12, 130), float("nan"))
    logits[4:8] = float("-inf")
    logits[8:, 3:] = 0.0
    samplings = [GREEDY, SamplingSpec(), SamplingSpec(top_k=3), SamplingSpec(top_p=0.5)] * 3
    assert all(0 <= token_id < 130 for token_id in draw_tokens(logits, samplings, range(12)))


def test_native_refuses_what_it_would_misread(native: DrawTokens) -> None:
    for logits in (torch.zeros(2, 8).double(), torch.zeros(8, 2).T):
        with pytest.raises(TypeError, match="float32"):
            native(logits, [GREEDY] * 2, [0, 0])
