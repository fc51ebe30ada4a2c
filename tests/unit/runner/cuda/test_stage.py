"""A stage that was written step by step, with foresight, holds what one written at once does."""

import random
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.runner.cuda.buckets import Bucket
from tandem.runner.cuda.inputs import MAX_BANNED, packing_of
from tandem.runner.cuda.stage import DecodeRow, Stage
from tandem.types import SamplingSpec

BLOCK_SIZE = 4
BUCKET = Bucket(8, 64)
CPU = torch.device("cpu")


@dataclass(eq=False)
class Sequence:
    sampling: SamplingSpec
    position: int
    block_ids: list[int] = field(default_factory=list)

    def row(self) -> DecodeRow:
        banned = tuple(range(self.position % 3))
        return DecodeRow(self.block_ids, self.position, self.sampling, self.position + 1, banned)


def meaning(stage: Stage, num_rows: int) -> dict[str, object]:
    """All that a step reads: of tables and lists no more than counts."""
    arrays = {name: view.tolist() for name, view in packing_of(BUCKET).views(stage.buffer).items()}
    tables = [arrays["block_tables"][i][: -(-arrays["context_lens"][i] // BLOCK_SIZE)] for i in range(8)]
    banned = [arrays["banned_ids"][i][: arrays["num_banned"][i]] for i in range(8)]
    read = {name: values for name, values in arrays.items() if name not in ("block_tables", "banned_ids")}
    for name in ("draw_position", "seed", "top_p", "min_p"):  # of padding: finite, and nobody looks
        read[name] = read[name][:num_rows]
    return read | {"tables": tables, "banned": banned}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_foresight_changes_nothing(seed: int) -> None:
    chance = random.Random(seed)
    stages = [Stage(BUCKET, BLOCK_SIZE, CPU), Stage(BUCKET, BLOCK_SIZE, CPU)]
    running: list[Sequence] = []
    for step in range(25):
        running = [sequence for sequence in running if chance.random() > 0.1]
        while len(running) < 8 and (not running or chance.random() < 0.4):
            spec = SamplingSpec(temperature=chance.random(), top_k=chance.randrange(9), seed=chance.randrange(2**64))
            running.insert(chance.randrange(len(running) + 1), Sequence(spec, chance.randrange(30)))
        for sequence in running:
            while len(sequence.block_ids) * BLOCK_SIZE <= sequence.position:
                sequence.block_ids.append(chance.randrange(1000))
        rows, token_ids = [sequence.row() for sequence in running], [chance.randrange(99) for _ in running]
        at_once, stage = Stage(BUCKET, BLOCK_SIZE, CPU), stages[step % 2]
        for each in (at_once, stage):
            each.write(token_ids, rows)
        assert meaning(stage, len(rows)) == meaning(at_once, len(rows))
        stages[1 - step % 2].foresee([row.next for row in rows])
        for sequence in running:
            sequence.position += 1


def test_rows_whose_block_is_not_there_yet_are_not_foreseen() -> None:
    stage = Stage(BUCKET, BLOCK_SIZE, CPU)
    blocks = [5]
    stage.foresee([DecodeRow(blocks, 4, SamplingSpec(), 5, ())])
    blocks.append(9)
    stage.write([1], [DecodeRow(blocks, 4, SamplingSpec(), 5, ())])
    arrays = packing_of(BUCKET).views(stage.buffer)
    assert arrays["slot_mapping"].tolist() == [36, *[-1] * 7]
    assert arrays["block_tables"][0, :2].tolist() == [5, 9]


def test_blocks_that_do_not_cover_a_row_are_refused() -> None:
    stage = Stage(BUCKET, BLOCK_SIZE, CPU)
    with pytest.raises(ValueError, match="sequence 1 needs 3 blocks and has 2"):
        stage.write([1, 2], [DecodeRow([0], 3, SamplingSpec(), 4, ()), DecodeRow([1, 2], 8, SamplingSpec(), 9, ())])


def test_seeds_are_kept_to_the_bit() -> None:
    stage = Stage(BUCKET, BLOCK_SIZE, CPU)
    rows = [DecodeRow([index], 0, SamplingSpec(seed=seed), 1, ()) for index, seed in enumerate((0, 2**63, 2**64 - 1))]
    stage.write([0] * 3, rows)
    assert packing_of(BUCKET).views(stage.buffer)["seed"][:3].tolist() == [0, -(2**63), -1]
    assert MAX_BANNED >= 4
