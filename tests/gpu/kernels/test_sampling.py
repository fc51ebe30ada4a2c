"""The sampling kernels against the sampler of the torch path, token by token."""

import random
from collections.abc import Sequence

import pytest
import torch

from kernels.draw_tokens import draw_tokens as reference
from kernels.gpu.draw_tokens import draw_tokens
from kernels.gpu.sample_tokens import sample_tokens
from kernels.gpu.sampling_rows import IN_PROMPT, RowRequest, mark_seen, pack_rows
from kernels.philox import uniforms
from tandem.runner.sampler import Draw, sample
from tandem.types import SamplingSpec

pytestmark = pytest.mark.gpu

VOCAB = 4096 + 905  # two chunks, the second in part


def random_draw(rng: random.Random) -> Draw:
    penalised, biased = rng.random() < 0.4, rng.random() < 0.4
    sampling = SamplingSpec(
        temperature=rng.choice([0.0, 0.3, 1.0, 1.7]),
        top_p=rng.choice([1.0, 0.9, 0.2]),
        top_k=rng.choice([0, 1, 50, VOCAB + 7]),
        min_p=rng.choice([0.0, 0.05]),
        repetition_penalty=1.3 if penalised else 1.0,
        presence_penalty=0.5 if penalised else 0.0,
        frequency_penalty=-0.2 if penalised else 0.0,
        seed=rng.getrandbits(64),
        logit_bias={5: 3.5, VOCAB - 1: -2.0} if biased else {},
    )
    prompt = [rng.randrange(VOCAB) for _ in range(40)]
    output = [rng.randrange(60) for _ in range(30)]
    banned = [rng.randrange(VOCAB) for _ in range(rng.choice([0, 3]))]
    return Draw(sampling, rng.randrange(2**40), prompt, output, banned)


def penalises(sampling: SamplingSpec) -> bool:
    return sampling.repetition_penalty != 1.0


def sample_on(device: torch.device, logits: torch.Tensor, draws: Sequence[Draw]) -> tuple[list[int], torch.Tensor]:
    """Tokens, and the table of seen tokens after them."""
    seen = torch.zeros(len(draws), VOCAB, dtype=torch.int32, device=device)
    requests = []
    for index, draw in enumerate(draws):
        row = len(draws) - 1 - index if penalises(draw.sampling) else -1
        mark_seen(seen[row], draw.prompt_token_ids, draw.output_token_ids)
        requests.append(RowRequest(draw.sampling, draw.position, draw.banned_token_ids, row))
    rows = pack_rows(requests, seen, max_biased=4, max_banned=5)
    on_device = logits.to(device)
    token_ids = sample_tokens(on_device, rows).tolist()
    assert torch.equal(on_device.cpu(), logits)
    return token_ids, seen.cpu()


@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_the_samplers(device: torch.device, seed: int) -> None:
    rng = random.Random(seed)
    logits = torch.randn(8, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    draws = [random_draw(rng) for _ in range(8)]
    token_ids, _ = sample_on(device, logits, draws)
    assert token_ids == [drawn.token_id for drawn in sample(logits, draws)]


def test_equal_logits_are_kept_together_and_the_first_is_the_likeliest(device: torch.device) -> None:
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(0)).bfloat16().float()  # full of ties
    greedy = [Draw(SamplingSpec(temperature=0.0), 1, [], []) for _ in range(2)]
    cut = [Draw(SamplingSpec(temperature=1.0, top_k=20, seed=seed), 9, [], []) for seed in range(4)]
    logits[0, [3, 4999]] = 9.0
    logits[1, [4999, 4100]] = 9.0
    token_ids, _ = sample_on(device, logits, greedy + cut)
    assert token_ids[:2] == [3, 4100]
    assert token_ids == [drawn.token_id for drawn in sample(logits, greedy + cut)]


def test_drawn_tokens_are_counted(device: torch.device) -> None:
    draws = [Draw(SamplingSpec(temperature=0.0, repetition_penalty=1.1), 2, [7], [5, 5]) for _ in range(2)]
    logits = torch.zeros(2, VOCAB)
    logits[0, 5], logits[1, 4999] = 50.0, 50.0
    token_ids, seen = sample_on(device, logits, draws)
    assert token_ids == [5, 4999]
    assert seen[1, 5] == 3  # the first row's, as `sample_on` deals them out
    assert (seen[0, 5], seen[0, 4999], seen[0, 7]) == (2, 1, IN_PROMPT)


def test_a_cut_row_draws_by_the_reference_number(device: torch.device) -> None:
    """Two tokens of equal weight: the first where the number is below one half."""
    logits = torch.full((16, VOCAB), -1e9)
    logits[:, 17] = logits[:, 4800] = 0.0
    draws = [Draw(SamplingSpec(temperature=1.0, seed=2**63 + seed), 2**33 + 5, [], []) for seed in range(16)]
    numbers = uniforms([draw.sampling.seed for draw in draws], [draw.position for draw in draws])
    token_ids, _ = sample_on(device, logits, draws)
    assert token_ids == [17 if number < 0.5 else 4800 for number in numbers]


def test_the_sets_draw_looks_at_nothing_else(device: torch.device) -> None:
    rng = random.Random(3)
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(3)) * 2
    draws = [random_draw(rng) for _ in range(5)]
    samplings, positions = [draw.sampling for draw in draws], [draw.position for draw in draws]
    assert draw_tokens(logits.to(device), samplings, positions) == reference(logits, samplings, positions)


def test_a_penalty_near_0_leads_to_the_samplers_token(device: torch.device) -> None:
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(4))
    logits[:, 7] = 5.0
    draws = [Draw(SamplingSpec(repetition_penalty=1e-40, seed=seed), 3, [7], []) for seed in range(4)]
    token_ids, _ = sample_on(device, logits, draws)
    assert token_ids == [drawn.token_id for drawn in sample(logits, draws)] == [7] * 4


@pytest.mark.parametrize("first", [0, 4096], ids=["all", "the last chunk"])
def test_a_token_is_named_even_where_there_is_no_number(device: torch.device, first: int) -> None:
    logits = torch.zeros(4, VOCAB, device=device)
    logits[:, first:] = float("nan")
    samplings = [SamplingSpec(temperature=0.0), SamplingSpec(), SamplingSpec(top_k=3), SamplingSpec(top_p=0.5)]
    assert all(0 <= token_id < max(first, 1) for token_id in draw_tokens(logits, samplings, range(4)))


def test_too_many_biased_tokens_are_refused() -> None:
    request = RowRequest(SamplingSpec(logit_bias={1: 1.0, 2: 1.0}), 0)
    with pytest.raises(ValueError, match="2 tokens"):
        pack_rows([request], torch.zeros(1, 8, dtype=torch.int32), max_biased=1, max_banned=0)
