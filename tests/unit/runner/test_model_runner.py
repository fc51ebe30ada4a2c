"""The runner with a decoder that says what it was given."""

import pytest
import torch

from tandem.model.batch import ForwardBatch, SequenceRows
from tandem.runner.model_runner import ModelRunner
from tandem.runner.steps import TokenCopy


class EchoDecoder:
    """Hidden state and logits of a row are its token id; each row's slot is marked in the cache."""

    def __init__(self) -> None:
        self.num_logit_rows = 0

    def hidden_states(self, batch: ForwardBatch, kv_cache: torch.Tensor) -> torch.Tensor:
        kv_cache.view(-1)[batch.slot_mapping] = 1.0
        return batch.token_ids[:, None].float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.num_logit_rows = len(hidden)
        return hidden.expand(-1, 3)


def test_logits_of_each_sequence_s_last_row_alone() -> None:
    decoder, kv_cache = EchoDecoder(), torch.zeros(1, 1, 8, 4, 1, 1)
    runner = ModelRunner(decoder, kv_cache, block_size=4)
    rows = [SequenceRows([5, 6, 7], 2, [3, 1]), SequenceRows((9,), 0, (0,)), SequenceRows([2, 4], 0, [6])]
    logits = runner.execute(rows)
    assert logits.tolist() == [[7.0] * 3, [9.0] * 3, [4.0] * 3]
    assert decoder.num_logit_rows == 3
    assert kv_cache.view(-1).nonzero()[:, 0].tolist() == [0, 4, 14, 15, 24, 25]


def test_the_beginning_of_a_block_is_copied_in_all_layers() -> None:
    kv_cache = torch.arange(2 * 2 * 8 * 4, dtype=torch.float32).view(2, 2, 8, 4, 1, 1)
    before = kv_cache.clone()
    ModelRunner(EchoDecoder(), kv_cache, block_size=4).copy_tokens([TokenCopy(6, 1, 3), TokenCopy(2, 0, 1)])
    assert torch.equal(kv_cache[:, :, 1, :3], before[:, :, 6, :3])
    assert torch.equal(kv_cache[:, :, 0, :1], before[:, :, 2, :1])
    assert torch.equal(kv_cache[:, :, 1, 3:], before[:, :, 1, 3:])
    assert torch.equal(kv_cache[:, :, 2:], before[:, :, 2:])


def test_no_sequences_are_refused() -> None:
    runner = ModelRunner(EchoDecoder(), torch.zeros(1, 1, 8, 4, 1, 1), block_size=4)
    with pytest.raises(ValueError, match="sequences"):
        runner.execute([])
