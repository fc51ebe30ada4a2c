"""A model small enough to be obviously right: what it says depends on every token before, through the slots of the
KV cache that both phases share.
"""

import asyncio
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tandem.model.batch import SequenceRows
from tandem.reuse.plan import Scores
from tandem.runner.sampler import Draw, SampledToken
from tandem.runner.segment_kv import NUM_FIRST
from tandem.runner.steps import EntryCopy, TokenCopy

VOCAB_SIZE = 97
BLOCK_SIZE = 4


def next_token(context: Sequence[int]) -> int:
    """What the fake model says after `context`."""
    return zlib.crc32(",".join(map(str, context)).encode()) % VOCAB_SIZE


def continuation(prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What the fake model says after `prompt`, alone and undisturbed."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


@dataclass
class Slots:
    """The KV memory that both phases' fake models share: which token stands in which slot of which block."""

    tokens: dict[tuple[int, int], int] = field(default_factory=dict)

    def write(self, rows: SequenceRows) -> None:
        for position, token in zip(rows.at, rows.token_ids, strict=True):
            self.tokens[self._slot(rows.block_ids, position)] = token

    def context(self, rows: SequenceRows) -> list[int]:
        slots = (self._slot(rows.block_ids, position) for position in range(rows.num_context_tokens))
        return [self.tokens.get(slot, -1) for slot in slots]

    def copy(self, copies: Sequence[TokenCopy]) -> None:
        for copy in copies:
            for offset in range(copy.num_tokens):
                self.tokens[copy.target_block_id, offset] = self.tokens[copy.source_block_id, offset]

    def place(self, copy: EntryCopy) -> None:
        first = NUM_FIRST + copy.placement.skip
        for offset, position in enumerate(copy.placement.positions):
            source = self._slot(copy.entry_block_ids, first + offset)
            self.tokens[self._slot(copy.block_ids, position)] = self.tokens[source]

    def spoil(self, rows: SequenceRows) -> None:
        for position in rows.at:
            self.tokens[self._slot(rows.block_ids, position)] = -2

    def _slot(self, block_ids: Sequence[int], position: int) -> tuple[int, int]:
        return block_ids[position // BLOCK_SIZE], position % BLOCK_SIZE


class FakeRunner:
    """Its answer depends on every slot of the context, so a block used twice or not written shows in the tokens."""

    def __init__(self, slots: Slots) -> None:
        self.steps: list[tuple[SequenceRows, ...]] = []
        self.failures: list[Exception] = []  # raised by the next steps, one each
        self.gate = threading.Event()  # a step waits until it is set
        self.gate.set()
        self.entered = threading.Event()
        self.wiped: list[int] = []  # blocks
        self._slots = slots

    def copy_tokens(self, copies: Sequence[TokenCopy]) -> None:
        self._slots.copy(copies)

    def execute(self, rows: Sequence[SequenceRows]) -> torch.Tensor:
        copies = tuple(
            SequenceRows(tuple(r.token_ids), r.start, tuple(r.block_ids), r.positions and tuple(r.positions))
            for r in rows
        )
        self.entered.set()
        assert self.gate.wait(20)
        if self.failures:
            raise self.failures.pop(0)
        self.steps.append(copies)
        for part in copies:
            self._slots.write(part)
        return torch.stack([_logits(self._slots.context(part)) for part in copies])

    def hold(self) -> None:
        """The next step stays under way until `gate` is set."""
        self.entered.clear()
        self.gate.clear()

    async def until_held(self) -> None:
        assert await asyncio.get_running_loop().run_in_executor(None, self.entered.wait, 20)


class FakeSegments:
    """What a probe stores would show in the tokens, were it not computed again. It finds later tokens more telling."""

    def __init__(self, slots: Slots) -> None:
        self.probed: list[tuple[Sequence[int], int]] = []  # positions, and how many of them were asked
        self.looked: list[Sequence[int]] = []  # positions of rows
        self._slots = slots

    def place(self, copies: Sequence[EntryCopy]) -> None:
        for copy in copies:
            self._slots.place(copy)

    def probe(self, rows: SequenceRows, num_asking: int) -> Scores:
        self._slots.spoil(rows)
        self.probed.append((tuple(rows.at), num_asking))
        return num_asking * np.arange(rows.num_context_tokens, dtype=np.float32)

    def look(self, rows: SequenceRows) -> Scores:
        assert self._slots.context(rows)[rows.start :] == list(rows.token_ids), "it asks rows whose KV is not in place"
        self.looked.append(tuple(rows.at))
        return np.arange(rows.num_context_tokens, dtype=np.float32)


def _logits(context: Sequence[int]) -> torch.Tensor:
    logits = torch.zeros(VOCAB_SIZE)
    best = next_token(context)
    logits[best], logits[(best + 1) % VOCAB_SIZE] = 2.0, 1.0
    return logits


def greedy(logits: torch.Tensor, draws: Sequence[Draw]) -> list[SampledToken]:
    """A sampler that honours bans and checks the position it is told."""
    tokens = []
    for row, draw in zip(logits, draws, strict=True):
        assert draw.position == len(draw.prompt_token_ids) + len(draw.output_token_ids)
        allowed = row.clone()
        allowed[list(draw.banned_token_ids)] = float("-inf")
        tokens.append(SampledToken(int(allowed.argmax()), None))
    return tokens
