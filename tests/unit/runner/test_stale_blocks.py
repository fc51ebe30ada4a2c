"""What lies in a block from before, another tenant's KV or anything else, reaches no answer."""

from collections.abc import Iterator
from random import Random

import pytest
import torch

from kernels.table import torch_kernels
from tandem.model.batch import SequenceRows, prepare_batch
from tandem.model.config import ModelConfig
from tandem.model.family import Decoder
from tandem.model.registry import get_family
from tests.support.paged_decoder import one_thread, pack_weights
from tests.support.tiny_models import NUM_TOKENS, tiny_model

BLOCK_SIZE, NUM_BLOCKS, NUM_LAYERS = 16, 12, 2
CONFIG = ModelConfig("llama", 64, 96, NUM_LAYERS, 4, 2, 16, NUM_TOKENS, 512, 1e-6, 1e4)
SHAPE = (NUM_LAYERS, 2, NUM_BLOCKS, BLOCK_SIZE, CONFIG.num_kv_heads, CONFIG.head_dim)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    theirs = tiny_model("llama", num_hidden_layers=NUM_LAYERS, attn_implementation="eager")
    return get_family("llama").build(
        CONFIG, pack_weights(CONFIG, theirs.state_dict().__getitem__, torch.float32), torch_kernels()
    )


def text(count: int, seed: int) -> list[int]:
    return Random(seed).choices(range(3, NUM_TOKENS), k=count)


def answer(decoder: Decoder, kv_cache: torch.Tensor, seed: int, blocks: list[int]) -> torch.Tensor:
    """Logits of a prompt in two chunks that end within a block, and of tokens one by one."""
    token_ids = text(45, seed)
    logits, start = [], 0
    for end in (21, 40, *range(41, 46)):
        batch = prepare_batch([SequenceRows(token_ids[start:end], start, blocks)], BLOCK_SIZE)
        logits.append(decoder.logits(decoder.hidden_states(batch, kv_cache)))
        start = end
    return torch.cat(logits)


@pytest.mark.parametrize("left_behind", ["another's KV", "NaN"])
def test_freed_blocks_are_read_by_nobody(decoder: Decoder, left_behind: str) -> None:
    blocks = [7, 2, 9]
    clean = answer(decoder, torch.zeros(SHAPE), 1, blocks)
    used = torch.zeros(SHAPE)
    answer(decoder, used, 2, [9, 7, 2])  # has ended; its blocks are given to the next
    if left_behind == "NaN":
        used.fill_(float("nan"))
    assert torch.equal(answer(decoder, used, 1, blocks), clean)


def test_the_poison_would_be_seen(decoder: Decoder) -> None:
    """A row of the context that is NaN is read."""
    kv_cache = torch.zeros(SHAPE)
    token_ids = text(20, 1)
    decoder.hidden_states(prepare_batch([SequenceRows(token_ids[:19], 0, [3, 4])], BLOCK_SIZE), kv_cache)
    kv_cache[:, :, 3, 5] = float("nan")
    batch = prepare_batch([SequenceRows(token_ids[19:], 19, [3, 4])], BLOCK_SIZE)
    assert decoder.logits(decoder.hidden_states(batch, kv_cache)).isnan().any()
