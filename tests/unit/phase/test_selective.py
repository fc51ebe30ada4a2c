"""The rows of a prompt that takes parts of its KV from entries, counted and in order."""

from dataclasses import replace

import numpy as np

from tandem.kv.contents import block_keys
from tandem.phase.selective import SelectivePrefill, entries_of, outcomes, plan_selective
from tandem.reuse.plan import ReusePolicy
from tandem.types import Block, SegmentOutcome, SegmentReuse, Span

BLOCK_SIZE = 4
TOKENS = list(range(100, 130))
REUSE = SegmentReuse(0.5, (Span(3, 12), Span(14, 20)), b"segments", 7)
POLICY = ReusePolicy(ratio=0.5, head_tokens=1, min_reused_tokens=4, max_computed_share=1.0)
BLOCKS = (tuple(Block(10 + n, 1) for n in range(2)), (Block(20, 1),))
BLOCK_IDS = list(range(40, 48))


def planned(num_exact: int = 0, policy: ReusePolicy = POLICY) -> SelectivePrefill:
    wanted = entries_of(TOKENS, REUSE, BLOCK_SIZE)
    entries = [replace(entry, blocks=blocks) for entry, blocks in zip(wanted, BLOCKS, strict=True)]
    selective = plan_selective(len(TOKENS), num_exact, entries, policy, BLOCK_SIZE)
    assert selective is not None
    return selective


def positions(selective: SelectivePrefill, num_rows: int) -> list[int]:
    rows = selective.rows(TOKENS, BLOCK_IDS, num_rows)
    assert [TOKENS[position] for position in rows.at] == list(rows.token_ids)
    assert rows.block_ids is BLOCK_IDS
    return list(rows.at)


def test_an_entrys_keys_are_those_of_its_own_tokens_behind_the_first() -> None:
    first, second = entries_of(TOKENS, REUSE, BLOCK_SIZE)
    assert first.keys == block_keys(b"segments", [7, *range(103, 112)], BLOCK_SIZE)
    assert (len(first.keys), len(second.keys)) == (2, 1)


def test_every_copy_is_of_whole_blocks_without_their_first_token() -> None:
    copies = planned().copies(BLOCK_IDS)
    assert [(copy.placement.start, copy.placement.skip, copy.placement.num_tokens) for copy in copies] == [
        (3, 0, 7),
        (14, 0, 3),
    ]
    assert [copy.entry_block_ids for copy in copies] == [[10, 11], [20]]
    assert planned().blocks == (*BLOCKS[0], *BLOCKS[1])


def test_rows_go_to_the_probe_and_then_to_the_model_until_none_is_left() -> None:
    selective = planned()
    fresh = [*range(3), 10, 11, 12, 13, *range(17, 30)]
    assert (selective.num_next_rows, selective.num_rows) == (20, 20 + 20 + 2 + 5)
    assert (selective.num_complete_tokens, selective.num_exact_tokens) == (0, 3)
    assert positions(selective, 8) == fresh[:8]
    assert selective.num_asking(8) == 8 - 7  # the question is from 17 on
    selective.advance(8, np.zeros(18, dtype=np.float32))
    assert (selective.num_asking(12), selective.num_rows) == (12, 12 + 27)
    scores = np.zeros(30, dtype=np.float32)
    scores[[5, 9, 16, 6, 7]] = 1.0
    selective.advance(12, scores)
    chosen = sorted({*fresh, 3, 14, 5, 9, 16, 6, 7})
    assert selective.num_asking(4) is None
    assert positions(selective, 27) == chosen
    assert (selective.num_next_rows, selective.num_rows, selective.num_complete_tokens) == (27, 27, 0)
    selective.advance(4, None)
    assert selective.num_complete_tokens == 5  # position 4 stays as it was placed
    selective.advance(23, None)
    assert (selective.num_rows, selective.num_complete_tokens) == (0, 30)
    assert selective.approximate_positions() == {4, 8, 15}


def test_scores_of_a_probes_steps_add_up() -> None:
    selective = planned()
    early, late = np.zeros(18, dtype=np.float32), np.zeros(30, dtype=np.float32)
    early[[9, 8]], late[[5, 8]] = [3.0, 1.0], [1.5, 2.5]
    selective.advance(8, early)
    selective.advance(12, late)
    assert {9, 8, 5} <= set(positions(selective, 27))


def test_with_nothing_to_choose_there_is_no_probe() -> None:
    selective = planned(policy=replace(POLICY, ratio=0.0))
    assert selective.num_asking(1) is None
    assert selective.num_rows == 20 + 2


def test_an_exact_prefix_takes_the_place_of_what_it_covers() -> None:
    selective = planned(num_exact=5)
    assert (selective.num_exact_tokens, selective.num_complete_tokens) == (5, 5)
    (first, _) = selective.copies(BLOCK_IDS)
    assert (first.placement.start, first.placement.skip, first.placement.num_tokens) == (5, 2, 5)


def test_what_came_of_spans_sums_up_to_them() -> None:
    entries = entries_of(TOKENS, REUSE, BLOCK_SIZE)
    found = [replace(entries[0], blocks=BLOCKS[0]), entries[1]]
    assert outcomes(REUSE.spans, found, 5, {6, 7, 25}) == (
        SegmentOutcome(2, 2, 5, found=True),
        SegmentOutcome(0, 0, 6, found=False),
    )
