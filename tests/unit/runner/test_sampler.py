"""The sampler against exact probabilities, brute force in numpy, and transformers' processors."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from kernels.philox import uniforms
from kernels.token_filters import keep_likely
from tandem.runner.adjustments import adjust
from tandem.runner.sampler import Draw, SampledToken, sample
from tandem.types import SamplingSpec
from tests.support.paged_decoder import one_thread

GREEDY = SamplingSpec(temperature=0.0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def logits_of(num_rows: int, vocab_size: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, generator=generator) * spread


def draw(sampling: SamplingSpec, position: int = 0, **rest: Any) -> Draw:
    return Draw(sampling, position, **{"prompt_token_ids": (), "output_token_ids": (), **rest})


def ids(tokens: list[SampledToken]) -> list[int]:
    return [token.token_id for token in tokens]


def counts_of(row: torch.Tensor, sampling: SamplingSpec, num_draws: int) -> np.ndarray:
    draws = [draw(sampling, position) for position in range(num_draws)]
    return np.bincount(ids(sample(row.expand(num_draws, -1), draws)), minlength=row.numel())


# --- distribution


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_draws_follow_the_distribution(temperature: float, seed: int) -> None:
    row = logits_of(1, 12, spread=1.0)[0]
    counts = counts_of(row, SamplingSpec(temperature=temperature, seed=seed), 20_000)
    expected = (row.double() / temperature).softmax(0).numpy() * 20_000
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 31.3  # 11 degrees of freedom, one in a thousand


def test_filtered_draws_follow_the_renormalised_distribution() -> None:
    row = torch.tensor([0.4, 0.1, 0.3, 0.05, 0.15]).log()
    counts = counts_of(row, SamplingSpec(top_k=3, seed=5), 20_000)
    expected = np.array([0.4, 0.0, 0.3, 0.0, 0.15]) / 0.85 * 20_000
    kept = expected > 0
    assert not counts[~kept].any()
    assert ((counts - expected)[kept] ** 2 / expected[kept]).sum() < 13.8  # 2 degrees of freedom


# --- greedy


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = logits_of(5, 1000)
    assert ids(sample(logits, [draw(GREEDY)] * 5)) == logits.argmax(-1).tolist()


def test_greedy_rows_beside_drawn_ones() -> None:
    logits = logits_of(4, 50)
    draws = [draw(GREEDY), draw(SamplingSpec(seed=1), 3), draw(GREEDY), draw(SamplingSpec(seed=2), 4)]
    tokens = ids(sample(logits, draws))
    assert tokens[0::2] == logits.argmax(-1)[0::2].tolist()
    assert tokens[1:2] == ids(sample(logits[1:2], draws[1:2]))


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-44])
def test_the_lowest_temperatures_are_greedy(temperature: float) -> None:
    logits = logits_of(3, 1000) * 1000
    draws = [draw(SamplingSpec(temperature=temperature, seed=9), position) for position in range(3)]
    assert ids(sample(logits, draws)) == logits.argmax(-1).tolist()


# --- filters


def nucleus_by_force(probs: np.ndarray, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Each filter in turn over the ranked tokens; the rows that come here have no equals."""
    kept = np.argsort(-probs)
    if top_k > 0:
        kept = kept[:top_k]
    if top_p < 1.0:
        left = probs[kept].astype(np.float64) / probs[kept].astype(np.float64).sum()
        kept = kept[: int(np.searchsorted(left.cumsum(), top_p)) + 1]
    return {int(token) for token in kept if probs[token] >= min_p * probs.max()}


FILTERS = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 5000},
    {"top_p": 1e-6},
    {"top_p": 0.1},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 0.9999},
    {"min_p": 0.02},
    {"min_p": 1.0},
    {"top_k": 50, "top_p": 0.8},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.1},
]


@pytest.mark.parametrize("settings", FILTERS, ids=str)
@pytest.mark.parametrize("spread", [0.5, 2.0, 6.0])
def test_what_is_kept_equals_brute_force(settings: dict[str, Any], spread: float) -> None:
    logits = logits_of(3, 1500, spread=spread)
    probs = logits.softmax(-1)
    kept = keep_likely(probs, [SamplingSpec(**settings)] * 3)
    full = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, **settings}
    for row, before in zip(kept, probs, strict=True):
        assert set(row.nonzero()[:, 0].tolist()) == nucleus_by_force(before.numpy(), **full)
        assert torch.equal(row[row > 0], before[row > 0])


@pytest.mark.parametrize(
    ("settings", "warper"),
    [
        ({"top_k": 9}, transformers.TopKLogitsWarper(9)),
        ({"top_p": 0.7}, transformers.TopPLogitsWarper(0.7)),
        ({"min_p": 0.05}, transformers.MinPLogitsWarper(0.05)),
    ],
    ids=["top_k", "top_p", "min_p"],
)
def test_what_is_kept_equals_transformers(settings: dict[str, Any], warper: Any) -> None:
    logits = logits_of(4, 800)
    kept = keep_likely(logits.softmax(-1), [SamplingSpec(**settings)] * 4) > 0
    assert torch.equal(kept, warper(None, logits.clone()) > float("-inf"))


def test_equals_are_kept_together() -> None:
    probs = torch.tensor([[0.2, 0.3, 0.2, 0.2, 0.1]])
    for settings in ({"top_k": 2}, {"top_p": 0.4}):
        assert keep_likely(probs, [SamplingSpec(**settings)]).count_nonzero() == 4


def test_uniform_rows_keep_something() -> None:
    probs = torch.full((1, 49_152), 1 / 49_152)
    for top_p in (1e-12, 0.5, 0.999999):
        assert keep_likely(probs, [SamplingSpec(top_p=top_p)]).any()


def test_filters_are_each_row_s_own() -> None:
    probs = logits_of(3, 200).softmax(-1)
    kept = keep_likely(probs, [SamplingSpec(top_k=1), SamplingSpec(), SamplingSpec(top_k=5)])
    assert kept.count_nonzero(-1).tolist() == [1, 200, 5]


# --- the batch does not matter

MIXED = [
    draw(SamplingSpec(seed=11), 5),
    draw(SamplingSpec(seed=11, top_p=0.9), 6),
    draw(SamplingSpec(seed=12, top_k=40, temperature=0.7), 900),
    draw(SamplingSpec(seed=13, min_p=0.05, temperature=1.5), 0),
    draw(GREEDY, 3),
    draw(SamplingSpec(seed=14, presence_penalty=1.0), 8, output_token_ids=(1, 2, 2)),
    draw(SamplingSpec(seed=15, logprobs=True, num_top_logprobs=3), 9),
]


def test_a_token_does_not_depend_on_its_batch() -> None:
    logits = logits_of(len(MIXED), 49_152)
    together = sample(logits, MIXED)
    for index, expected in enumerate(together):
        assert sample(logits[index : index + 1], [MIXED[index]]) == [expected]
    order = [3, 0, 6, 2, 5, 1, 4]
    assert sample(logits[order], [MIXED[index] for index in order]) == [together[index] for index in order]


def test_a_token_depends_on_seed_and_position() -> None:
    row = logits_of(1, 49_152, spread=0.1)
    tokens = [
        ids(sample(row, [draw(SamplingSpec(seed=seed), position)]))[0] for seed in range(8) for position in range(8)
    ]
    assert len(set(tokens)) > 60


def test_logits_are_left_as_they_are() -> None:
    logits = logits_of(len(MIXED), 500)
    before = logits.clone()
    sample(logits, MIXED)
    assert torch.equal(logits, before)


# --- bias, penalties, bans


def adjusted(row: torch.Tensor, sampling: SamplingSpec, **rest: Any) -> torch.Tensor:
    result = row.clone()
    tokens = {"prompt_token_ids": (), "output_token_ids": (), "banned_token_ids": (), **rest}
    adjust(result, sampling, **tokens)
    return result


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_repetition_penalty_equals_transformers(penalty: float) -> None:
    row = logits_of(1, 60)[0]
    prompt, output = (3, 3, 8, 21), (8, 40, 59)
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([[*prompt, *output]]), row.clone()[None])[0]
    sampling = SamplingSpec(repetition_penalty=penalty)
    actual = adjusted(row, sampling, prompt_token_ids=prompt, output_token_ids=output)
    torch.testing.assert_close(actual, expected)
    assert not torch.equal(actual, row)


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}], ids=str)
def test_a_repetition_penalty_near_0_leaves_a_token_to_draw(settings: dict[str, Any]) -> None:
    logits = torch.full((1, 60), -1.0)
    logits[0, 7] = 5.0
    sampling = SamplingSpec(repetition_penalty=1e-40, **settings)
    assert ids(sample(logits, [draw(sampling, prompt_token_ids=(7, 8))])) == [7]


def test_presence_and_frequency_look_at_the_output_alone() -> None:
    row = torch.zeros(6)
    sampling = SamplingSpec(presence_penalty=0.5, frequency_penalty=0.25)
    actual = adjusted(row, sampling, prompt_token_ids=(0, 1), output_token_ids=(1, 4, 4, 4))
    torch.testing.assert_close(actual, torch.tensor([0, -0.75, 0, 0, -1.25, 0]))


def test_penalties_without_output_change_nothing() -> None:
    row = logits_of(1, 20)[0]
    assert torch.equal(adjusted(row, SamplingSpec(presence_penalty=1.0, frequency_penalty=1.0)), row)


def test_bias_comes_before_penalties_and_bans_last() -> None:
    row = torch.zeros(4)
    sampling = SamplingSpec(logit_bias={1: 4.0, 2: -4.0, 3: 100.0}, repetition_penalty=2.0)
    actual = adjusted(row, sampling, prompt_token_ids=(1, 2), banned_token_ids=(3,))
    assert actual.tolist() == [0.0, 2.0, -8.0, float("-inf")]


def test_a_banned_token_is_never_drawn() -> None:
    row = logits_of(1, 8, spread=0.2)
    best = int(row.argmax())
    for sampling in (GREEDY, SamplingSpec(seed=1)):
        draws = [draw(sampling, position, banned_token_ids=(best,)) for position in range(200)]
        assert best not in ids(sample(row.expand(200, -1), draws))


# --- log probabilities


def test_logprobs_are_of_the_model_s_own_distribution() -> None:
    logits = logits_of(2, 300)
    asking = SamplingSpec(temperature=0.5, top_k=2, presence_penalty=1.0, logprobs=True, num_top_logprobs=4, seed=3)
    draws = [draw(asking, 7, output_token_ids=(5,)), draw(replace(asking, num_top_logprobs=0), 7)]
    with_top, without = sample(logits, draws)
    exact = logits.double().log_softmax(-1)
    assert with_top.logprobs is not None
    assert without.logprobs is not None
    assert with_top.logprobs.logprob == pytest.approx(exact[0, with_top.token_id].item(), abs=1e-5)
    assert without.logprobs.logprob == pytest.approx(exact[1, without.token_id].item(), abs=1e-5)
    assert without.logprobs.top == ()
    best = exact[0].topk(4)
    assert [candidate.token_id for candidate in with_top.logprobs.top] == best.indices.tolist()
    assert [candidate.logprob for candidate in with_top.logprobs.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_logprobs_only_where_asked_for() -> None:
    (token,) = sample(logits_of(1, 30), [draw(GREEDY)])
    assert token.logprobs is None


@pytest.mark.parametrize("vocab_size", [1, 255, 256, 257, 1000])
def test_draws_invert_the_distribution_function_over_any_vocabulary(vocab_size: int) -> None:
    """Against numpy over the whole row, where most tokens have no probability at all."""
    logits = torch.randn(64, vocab_size, generator=torch.Generator().manual_seed(0)) * 3
    logits[:, 1::2] = float("-inf")
    draws = [Draw(SamplingSpec(temperature=1.0, seed=seed), seed, (), ()) for seed in range(64)]
    cumulative = np.cumsum(logits.double().softmax(-1).numpy(), axis=1)
    targets = uniforms(range(64), range(64)) * cumulative[:, -1]
    expected = [
        int(np.searchsorted(row, target, side="right")) for row, target in zip(cumulative, targets, strict=True)
    ]
    assert [token.token_id for token in sample(logits, draws)] == expected
