"""Greedy tokens of a small model on the device against the processor's."""

import torch

from bench.gpu.bench import Bench
from bench.gpu.subject import BLOCK_SIZE, GREEDY, open_steps, random_weights
from kernels.table import torch_kernels
from tandem.model.batch import SequenceRows
from tandem.model.config import ModelConfig
from tandem.model.registry import get_family
from tandem.runner.cuda.graphs import StepStream
from tandem.runner.model_runner import ModelRunner
from tandem.runner.sampler import Draw, sample
from tandem.runner.steps import LogitsThenDraws, StepRunner

SMALL = ModelConfig("llama", 256, 512, 4, 8, 2, 64, 2000, 512, 1e-5, 1e4)
NUM_PROMPT, NUM_NEW = 40, 64
NOISE = 0.05  # of logits whose products are rounded to bfloat16


def tokens_of(steps: StepRunner) -> list[int]:
    """A prompt's 64 next."""
    token_ids = [(index * 37 + 11) % SMALL.vocab_size for index in range(NUM_PROMPT)]
    block_ids, done = list(range(16)), 0
    for _ in range(NUM_NEW):
        draw = Draw(GREEDY, len(token_ids), (), ())
        (token,) = steps.execute([SequenceRows(token_ids[done:], done, block_ids)], [draw])
        done = len(token_ids)
        if token is not None:
            token_ids.append(token.token_id)
    return token_ids[NUM_PROMPT:]


def greedy(bench: Bench) -> None:
    """The number of equal tokens, and how near the two likeliest were where they part."""
    weights = random_weights(SMALL, torch.device("cpu"))
    shape = (SMALL.num_layers, 2, 16, BLOCK_SIZE, SMALL.num_kv_heads, SMALL.head_dim)
    here = ModelRunner(
        get_family(SMALL.family).build(SMALL, {name: each.float() for name, each in weights.items()}, torch_kernels()),
        torch.zeros(shape),
        BLOCK_SIZE,
    )
    theirs = tokens_of(LogitsThenDraws(here, sample))
    cache = torch.zeros(shape, dtype=torch.bfloat16, device=bench.device)
    moved = {name: each.to(bench.device) for name, each in weights.items()}
    ours = tokens_of(open_steps(SMALL, moved, cache, StepStream()))
    equal = next((index for index in range(NUM_NEW) if ours[index] != theirs[index]), NUM_NEW)
    bench.record("equal_tokens", equal)
    if equal < NUM_NEW:
        prompt = [(index * 37 + 11) % SMALL.vocab_size for index in range(NUM_PROMPT)]
        logits = here.execute([SequenceRows([*prompt, *theirs[:equal]], 0, list(range(16)))])[0]
        apart = float(logits[theirs[equal]] - logits[ours[equal]]) / float(logits.std())
        bench.record("apart_in_deviations", apart)
        bench.record("is_tie", apart < NOISE)
