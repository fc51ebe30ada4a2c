"""A decoder with a paged cache of its own, driven step by step: what a phase does, without the services."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

from tandem.model.batch import SequenceRows, prepare_batch
from tandem.model.config import ModelConfig
from tandem.model.family import Decoder
from tandem.model.registry import get_family


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """torch computes with so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def one_thread() -> AbstractContextManager[None]:
    """The tests share the machine."""
    return num_threads(1)


def pack_weights(
    config: ModelConfig, checkpoint: Callable[[str], torch.Tensor], dtype: torch.dtype
) -> Mapping[str, torch.Tensor]:
    """Every parameter of the family, from the checkpoint tensors that its table names."""
    weights = {}
    for parameter in get_family(config.family).parameters(config):
        packed = torch.cat([checkpoint(source).detach() for source in parameter.sources])
        assert packed.shape == parameter.shape, parameter
        weights[parameter.name] = packed.to(dtype)
    return weights


class PagedDecoder:
    """Each sequence has a fixed set of blocks, dealt out in turns so that none lie in order."""

    def __init__(
        self, config: ModelConfig, decoder: Decoder, *, num_sequences: int, max_tokens: int, dtype: torch.dtype
    ) -> None:
        self.block_size = 16
        blocks_each = -(-max_tokens // self.block_size)
        num_blocks = blocks_each * num_sequences
        shape = (config.num_layers, 2, num_blocks, self.block_size, config.num_kv_heads, config.head_dim)
        self.kv_cache = torch.full(shape, float("nan"), dtype=dtype)
        self.decoder = decoder
        self.block_ids = [list(range(num_blocks - 1 - index, -1, -num_sequences)) for index in range(num_sequences)]

    def rows(self, sequence: int, token_ids: Sequence[int], start: int) -> SequenceRows:
        return SequenceRows(token_ids, start, self.block_ids[sequence])

    def step(self, rows: Sequence[SequenceRows]) -> list[torch.Tensor]:
        """Logits of every row, ``[len(token_ids), vocab_size]`` for each sequence."""
        batch = prepare_batch(rows, self.block_size)
        logits = self.decoder.logits(self.decoder.hidden_states(batch, self.kv_cache))
        return list(logits.split([len(row.token_ids) for row in rows]))

    def whole(self, sequence: int, token_ids: Sequence[int]) -> torch.Tensor:
        return self.step([self.rows(sequence, token_ids, 0)])[0]

    def chunked(self, sequence: int, token_ids: Sequence[int], chunk: int) -> torch.Tensor:
        pieces = []
        for start in range(0, len(token_ids), chunk):
            pieces += self.step([self.rows(sequence, token_ids[start : start + chunk], start)])
        return torch.cat(pieces)
