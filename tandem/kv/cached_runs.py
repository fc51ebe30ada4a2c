"""What is published, as few rows as tell it: blocks that follow one another and have shared one fate."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tandem.kv.blocks import BlockState
from tandem.kv.contents import ContentIndex
from tandem.kv.records import LedgerRecords
from tandem.types import ContentKind


@dataclass(frozen=True, slots=True)
class CachedRun:
    """Blocks of a prompt, one behind the other, found equally often; nothing else begins within them.

    `first_ordinal` is the position of the first in the prompt; `key` names the last together with all before it.
    """

    namespace: bytes
    key: bytes
    first_ordinal: int
    num_blocks: int
    num_leased_blocks: int
    num_hits: int  # claims that got these blocks
    pinned: bool
    idle_s: float  # since the last of them was published or found
    kind: ContentKind = ContentKind.PROMPT


def cached_runs(records: LedgerRecords, contents: ContentIndex, now_s: float) -> tuple[CachedRun, ...]:
    """Every published block is in one run; those of a prompt stand in its order. Reads everything."""
    return tuple(_run(records, chain, now_s) for chain in _chains(records, contents))


def _chains(records: LedgerRecords, contents: ContentIndex) -> Iterator[list[int]]:
    """Depth first, the oldest branch first."""
    roots = [each for parent, found in contents.children.items() if parent not in contents.block_ids for each in found]
    begins = roots[::-1]
    while begins:
        chain = [begins.pop()]
        children = _children(records, contents, chain[-1])
        while len(children) == 1 and _alike(records, chain[-1], children[0]):
            chain += children
            children = _children(records, contents, chain[-1])
        begins += children[::-1]
        yield chain


def _children(records: LedgerRecords, contents: ContentIndex, block_id: int) -> list[int]:
    return list(contents.children.get(records.content_key(block_id), {}))


def _alike(records: LedgerRecords, block_id: int, other: int) -> bool:
    fates = records.blocks[["num_hits", "pinned"]]
    return bool(fates[block_id] == fates[other])


def _run(records: LedgerRecords, chain: list[int], now_s: float) -> CachedRun:
    first, last = records.blocks[chain[0]], records.blocks[chain[-1]]
    rows = records.blocks[chain]
    return CachedRun(
        namespace=records.namespace(chain[0]),
        key=records.content_key(chain[-1]),
        first_ordinal=int(first["ordinal"]),
        num_blocks=len(chain),
        num_leased_blocks=int(np.count_nonzero(rows["state"] == BlockState.LEASED)),
        num_hits=int(last["num_hits"]),
        pinned=bool(last["pinned"]),
        idle_s=max(0.0, now_s - float(rows["used_at_s"].max())),
        kind=records.kind(chain[0]),
    )
